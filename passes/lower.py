"""Choose a kernel for each node: write an `impl` recipe, leave the meaning as it is.

    %3 = fusion.conv(%x, @w, @b, %r) {...}  ==>  %3 = ... via onednn.conv(unary="relu", binary="add", other=3)
    %4 = aten.linear(%3, @w2, @b2)          ==>  %4 = ... via onednn.linear(unary="none")

On a CPU, convolutions and linear layers with constant weights go to oneDNN with their weights packed when the
generated module loads. An epilogue longer than oneDNN's is cut after the longest piece that oneDNN can do.

oneDNN's convolutions return channels-last; where the graph has a contiguous result, a copy follows.

Does not fire on weights that the graph computes or writes or that are not bound, on dtypes that oneDNN has no
fast kernel for, on other devices, on padding given as a word, or on inputs without a batch dimension.
oneDNN's ReLU maps NaN to 0. `keep_nan=True` leaves ReLU to PyTorch, at the cost of one more pass over memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

import torch

from capture.ir import Constant, Fusion, Graph, Impl, Node, Value
from capture.ir.types import CHANNELS_LAST, CONTIGUOUS
from passes.base import Pass, PassResult, register_pass
from passes.layout import contiguous_copy
from passes.regions import inline_region, make_region

aten = torch.ops.aten
Unary = tuple[str, list[float], str]  # oneDNN's name, its scalars, its algorithm

NAN_LOSING = ("relu", "hardsigmoid", "hardtanh")
UNARIES: dict[Any, Callable[[Node], Unary]] = {
    aten.relu.default: lambda n: ("relu", [], ""),
    aten.sigmoid.default: lambda n: ("sigmoid", [], ""),
    aten.tanh.default: lambda n: ("tanh", [], ""),
    aten.silu.default: lambda n: ("swish", [], ""),
    aten.hardswish.default: lambda n: ("hardswish", [], ""),
    aten.hardsigmoid.default: lambda n: ("hardsigmoid", [], ""),
    aten.leaky_relu.default: lambda n: ("leaky_relu", [float(n.arg("negative_slope"))], ""),
    aten.hardtanh.default: lambda n: ("hardtanh", [float(n.arg("min_val")), float(n.arg("max_val"))], ""),
    aten.gelu.default: lambda n: ("gelu", [], n.arg("approximate")),
}
BINARIES: dict[Any, str] = {aten.add.Tensor: "add", aten.mul.Tensor: "mul"}


@dataclass(frozen=True)
class Epilogue:
    """What runs on the anchor's result inside the kernel: `length` nodes of the region after the anchor."""

    length: int = 0
    unary: Unary = ("none", [], "")
    binary: str = ""
    other: Value | None = None

    def options(self, other: int | None) -> dict[str, Any]:
        """As options of an Impl; `other` is the position of the operand that the binary takes."""
        name, scalars, algorithm = self.unary
        options: dict[str, Any] = {"unary": name}
        if scalars:
            options["scalars"] = scalars
        if algorithm:
            options["algorithm"] = algorithm
        if other is not None:
            options |= {"binary": self.binary, "other": other}
        return options


@register_pass
@dataclass(frozen=True)
class Lower(Pass):
    name = "lower"
    keep_nan: bool = False

    def run(self, graph: Graph) -> PassResult:
        if not torch.backends.mkldnn.is_available():
            return PassResult(False, {"onednn": "not in this PyTorch"})
        stats: Counter[str] = Counter()
        for node in graph.nodes:
            kind = _kind(node)
            if kind is None:
                continue
            region = node.region
            anchor = next(iter(region.nodes)) if region is not None else node
            if not _packable(kind, anchor, node, graph.writebacks):
                continue
            self._lower(graph, node, anchor, kind, stats)
        return PassResult(bool(stats), dict(stats))

    def _lower(self, graph: Graph, node: Node, anchor: Node, kind: str, stats: Counter[str]) -> None:
        chain = list(node.region.nodes)[1:] if node.region is not None else []
        epilogue = match_epilogue(kind, anchor, chain, self.keep_nan)
        if epilogue.length < len(chain):
            node = _cut(graph, node, epilogue.length)
            chain = list(node.region.nodes)[1:] if node.region is not None else []
            anchor = next(iter(node.region.nodes)) if node.region is not None else node
            epilogue = match_epilogue(kind, anchor, chain, self.keep_nan)
        other = (
            node.region.inputs.index(epilogue.other) if epilogue.other is not None and node.region else None
        )
        options = epilogue.options(other)
        if other is not None and kind == "conv" and epilogue.other is not anchor.operands[0]:
            options["inplace"] = other  # oneDNN's sum post-op accumulates into the other operand
        node.set_impl(Impl(f"onednn.{kind}", options))
        if kind == "conv":
            note_channels_last(graph, node.results[0])
        stats[f"onednn.{kind}"] += 1


