"""What is written on and behind a box: kind, short title, shapes, tooltip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import sympy
import torch

from capture.ir import Graph, Node, TensorType, Trait, Value, dims
from capture.ir.cost import cost, flops
from capture.ir.ops import Fusion, op_name, resolve_op, traits
from capture.ir.text import format_operand, names
from capture.ir.types import DTYPE_NAMES, ValueType
from capture.wording import human_size
from viz.style import shorten

_NAMES = {
    "_native_batch_norm_legit_no_training": "batch_norm",
    "_native_batch_norm_legit_functional": "batch_norm",
    "_native_batch_norm_legit": "batch_norm",
    "native_batch_norm": "batch_norm",
    "native_layer_norm": "layer_norm",
    "native_group_norm": "group_norm",
    "scaled_dot_product_attention": "attention",
    "_scaled_dot_product_flash_attention_for_cpu": "attention",
    "_to_copy": "to",
    "_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "_unsafe_view": "reshape",
    "max_pool2d_with_indices": "max_pool2d",
    "_adaptive_avg_pool2d": "adaptive_avg_pool2d",
    "constant_pad_nd": "pad",
}


def kind(node: Node) -> str:
    """The kind that gives a box its colour (a key of `style.KINDS`)."""
    if node.regions:
        anchor = heaviest(node)
        return kind(anchor) if anchor is not None else "pointwise"
    if (
        not any(isinstance(v, Value) and not v.is_constant for v in node.operand_values)
        and node.operand_values
    ):
        return "folded"
    return _kind_of_op(node.op)


def _kind_of_op(op: Any) -> str:
    found = traits(op)
    for trait, name in (
        (Trait.MATMUL | Trait.CONV, "compute"),
        (Trait.REDUCTION | Trait.NORM | Trait.POOL, "reduction"),
        (Trait.VIEW | Trait.MOVE, "move"),
        (Trait.EFFECTFUL, "other"),
    ):
        if found & trait:
            return name
    return "pointwise"


def kind_of_name(name: str) -> str:
    """The kind of an op of which only the printed name is at hand."""
    try:
        op = resolve_op(name)
    except KeyError:
        return "other"
    if isinstance(op, Fusion):
        return "pointwise" if op.kind == "pointwise" else "compute"
    return _kind_of_op(op)


def heaviest(node: Node) -> Node | None:
    """The node of a fusion's region that costs the most arithmetic; the first of equals."""
    nodes = [n for region in node.regions for n in region.nodes]
    return max(nodes, key=lambda n: size_hint(flops(n), n.graph), default=None)


def size_hint(size: Any, graph: Graph | None) -> int:
    """A size as a number to draw with: each symbolic dim at the lower end of its range."""
    if isinstance(size, int):
        return size
    ranges = graph.dims if graph is not None else {}
    env = {n: max(1, ranges[n].lower) if n in ranges else 1 for n in dims.free_names(size)}
    return dims.evaluate(size, env)


def value_bytes(value: Value, graph: Graph) -> int:
    return size_hint(value.type.nbytes, graph) if isinstance(value.type, TensorType) else 8


def main_dtype(graph: Graph) -> torch.dtype | None:
    """The dtype of most values that flow; edges name only the others."""
    flowing = [v.type.dtype for n in graph.nodes for v in n.results if isinstance(v.type, TensorType)]
    counts = Counter(flowing or [v.type.dtype for v in graph.inputs if isinstance(v.type, TensorType)])
    return counts.most_common(1)[0][0] if counts else None


def short_shape(type_: ValueType, main: torch.dtype | None) -> str:
    """``64×56×56``: without leading ones, with the dtype only where it is not the main one."""
    if not isinstance(type_, TensorType):
        return str(type_)
    sizes = list(type_.shape)
    while len(sizes) > 1 and sizes[0] == 1:
        sizes.pop(0)
    text = "×".join(_short_dim(d) for d in sizes) or "scalar"
    return text if type_.dtype == main else f"{DTYPE_NAMES[type_.dtype]} {text}"


def _short_dim(dim: Any) -> str:
    text = dims.format_dim(dim)
    return text if isinstance(dim, (int, sympy.Symbol)) else f"({shorten(text, 14)})"


def op_title(node: Node) -> str:
    """``conv2d 3×3 /2``, ``transpose 1,2``: the op, and the one detail that tells it from its like."""
    if not isinstance(node.op, torch._ops.OpOverload):
        return op_name(node.op).removeprefix("higher_order.")
    packet = op_name(node.op).partition(".")[2].partition(".")[0]
    space = "" if node.op.namespace == "aten" else f"{node.op.namespace}."
    detail = _detail(node, packet)
    return f"{space}{_NAMES.get(packet, packet)}{' ' if detail else ''}{detail}"


def common_name(op: str) -> str:
    """A printed op by the name that people know: ``batch_norm`` of ``aten._native_batch_norm_legit``."""
    space, _, rest = op.partition(".")
    if space != "aten":
        return op
    packet, dot, overload = rest.partition(".")
    return _NAMES.get(packet, packet + dot + overload)


def modules_by_name(graph: Graph) -> dict[str, str]:
    """For the printed name of each value the module that makes it: ``layer1.0.conv3``.

    Of a fusion it is the one that its first op comes from.
    """
    named = names(graph)
    return {
        named[value]: node.origin.modules[0]
        for node in graph.nodes
        if node.origin.modules
        for value in node.results
    }


