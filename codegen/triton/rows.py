"""What a reduction's kernel is made of: rows and columns, where tensors lie in them, steps, passes, forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sympy
import torch

from capture.ir import Node, Range, Value
from capture.ir.dims import Dim, is_symbolic, product
from codegen.triton.launching import Tensors
from codegen.triton.ops import HALVES, Term
from codegen.triton.piece import Piece
from codegen.triton.space import Operand, Space, place, text_of
from codegen.triton.steps import COUNT, Step, Steps, is_reduction
from passes.fusion.reductions import Rows, rows_of

aten = torch.ops.aten

WHOLE = 8192  # columns that stay in registers, where a row is contiguous
CHUNK = 2048  # columns of a chunk, where a row is contiguous
ROWS_ACROSS, COLUMNS_ACROSS = 32, 64  # the tile where neighbours in memory belong to different rows
PARTS = 1024  # programs that share the rows where these are few


def rows_alone(node: Node) -> Rows | None:
    """The rows of a reduction; those of argmax and cumsum too, which no region takes in."""
    alone = (aten.argmax.default, aten.argmin.default, aten.cumsum.default)
    if node.is_op(*alone) and isinstance(node.operands[0], Value):
        shape = node.operands[0].tensor_type.shape
        axis = node.arg("dim")
        axes = range(len(shape)) if axis is None else [axis % len(shape)]
        return Rows(shape, tuple(axes)) if shape else None
    if node.is_op(aten.cross_entropy_loss.default):
        shape = node.operands[0].tensor_type.shape
        return Rows(shape, (1,)) if len(shape) > 1 else None
    return rows_of(node)


@dataclass(frozen=True)
class Loaded:
    """An operand, the value that it is, and its place: as far as the row tells, and as far as the column."""

    value: Value
    operand: Operand
    row: sympy.Expr
    column: sympy.Expr

    @property
    def place(self) -> str:
        parts = [text_of(part) for part in (self.row, self.column) if part != 0]
        return " + ".join(parts) or "0"

    @property
    def mask(self) -> str:
        if self.row != 0 and self.column != 0:
            return "mask"
        return "kept" if self.row != 0 else "inside"

    @property
    def load(self) -> str:
        name = self.operand.name
        bare = self.row == 0 and self.column == 0
        text = f"tl.load({name}_ptr)" if bare else f"tl.load({name}_ptr + {self.place}, {self.mask})"
        return f"{text}.to(tl.float32)" if self.operand.type.dtype in HALVES else text


class RowKernel:
    """A piece with reductions along the same rows."""

    def __init__(self, piece: Piece, rows: Rows, dims: Mapping[str, Range]) -> None:
        self.piece, self.rows = piece, rows
        dropped = self._dropped()
        inputs = [self._operand(piece.names[v], v, v in dropped) for v in piece.inputs]
        names = ["out"] if len(piece.results) == 1 else [f"out{i}" for i in range(len(piece.results))]
        results = [
            self._operand(name, v, v.tensor_type.shape == rows.dropped != rows.kept)
            for name, v in zip(names, piece.results, strict=True)
        ]
        full = next((o for o in inputs if o.type.shape == rows.shape), inputs[0])
        order = full.order + [a for a in range(len(rows.shape)) if a not in full.order]
        if any(is_reduction(n) and "arg" in piece.ops for n in piece.nodes):
            order = sorted(order)
        kept = tuple(a for a in order if a not in rows.axes)
        along = tuple(a for a in order if a in rows.axes)
        space = Space(rows.shape, (kept, along), (*inputs, *results), ("row_count", COUNT))
        self.across = full.order[-1] not in rows.axes if full.order else False
        self.tensors = Tensors(space, inputs, results, dims, {}, {})
        self.loads = [self._loaded(v, o) for v, o in zip(piece.inputs, inputs, strict=True)]
        self.stores = [self._loaded(v, o) for v, o in zip(piece.results, results, strict=True)]
        self.steps = self._steps()
        self._stage()

    def _dropped(self) -> set[Value]:
        """The inputs that are read by operators without the reduced axes."""
        plain = [n for n in self.piece.nodes if not is_reduction(n)]
        shape = self.rows.dropped
        readers = [n for n in plain if n.results[0].tensor_type.shape == shape != self.rows.kept]
        found = {v for n in readers for v in n.operand_values}
        targets = {n.operands[1] for n in self.piece.nodes if n.is_op(aten.cross_entropy_loss.default)}
        others = {
            v for n in self.piece.nodes if n not in readers for v in n.operand_values if v not in targets
        }
        found |= targets
        if found & others & set(self.piece.inputs):
            raise self.piece.unsupported("one of its inputs is read in rows and beside them")
        return found

    def _operand(self, name: str, value: Value, dropped: bool) -> Operand:
        type_ = value.tensor_type
        if not dropped:
            return Operand(name, type_, place(type_, self.rows.shape))
        kept = [a for a in range(len(self.rows.shape)) if a not in self.rows.axes]
        found: list[int | None] = [None] * len(self.rows.shape)
        for axis, own in zip(kept, place(type_, self.rows.dropped), strict=True):
            found[axis] = own
        return Operand(name, type_, tuple(found))

    def _loaded(self, value: Value, o: Operand) -> Loaded:
        space = self.tensors.space
        return Loaded(value, o, space.offset(o, 0, "row"), space.offset(o, 1, "column"))

    def _steps(self) -> Steps:
        steps = Steps(self.piece.names.__getitem__)
        for loaded in self.loads:
            o = loaded.operand
            steps.body.terms[loaded.value] = Term(o.name, o.type.dtype, rank=o.type.rank)
            if loaded.column != 0:
                steps.wide.add(o.name)
        for node in self.piece.nodes:
            steps.add(node)
        return steps

    def _stage(self) -> None:
        """In which pass over the columns each step runs: after all reductions that it reads."""
        self.stage: dict[str, int] = {loaded.operand.name: 0 for loaded in self.loads}
        for step in self.steps.steps:
            at = max((self.stage.get(name, 0) for name in step.reads), default=0)
            for name in step.names:
                self.stage[name] = at + (step.reduction is not None)
        self.reductions = [s for s in self.steps.steps if s.reduction is not None]
        self.wide_results = [s for s in self.stores if self.name(s) in self.steps.wide]
        passes = [self.at(step) for step in self.reductions]
        self.passes = 1 + max([*passes, *(self.stage[self.name(s)] for s in self.wide_results)])

    def at(self, step: Step) -> int:
        """The pass in which a step runs."""
        return self.stage[step.names[0]] - (step.reduction is not None)

    def name(self, stored: Loaded) -> str:
        return str(self.steps.body.terms[stored.value])

    # -- which forms --------------------------------------------------------------------------------------

    @property
    def columns(self) -> Dim:
        return product(tuple(self.rows.shape[axis] for axis in self.rows.axes))

    @property
    def splittable(self) -> bool:
        """Whether several programs may share a row: one pass, and nothing but states to hand on."""
        return self.passes == 1 and not self.wide_results and all(self.at(s) == 0 for s in self.reductions)

    @property
    def limit(self) -> int:
        return COLUMNS_ACROSS if self.across else WHOLE

    @property
    def forms(self) -> list[str]:
        """Which forms the file has, in the order that `launch` tries them."""
        if isinstance(self.columns, int) and self.columns <= self.limit:
            return ["whole"]
        long = ["split", "loop"] if self.splittable else ["loop"]
        return ["whole", *long] if is_symbolic(self.columns) else long

    def long_axis(self) -> int | None:
        """An axis whose size an example makes long, so that rows are more than a chunk."""
        return self.rows.axes[-1] if self.forms != ["whole"] else None

    def notes(self) -> str:
        told = {
            "whole": "A program holds whole rows in registers: each tensor is read or written once.",
            "loop": f"Rows are read in chunks, {self.passes} times.",
            "split": "Where rows are few, programs share them, and a second kernel joins what they found.",
        }
        return "\n".join([self.tensors.moved(), *(told[form] for form in self.forms)])

    def numbers(
        self, tensors: Sequence[Loaded]
    ) -> tuple[list[tuple[str, tuple[int, ...]]], list[tuple[str, str]]]:
        """The sizes and strides that the places of these tensors take."""
        exprs = [part for t in tensors for part in (t.row, t.column)]
        return self.tensors.space.sizes_used(exprs), self.tensors.space.strides_used(exprs)


def state_of(step: Step) -> list[tuple[str, str, str]]:
    """(name, Triton type, start) of each part of a reduction's state."""
    assert step.reduction is not None
    r = step.reduction
    return list(zip(r.state, r.dtypes, r.start, strict=True))


__all__ = [
    "CHUNK",
    "COLUMNS_ACROSS",
    "PARTS",
    "ROWS_ACROSS",
    "WHOLE",
    "Loaded",
    "RowKernel",
    "rows_alone",
    "state_of",
]
