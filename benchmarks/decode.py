"""One decoding step with a key-value cache: eager, the cache copied at each step, and written in place.

    python -m benchmarks.decode                       written to benchmarks/results/decode.md
    python -m benchmarks.decode mine.py:with_cache    models of one's own

Each has a process of its own; see `benchmarks.tables.timed`. The ratio is eager's median over that in place.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.tables import Table, about, side_by_side, timed_parser

MODELS = ("models.gpt2:with_cache",)
ENGINES = {
    "eager": {"engine": "eager"},
    "copied": {"engine": "aten", "disable": ["reinplace"]},
    "in place": {"engine": "aten"},
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print each row as it is done, write the table."""
    options = timed_parser("decode", __doc__, MODELS).parse_args(arguments)
    told = f"{about(options, 'step')}, aten backend."
    table = Table("decode", "A decoding step with a key-value cache", told, ("model", *ENGINES, "ratio"))
    side_by_side(ENGINES, options, table, MODELS)


if __name__ == "__main__":
    main()
