"""How sizes are written."""

import pytest

from capture.wording import human_size


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (123_456, "123.5 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (9_230_000, "9.2 MB"),
        (-5_218_304, "-5.2 MB"),
        (2_500_000_000, "2.5 GB"),
        (1.2e15, "1200.0 TB"),
    ],
)
def test_sizes_are_decimal_with_one_digit_after_the_point(count: float, words: str) -> None:
    assert human_size(count) == words
