"""How `impl` recipes print: the packing line in `load` and the call in `forward`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from capture.ir import Node, Value
from codegen.python import int8

if TYPE_CHECKING:
    from codegen.python.module import Writer

PRELUDE: dict[str, str] = {
    "conv": "conv = torch.ops.mkldnn._convolution_pointwise.default  # and a pointwise epilogue",
    "conv_add": "conv_add = torch.ops.mkldnn._convolution_pointwise.binary  # ... that adds another tensor",
    "conv_add_": "conv_add_ = torch.ops.mkldnn._convolution_pointwise_.binary  # ... in place",
    "linear": "linear = torch.ops.mkldnn._linear_pointwise.default  # x @ W.T + b and a pointwise epilogue",
    "linear_binary": "linear_binary = torch.ops.mkldnn._linear_pointwise.binary  # ... with another tensor",
    "pack_conv": "pack_conv = torch.ops.mkldnn._reorder_convolution_weight",
    "pack_linear": "pack_linear = torch.ops.mkldnn._reorder_linear_weight",
    **int8.PRELUDE,
}


@dataclass(frozen=True)
class Anchor:
    """The operator that a recipe is about, with its operands as the outer graph has them."""

    node: Node
    outer: dict[Value, Any]

    def arg(self, name: str) -> Any:
        value = self.node.arg(name)
        return self.outer.get(value, value) if isinstance(value, Value) else value


def anchor_of(node: Node) -> Anchor:
    if node.region is None:
        return Anchor(node, {})
    return Anchor(next(iter(node.region.nodes)), dict(zip(node.region.inputs, node.operands, strict=True)))


def conv(out: Writer, node: Node) -> str:
    """A convolution on a packed channels-last weight."""
    assert node.impl is not None
    anchor, options = anchor_of(node), node.impl.options
    x, weight = anchor.arg("input"), anchor.arg("weight")
    geometry = [_pair(anchor.arg(k)) for k in ("padding", "stride", "dilation")]
    tail = ", ".join(out.text(v) for v in (*geometry, anchor.arg("groups")))
    shape = x.tensor_type.shape
    static = f", {out.text(shape)}" if x.tensor_type.is_static else ""
    packed = out.packed(weight, "pack_conv", tail + static, ".conv")
    bias = out.text(anchor.arg("bias"))
    unary = _unary(out, options)
    if "other" not in options:
        return f"{out.uses('conv')}({out.text(x)}, {packed}, {bias}, {tail}, {unary})"
    other = node.operands[options["other"]]
    after = unary if options["unary"] != "none" else "None, [], None"
    binary = f"{out.text(options['binary'])}, 1.0, {after}"
    if out.overwrites(node, options.get("inplace")):
        return (
            f"{out.uses('conv_add_')}({out.text(other)}, {out.text(x)}, {packed}, {bias}, {tail}, {binary})"
        )
    return f"{out.uses('conv_add')}({out.text(x)}, {out.text(other)}, {packed}, {bias}, {tail}, {binary})"


def linear(out: Writer, node: Node) -> str:
    """A linear layer on a packed weight."""
    assert node.impl is not None
    anchor, options = anchor_of(node), node.impl.options
    x, weight, bias = anchor.arg("input"), anchor.arg("weight"), out.text(anchor.arg("bias"))
    rows = x.tensor_type.with_(shape=x.tensor_type.shape[:-1]).numel
    packed = out.packed(weight, "pack_linear", str(rows) if isinstance(rows, int) and rows else "", ".linear")
    if "other" in options:
        other = out.text(node.operands[options["other"]])
        binary = out.text(options["binary"])
        return f"{out.uses('linear_binary')}({out.text(x)}, {other}, {packed}, {bias}, {binary})"
    return f"{out.uses('linear')}({out.text(x)}, {packed}, {bias}, {_unary(out, options)})"


def _unary(out: Writer, options: Mapping[str, Any]) -> str:
    """oneDNN's name of the pointwise function, its scalars, its algorithm: all as literals."""
    return ", ".join(
        out.text(v) for v in (options["unary"], options.get("scalars", []), options.get("algorithm", ""))
    )


KERNELS: dict[str, Callable[[Writer, Node], str]] = {
    "onednn.conv": conv,
    "onednn.linear": linear,
    **int8.KERNELS,
}


def _pair(value: Any) -> list[int]:
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    return items * 2 if len(items) == 1 else items
