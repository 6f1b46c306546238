"""How sizes, errors and places in a model are written."""

import pytest

from capture.errors import CaptureError
from capture.wording import dotted, first_line, human_size


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


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\n  no such key\nand more"), "ValueError: no such key"),
        (KeyError(), "KeyError"),
        (CaptureError("no kernel", why="none was found", hint="another backend"), "no kernel"),
        (RuntimeError("bad.\n  Explanation: a graph break\nHint: none"), "RuntimeError: a graph break"),
        (RuntimeError("bad. For more information, run with TORCH_LOGS=dynamic"), "RuntimeError: bad."),
        (RuntimeError("x" * 300), f"RuntimeError: {'x' * 200} ..."),
    ],
    ids=["first", "empty", "ours", "explained", "advice", "long"],
)
def test_an_error_in_one_line(error: Exception, line: str) -> None:
    assert first_line(error) == line


def test_places_are_dotted_paths() -> None:
    assert dotted("", "weight") == "weight"
    assert dotted("layer1.0", "weight") == "layer1.0.weight"
    assert dotted("blocks", 3) == "blocks.3"
