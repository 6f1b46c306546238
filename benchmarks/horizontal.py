"""What merging the linear layers of one input is worth: the Transformer workloads with and without the pass.

    python -m benchmarks.horizontal                 written to benchmarks/results/horizontal.md
    python -m benchmarks.horizontal models.bert --seconds 5

Both are compiled for the aten backend, each in a process of its own; see `benchmarks.tables.timed`. The ratio
is the median without over the median with `merge-linear`: where its interval lies above 1, merging pays.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.tables import Table, about, side_by_side, timed_parser

MODELS = ("models.bert", "models.vit", "models.gpt2", "models.llama")
ENGINES = {"apart": {"engine": "aten", "disable": ["merge-linear"]}, "merged": {"engine": "aten"}}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print each row as it is done, write the table."""
    options = timed_parser("horizontal", __doc__, MODELS, repeats=3).parse_args(arguments)
    told = f"{about(options, 'call')}, aten backend."
    table = Table("horizontal", "Linear layers of one input, merged", told, ("model", *ENGINES, "ratio"))
    side_by_side(ENGINES, options, table, MODELS)


if __name__ == "__main__":
    main()
