"""Which values share a buffer: found by one run of the graph on fake tensors, comparing storages.

    %1 = permute(%0)       %1 lives in %0's buffer, as does what a recipe says is written into %0
    %2 = reshape(%1)       a copy where strides force one, else %0's buffer too
    %3 = relu(%2)          a buffer of its own, which may be %2's where %2 ends here (`reusable`)

Nothing here depends on the order of the nodes, so a pass that only reorders may keep the answer.
(`passes.aliases` asks another question of a graph under edit: what might share memory, as far as a caller
could notice.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch._ops import OpOverload

from capture.errors import CaptureError
from capture.ir import Constant, Fusion, Graph, Node, TensorType, Value, dims
from capture.ir.dims import Dim
from capture.ir.infer import FakeRun
from capture.ir.types import CHANNELS_LAST, CHANNELS_LAST_3D, TORCH_FORMATS
from passes.aliases import may_share
from passes.destinations import may_overwrite
from passes.updates import updated_operand


@dataclass(frozen=True)
class Layout:
    """How a value lies in its buffer. Where a size is 1 so is its stride: equal layouts compare equal."""

    dtype: torch.dtype
    shape: tuple[Dim, ...]
    strides: tuple[Dim, ...]
    offset: Dim


@dataclass(frozen=True)
class Buffers:
    """The buffers of a graph, each known by its root: the first value that lives in it.

    Attributes:
        version: the graph's version that this was made for.
        roots: each tensor value's root; inputs and constants are roots too.
        nbytes: bytes of each root's buffer (of its storage, where sizes are static).
        layouts: how each tensor value lies in its buffer.
        held: root of a result that may share memory after all, at other sizes or strides or in another branch
            -> the roots that it may share with, which must live as long.
        reusable: per node, (result, operand) pairs, in order of preference: the result may be written over
            the operand if nobody needs the operand's buffer after the node.
        lasting: roots of what lives longer than a call: inputs, constants, results.
        escaping: roots that a result may share memory with after all, so that they must not lie in an arena.
    """

    version: int
    roots: Mapping[Value, Value]
    nbytes: Mapping[Value, Dim]
    layouts: Mapping[Value, Layout]
    held: Mapping[Value, tuple[Value, ...]]
    reusable: Mapping[Node, tuple[tuple[Value, Value], ...]]
    lasting: frozenset[Value]
    escaping: frozenset[Value]

    @property
    def transients(self) -> list[Value]:
        """Roots of the buffers that live inside a call only, in the graph's order."""
        return [v for v in self.nbytes if v not in self.lasting]

    def memory_of(self, value: Value) -> tuple[Value, ...]:
        """Roots of the memory that a value lies in, or may, at other sizes or strides."""
        root = self.roots.get(value)
        return () if root is None else self._reach[root]

    @cached_property
    def _reach(self) -> dict[Value, tuple[Value, ...]]:
        found: dict[Value, tuple[Value, ...]] = {}

        def reach(root: Value) -> tuple[Value, ...]:
            if root not in found:
                also = [memory for other in self.held.get(root, ()) for memory in reach(other)]
                found[root] = tuple(dict.fromkeys([root, *also]))
            return found[root]

        for root in dict.fromkeys(self.roots.values()):  # in order: what one may lie in has been seen before
            reach(root)
        return found


def buffers(graph: Graph) -> Buffers:
    """The buffers of the graph as it stands."""
    found: Buffers = graph.analysis("buffers", lambda: _Finder(graph).find())
    return found


