"""--prune: what it removes from the captured graph, and a line about it."""

from __future__ import annotations

import re
from types import SimpleNamespace

from capture.errors import UsageError
from capture.ir import Graph
from passes.pruning.prune import METHODS, Prune, prune
from runtime.cli.terminal import Terminal
from runtime.tuned import Configuration

__all__ = ["plan", "pruned"]

FORM = re.compile(r"(?P<method>.+?)(?::(?P<share>\d+(?:\.\d+)?)(?P<percent>%?))?")


def plan(options: SimpleNamespace) -> Prune | None:
    """What --prune asks for, else the [prune] of --quant-config; None: nothing.

    Raises:
        UsageError: it cannot be read, or there is no such method.
    """
    if options.prune is None:
        given = options.quant_config if options.quantize else None  # without, it is refused
        return Configuration.from_toml(given).prune if given else None
    if options.prune == "2:4":
        return Prune("2:4", 0.5)
    found = FORM.fullmatch(options.prune)
    if found is None or found["share"] is None:
        raise UsageError(
            f"--prune {options.prune} names no share",
            hint=f"METHOD:RATIO, one of {', '.join(METHODS)}; channels:0.3",
        )
    return Prune(found["method"], float(found["share"]) / (100 if found["percent"] else 1))


def pruned(terminal: Terminal, options: SimpleNamespace, graph: Graph) -> Graph:
    """The captured graph without what --prune removes; the graph itself where nothing is asked.

    Raises:
        UsageError: it cannot be read, there is no such method, or nothing can be removed.
    """
    wanted = plan(options)
    if wanted is None:
        return graph
    terminal.say("pruning")
    made = prune(graph, method=wanted.method, sparsity=wanted.sparsity, config=wanted.config)
    record = made.history[-1]
    if not record.changed:
        raise UsageError(
            f"--prune {wanted.method} finds nothing to remove",
            why="no group of channels lies between an input and a result, or they are too few for the share",
        )
    zeros = f"{record.stats['zeros']:,} zeros" if "zeros" in record.stats else ""
    note = (
        "weights are not trained again: runtime.finetune does"
        if wanted.method == "channels"
        else "no kernel skips zeros"
    )
    terminal.line(
        f"{wanted.method} {wanted.sparsity:.0%}",
        f"weights {record.stats['weights']}",
        zeros,
        note,
        label="prune",
    )
    return made