def note_channels_last(graph: Graph, result: Value) -> None:
    """Tell the format that oneDNN returns; whoever was given contiguous memory goes on getting it."""
    type_ = result.tensor_type
    if type_.memory_format != CONTIGUOUS or type_.shape[1] == 1 or type_.shape[2:] == (1, 1):
        return  # with one channel or one pixel the two formats are the same
    graph.set_result_type(result, type_.with_(memory_format=CHANNELS_LAST))
    copy = contiguous_copy(graph, result, after=result.producer)
    graph.replace_uses(result, copy.result)
    copy.set_operands([result], copy.kwargs)


def match_epilogue(kind: str, anchor: Node, chain: list[Node], keep_nan: bool = False) -> Epilogue:
    """The longest prefix of `chain` that the kernel can take: a binary, then a unary (for linear: either)."""
    epilogue, value = Epilogue(), anchor.results[0]
    for position, node in enumerate(chain, start=1):
        unary = UNARIES[node.op](node) if node.op in UNARIES and node.operands[0] is value else None
        if unary is not None and keep_nan and unary[0] in NAN_LOSING:
            break
        if unary is not None and epilogue.unary[0] == "none" and not (epilogue.binary and kind == "linear"):
            if epilogue.binary and unary[0] != "relu":
                break
            epilogue = Epilogue(position, unary, epilogue.binary, epilogue.other)
        elif position == 1 and (other := _other(node, value)) is not None and _takes(kind, node):
            epilogue = Epilogue(position, epilogue.unary, BINARIES[node.op], other)
        else:
            break
        value = node.results[0]
    return epilogue


def kernel_takes(graph: Graph, anchor: Node, chain: list[Node]) -> int | None:
    """How much of the chain after a lone anchor its oneDNN kernel does; None where it has no such kernel."""
    kind = _kind(anchor)
    if kind is None or not torch.backends.mkldnn.is_available():
        return None
    if not _packable(kind, anchor, anchor, graph.writebacks):
        return None
    return match_epilogue(kind, anchor, chain).length


def _takes(kind: str, node: Node) -> bool:
    return kind == "linear" or BINARIES[node.op] == "add"


def _other(node: Node, value: Value) -> Value | None:
    """The other tensor of a binary epilogue: of the same shape and dtype, unscaled."""
    if node.op not in BINARIES or node.kwargs:
        return None
    left, right = node.operands
    if left is right or value not in (left, right):
        return None
    other = right if left is value else left
    if not isinstance(other, Value):
        return None
    return other if value.tensor_type.same_value_as(other.type) else None


def _kind(node: Node) -> str | None:
    if node.impl is not None:
        return None
    if isinstance(node.op, Fusion):
        return node.op.kind if node.op.kind in ("conv", "linear") else None
    if node.is_op(aten.conv2d.default):
        return "conv"
    return "linear" if node.is_op(aten.linear.default) else None


def _packable(kind: str, anchor: Node, node: Node, written: Container[Value]) -> bool:
    """Whether oneDNN takes the anchor: constant bound weights, a dtype and sizes that it has kernels for."""
    if not anchor.is_op(aten.conv2d.default if kind == "conv" else aten.linear.default):
        return False
    weight, bias = _outer(node, anchor.operands[1]), _outer(node, anchor.arg("bias"))
    x = anchor.operands[0].tensor_type
    if not isinstance(weight, Constant) or weight.tensor is None or weight in written:
        return False
    if bias is not None and (not isinstance(bias, Constant) or bias in written):
        return False
    ranks = x.rank >= 2 and weight.tensor_type.rank == 2
    if kind == "conv":
        ranks = x.rank == weight.tensor_type.rank == 4
    return (
        x.device.type == "cpu"
        and ranks
        and all(d for d in weight.tensor_type.shape)
        and _dtype_is_fast(x.dtype)
    )


def _outer(node: Node, value: Any) -> Any:
    """The operand of the fusion node that a region's parameter stands for."""
    if node.region is not None and isinstance(value, Value):
        return node.operands[node.region.inputs.index(value)]
    return value


def _dtype_is_fast(dtype: torch.dtype) -> bool:
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype == torch.float32


def _cut(graph: Graph, node: Node, length: int) -> Node:
    """Keep the anchor and `length` nodes of the epilogue in the region; put the rest back into the graph."""
    assert isinstance(node.op, Fusion)
    kind = node.op
    inlined = inline_region(graph, node)
    return make_region(graph, kind, inlined[: length + 1]) if length else inlined[0]