class _Finder:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.fake = FakeRun(graph)
        self.roots: dict[Value, Value] = {}
        self.nbytes: dict[Value, Dim] = {}
        self.layouts: dict[Value, Layout] = {}
        self.held: dict[Value, tuple[Value, ...]] = {}
        self.strides: dict[Value, tuple[Dim, ...]] = {}  # where a size is 1 too
        self.unsure: set[Value] = set()  # roots never to be written over: they may be someone else's memory
        self.by_storage: dict[int, Value] = {}

    def find(self) -> Buffers:
        given = [
            v for v in (*self.graph.inputs, *self.graph.constants.values()) if isinstance(v.type, TensorType)
        ]
        for value in given:
            self._note(value, self._given(value))
        for node in self.graph.nodes:
            self._node(node)
        lasting = {self.roots[v] for v in given}
        lasting |= {self.roots[v] for v in self.graph.results if isinstance(v, Value) and v in self.roots}
        escaping: set[Value] = set()
        for result in reversed(list(self.held)):
            if result in lasting or result in escaping:
                escaping.update(set(self.held[result]) - lasting)
        self.unsure |= escaping
        reusable = {n: pairs for n in self.graph.nodes if (pairs := self._reusable(n, lasting))}
        return Buffers(
            self.graph.version,
            self.roots,
            self.nbytes,
            self.layouts,
            self.held,
            reusable,
            frozenset(lasting),
            frozenset(escaping),
        )

    def _given(self, value: Value) -> torch.Tensor:
        """The fake of an input or constant; a bound constant has its tensor's own strides."""
        held = value.tensor if isinstance(value, Constant) else None
        if held is not None and held.layout is torch.strided and not held.is_contiguous():
            with self.fake.context.mode:
                self.fake.values[value] = torch.empty_strided(
                    held.shape, held.stride(), dtype=held.dtype, device=held.device
                )
        fake: torch.Tensor = self.fake.value(value)
        return fake

    def _node(self, node: Node) -> None:
        results = [v for v in node.results if isinstance(v.type, TensorType)]
        if not results:
            return
        fakes = self._run(node)
        may_alias = _may_alias(node)
        for value in results:
            type_ = value.tensor_type
            fake = fakes[value.index] if fakes is not None else None
            if fake is None or (self._is_fresh(fake) and self._is_as_typed(type_, fake)):
                fake = self.fake.context.tensor(type_)
            self.fake.values[value] = fake
            if self._note(value, fake) is value and may_alias:
                self._hold(node, value)

    def _run(self, node: Node) -> Sequence[torch.Tensor] | None:
        """Fakes of the results, or None where they are to be taken from the types."""
        if (updated := updated_operand(node)) is not None:
            return [self.fake.value(updated)]
        if isinstance(node.op, Fusion) and node.impl is not None:
            return None  # a kernel's result is fresh
        try:
            return self.fake.step(node)
        except CaptureError:  # no fake kernel for these operands: sizes that depend on data, say
            return None

    def _is_fresh(self, fake: torch.Tensor) -> bool:
        return fake.layout is not torch.strided or fake.untyped_storage()._cdata not in self.by_storage

    def _is_as_typed(self, type_: TensorType, fake: torch.Tensor) -> bool:
        """Whether the type knows better: a kernel's channels-last, sizes that each fake call names anew."""
        return _needs_format(fake, type_) or not dims.free_names(list(type_.shape)) <= set(self.graph.dims)

    def _note(self, value: Value, fake: torch.Tensor) -> Value:
        """Learn the value's root and layout."""
        dense = value.tensor_type.nbytes
        if fake.layout is not torch.strided:
            self.roots[value] = value
            self.nbytes[value] = dense
            return value
        root = self.by_storage.setdefault(fake.untyped_storage()._cdata, value)
        self.roots[value] = root
        self.strides[value] = tuple(map(self.fake.context.dim, fake.stride()))
        self.layouts[value] = self._layout(value, fake)
        if root is value:
            self.nbytes[value] = int(fake.untyped_storage().nbytes()) if isinstance(dense, int) else dense
        return root

    def _layout(self, value: Value, fake: torch.Tensor) -> Layout:
        dim = self.fake.context.dim
        shape = tuple(map(dim, fake.shape))
        strides = tuple(1 if d == 1 else s for d, s in zip(shape, self.strides[value], strict=True))
        return Layout(fake.dtype, shape, strides, dim(fake.storage_offset()))

    def _hold(self, node: Node, value: Value) -> None:
        """A fresh result of an op that may give a view.

        With other sizes, with other strides of a caller's inputs, or in another branch, it is one.
        """
        self.unsure.add(value)
        self.held[value] = tuple(dict.fromkeys(self.roots[v] for v in node.operand_values if v in self.roots))

    def _reusable(self, node: Node, lasting: set[Value]) -> tuple[tuple[Value, Value], ...]:
        if len(node.results) != 1:
            return ()
        result = node.results[0]
        if result in lasting or result in self.unsure or self.roots.get(result) is not result:
            return ()
        return tuple((result, v) for v in may_overwrite(node) if self._fits(node, result, v, lasting))

    def _fits(self, node: Node, result: Value, operand: Value, lasting: set[Value]) -> bool:
        """Same bytes at the same places, in memory of ours that the node does not read in another layout."""
        root = self.roots.get(operand)
        if root is None or root in lasting or root in self.unsure or result not in self.layouts:
            return False
        if operand.tensor_type.memory_format != result.tensor_type.memory_format:
            return False
        wanted = self.layouts[result]
        if self.nbytes[root] != self.nbytes[result] or self.layouts.get(operand) != wanted:
            return False
        # PyTorch compares strides even where the size is 1, and refuses what may overlap in part.
        readings = [v for v in node.operand_values if self.roots.get(v) is root]
        if (
            isinstance(node.op, Fusion)
            and node.impl is None
            and not set(readings) <= set(may_overwrite(node))
        ):
            return False  # read again after the first of its operators has written
        return all(self.layouts[v] == wanted and self.strides[v] == self.strides[operand] for v in readings)


def _needs_format(fake: torch.Tensor, type_: TensorType) -> bool:
    """Whether the type asks for channels-last, as the kernel gives it, where the op alone would not."""
    if type_.memory_format not in (CHANNELS_LAST, CHANNELS_LAST_3D):
        return False
    return not fake.is_contiguous(memory_format=TORCH_FORMATS[type_.memory_format])


def _may_alias(node: Node) -> bool:
    """Whether the node's results may be views of its operands, fresh though they look here."""
    if isinstance(node.op, Fusion):
        return node.impl is None and node.region is not None and _passes_through(node.region)
    return any(map(_passes_through, node.regions)) if node.regions else may_share(node.op)


def _passes_through(region: Graph) -> bool:
    """Whether a result of the region is one of its inputs or constants, or may be a view of one."""
    given = {*region.inputs, *region.constants.values()}
    for node in region.nodes:
        if given.intersection(node.operand_values) and (
            _may_alias(node) or not isinstance(node.op, OpOverload | Fusion)
        ):
            given.update(node.results)
    return any(v in given for v in region.result_values)


__all__ = ["Buffers", "Layout", "buffers"]
