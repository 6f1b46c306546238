"""What a run ends with where its results are not right: the first NaN, or the output that differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from capture.errors import VerificationError
from capture.ir import Graph, Node, op_name
from capture.ir.interpreter import flatten_inputs, run_flat
from runtime.compare import Parity
from runtime.compile import Compiled
from runtime.reference import clone_inputs

__all__ = ["check", "first_nan"]


def check(parity: Parity, compiled: Compiled, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Pass, or raise what is wrong.

    Raises:
        VerificationError: an output is NaN, or differs from the reference beyond what is allowed.
    """
    if parity.ok:
        return
    optimized = any(record.changed for record in compiled.graph.history)
    failed = [row for row in parity.outputs if not row.ok]
    more = f"; {len(failed) - 1} more outputs fail" if len(failed) > 1 else ""
    if any(row.reason.startswith("NaN") for row in failed):
        place, source = first_nan(compiled.captured, args, kwargs)
        raise VerificationError(
            "the outputs hold NaN",
            where=place,
            why="\n".join(filter(None, (source, parity.reason + more))),
            hint="look for a division by zero, the log of a negative number, an overflow in a narrow dtype."
            if place or not optimized
            else "--disable-pass NAME finds the pass that brings it in.",
        )
    tolerant = "--atol and --rtol if this much is fine."
    raise VerificationError(
        "the results are not right",
        why=parity.reason + more,
        hint=f"--disable-pass NAME finds the pass that breaks it; {tolerant}"
        if optimized
        else f"another --frontend, or another --backend; {tolerant}",
    )


class _FoundError(Exception):
    """Ends the search at the first node with a NaN."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        self.node = node


def first_nan(graph: Graph, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str | None, str]:
    """The user's line where the captured graph first makes a NaN, and in words what makes it.

    (None, "") where the captured graph makes none: then it came in later.
    """
    given, given_kw = clone_inputs((tuple(args), dict(kwargs)))
    flat = flatten_inputs(graph, given, given_kw)
    for value, tensor in zip(graph.inputs, flat, strict=True):
        if has_nan(tensor):
            return None, f"the input {value.name} holds NaN"
    for name, constant in graph.constants.items():
        if has_nan(constant.tensor):
            return None, f"the weight {name} holds NaN"

    def observe(node: Node, operands: Sequence[Any], results: Sequence[Any]) -> None:
        if any(map(has_nan, results)):
            raise _FoundError(node)

    try:
        with torch.no_grad():
            run_flat(graph, flat, observe=observe)
    except _FoundError as found:
        return place_of(graph, found.node), f"{op_name(found.node.op)} makes the first NaN"
    return None, ""


def place_of(graph: Graph, node: Node) -> str | None:
    """The user's line of a node: file:line and the code."""
    for number in node.origin.ids:
        captured = graph.captured.get(number)
        if captured is not None and captured.location:
            return f"{captured.location}   {captured.code}".rstrip()
    return str(node.origin) or None


def has_nan(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and bool(value.isnan().any())