def _detail(node: Node, packet: str) -> str:
    if packet.startswith(("conv", "_convolution")):
        return _window(node, "kernel")
    if "pool" in packet and "adaptive" not in packet:
        return _window(node, "kernel_size")
    if packet == "_to_copy":
        dtype = node.kwargs.get("dtype")
        return DTYPE_NAMES.get(dtype, "") if dtype else ""
    if packet in ("clone", "contiguous"):
        format_ = str(_arg(node, "memory_format") or "").removeprefix("torch.")
        return format_ if format_.startswith("channels") else ""
    if packet == "transpose":
        return f"{_arg(node, 'dim0')},{_arg(node, 'dim1')}"
    for name in ("dims", "dim", "exponent"):
        if packet in _WITH_DIM and (value := _arg(node, name)) is not None:
            return format_operand(value, {}).strip("[]").replace(" ", "")
    if packet in (
        "add",
        "sub",
        "mul",
        "div",
        "pow",
        "maximum",
        "minimum",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
    ):
        numbers = [v for v in node.operands[:2] if isinstance(v, (int, float)) and not isinstance(v, bool)]
        return f"{numbers[0]:.4g}" if numbers else ""
    return ""


_WITH_DIM = {
    "permute", "softmax", "_softmax", "log_softmax", "mean", "sum", "amax", "amin", "cat", "stack", "select",
    "split", "chunk", "unbind", "unsqueeze", "squeeze", "cumsum", "argmax", "pow", "index_select",
    "split_with_sizes", "slice",
}  # fmt: skip


def _arg(node: Node, name: str) -> Any:
    try:
        return node.arg(name)
    except KeyError:
        return None


def _window(node: Node, source: str) -> str:
    """``3×3 /2 ×32``: kernel, stride where not one, groups where not one."""
    if source == "kernel":
        weight = node.operand_values[1].type if len(node.operand_values) > 1 else None
        sizes = list(weight.shape[2:]) if isinstance(weight, TensorType) else []
    else:
        sizes = _as_list(_arg(node, source))
    text = "×".join(str(s) for s in (sizes * 2 if source != "kernel" and len(sizes) == 1 else sizes))
    stride = _as_list(_arg(node, "stride"))
    if stride and any(s != 1 for s in stride):
        text += f" /{stride[0]}" if len(set(map(str, stride))) == 1 else f" /{','.join(map(str, stride))}"
    groups = _arg(node, "groups")
    return f"{text} groups {groups}" if isinstance(groups, int) and groups > 1 else text


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def region_lines(node: Node, limit: int = 9) -> list[tuple[str, str, tuple[str, ...]]]:
    """(title, kind, modules) of each op in a node's regions; runs of equal ops as one, the rest counted."""
    rows: list[tuple[str, str, tuple[str, ...], int]] = []
    for i, region in enumerate(node.regions):
        if len(node.regions) > 1:
            rows.append((f"{op_title(node)}, branch {i}", "", (), 1))
        for inner in region.nodes:
            nested = [t for t, *_ in region_lines(inner, 3)]
            title, colour, modules = " ".join(nested) or op_title(inner), kind(inner), inner.origin.modules
            if rows and rows[-1][:2] == (title, colour):
                rows[-1] = (title, colour, (), rows[-1][3] + 1)
            else:
                rows.append((title, colour, modules, 1))
    lines = [(f"{title} × {n}" if n > 1 else title, colour, modules) for title, colour, modules, n in rows]
    if len(lines) <= limit:
        return lines
    return [*lines[: limit - 1], (f"… and {len(lines) - limit + 1} more", "move", ())]


def tooltip(node: Node, named: Mapping[Value, str], also: tuple[str, ...] = ()) -> str:
    """Everything about a node, one fact a line: types, operands, module, source line, kernel, cost."""
    graph = node.graph
    assert graph is not None
    lines = [f"{', '.join(named[v] for v in node.results) or '(no result)'} = {op_name(node.op)}"]
    for value in node.results:
        size = f"   {human_size(value_bytes(value, graph))}" if isinstance(value.type, TensorType) else ""
        lines.append(f"{named[value]}: {value.type}{size}")
    lines += [f"module {', '.join(node.origin.modules)}"] if node.origin.modules else []
    lines += [f"× {len(also)}: {', '.join(also)}"] if also else []
    lines += _source(node, graph)
    operands = [format_operand(v, dict(named)) for v in node.operands]
    operands += [f"{k}={format_operand(v, dict(named))}" for k, v in node.kwargs.items()]
    lines.append(f"operands {shorten(', '.join(operands), 200)}")
    for value in dict.fromkeys(node.operand_values):
        if value.is_constant:
            lines.append(f"  {named[value]}: {value.type}")
    for region in node.regions:
        lines += [f"  · {op_title(n)}" for n in list(region.nodes)[:24]]
    if node.impl is not None:
        options = ", ".join(f"{k}={format_operand(v, {})}" for k, v in node.impl.options.items())
        lines.append(f"via {node.impl.kernel}({options})")
    return "\n".join([*lines, _cost_line(node, graph)])


def _source(node: Node, graph: Graph) -> list[str]:
    """The user's lines: ``models/resnet.py:61   out = self.conv3(out)``."""
    code = {
        (c.file, c.line): c.code for c in (graph.captured.get(i) for i in node.origin.ids) if c is not None
    }
    return [
        f"{file}:{line}   {code.get((file, line), '')}".rstrip() for file, line in node.origin.locations[:6]
    ]


def _cost_line(node: Node, graph: Graph) -> str:
    spent = cost(node)
    work, read, written = (size_hint(s, graph) for s in (spent.flops, spent.bytes_read, spent.bytes_written))
    if not (work or read or written):
        return "moves nothing: a view"
    return f"{work / 1e6:,.1f} MFLOP, reads {human_size(read)}, writes {human_size(written)}"
