"""GroupNorm: the reduction kernel on a view of the tensor with its channels cut into groups.

group_norm(x [N, C, H, W], G)   ==>   (x' - mean) * rsqrt(var + eps) * weight' + bias'
                                      on x' [N, G, C/G, H*W], along the last two axes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from capture.ir import Fusion, Graph, Node, Range, TensorType, Value
from capture.ir.dims import Dim, evaluate, free_names, product
from capture.ir.types import CONTIGUOUS
from codegen.triton.file import KernelFile
from codegen.triton.launching import spread, typical
from codegen.triton.piece import Piece
from codegen.triton.reduction import reduction_file
from passes.regions import make_region

aten = torch.ops.aten

_LAUNCH = '''def launch({names}, *, out=None):
    """The kernel on views whose channels are cut into {groups} groups."""
    shape = ({view})
    given = ({given}{comma})
    return launch_rows(*given, out=None if out is None else out.view(shape)).view(x.shape)'''


def group_norm_file(node: Node, dims: Mapping[str, Range]) -> KernelFile:
    """The kernel file of ``aten.group_norm``.

    Raises:
        UnsupportedOpError: another memory format than contiguous, a number of channels that varies, groups of
            one element, or a dtype that kernels do not hold.
    """
    piece = Piece.of(node)
    type_ = node.operands[0].tensor_type
    groups = node.arg("num_groups")
    channels = type_.shape[1]
    if type_.memory_format != CONTIGUOUS or not isinstance(channels, int):
        raise piece.unsupported("its channels vary, or do not lie one after the other")
    if piece.names[node.operands[0]] != "x":
        raise piece.unsupported("it normalises a constant")
    inner: tuple[Dim, ...] = (channels // groups, product(type_.shape[2:]))
    kept = tuple(size for size in inner if size != 1)
    if not kept:
        raise piece.unsupported("its groups have one element")
    wide = TensorType(type_.dtype, (type_.shape[0], groups, *kept), device=type_.device)
    rows = reduction_file(_written_out(node, wide, inner), dims)
    affine = [v for v in (node.arg("weight"), node.arg("bias")) if isinstance(v, Value)]
    names = [piece.names[v] for v in (node.operands[0], *affine)]
    sizes = [f"x.shape[1] // {groups}", "x.shape[2:].numel()"]
    view = ["x.shape[0]", str(groups), *(t for t, size in zip(sizes, inner, strict=True) if size != 1)]
    narrow = ", ".join([str(groups), *("-1" if i == 0 else "1" for i in range(2) if inner[i] != 1)])
    given = ["x.contiguous().view(shape)", *(f"{name}.reshape({narrow})" for name in names[1:])]
    launch = _LAUNCH.format(
        names=", ".join(names),
        groups=groups,
        view=", ".join(view),
        given=", ".join(given),
        comma="," * (len(given) == 1),
    )
    return replace(
        rows,
        kind="group_norm",
        title=f"group_norm of {groups} groups on {type_}.",
        launch=f"{rows.launch.replace('def launch(', 'def launch_rows(')}\n\n\n{launch}",
        reference=piece.reference(),
        examples=_examples([v.tensor_type for v in affine], type_, groups, inner),
        captured=_captured([v.tensor_type for v in affine], type_, dims),
        work=f'def work({", ".join(names)}):\n    """Bytes read and written at least, operations."""\n'
        f"    return nbytes(x, {', '.join(names)}), 8 * x.numel()",
        stands_for=(piece.stands_for(),),
    )


def _written_out(node: Node, wide: TensorType, inner: tuple[Dim, ...]) -> Node:
    """The same of the tensor with its channels cut into groups, as a region of plain operators."""
    graph = Graph()
    x = graph.add_input("x", wide)
    axes = list(range(2, wide.rank))
    mean = graph.add_node(aten.mean.dim, [x, axes, True]).result
    variance = graph.add_node(aten.var.correction, [x, axes], {"correction": 0, "keepdim": True}).result
    moved = graph.add_node(aten.add.Tensor, [variance, float(node.arg("eps"))]).result
    scale = graph.add_node(aten.rsqrt.default, [moved]).result
    apart = graph.add_node(aten.sub.Tensor, [x, mean]).result
    made = graph.add_node(aten.mul.Tensor, [apart, scale]).result
    shape = (wide.shape[1], *(size if i == 0 else 1 for i, size in enumerate(inner) if size != 1))
    for name, op in (("weight", aten.mul.Tensor), ("bias", aten.add.Tensor)):
        given: Any = node.arg(name)
        if given is not None:
            type_ = TensorType(given.tensor_type.dtype, shape, device=wide.device)
            made = graph.add_node(op, [made, graph.add_input(name, type_)]).result
    graph.set_results([made])
    return make_region(graph, Fusion("reduction"), list(graph.nodes))


def _examples(affine: list[TensorType], type_: TensorType, groups: int, inner: tuple[Dim, ...]) -> str:
    channels = f"{groups} * c" if inner[0] != 1 else str(groups)
    spatial = ["s", *("2" for _ in range(type_.rank - 3))] if type_.rank > 2 else []
    made = [f"random(({', '.join(['n', channels, *spatial])}), {type_.dtype}, device)"]
    made += [f"random(({channels},), {t.dtype}, device)" for t in affine]
    return "\n".join([
        'def examples(device="cpu"):',
        '    """Odd sizes, memory with gaps, special values."""',
        "    found = []",
        "    for n, c, s in ((2, 2, 2), (3, 5, 7), (1, 3, 129), (0, 2, 3), (2, 7, 128)):",
        *spread("inputs = (", [*made, ""] if len(made) == 1 else made, ")", 8),
        '        found.append((f"{n}x{c}x{s}", inputs))',
        '    found.append(("gaps in memory", tuple(map(spaced, inputs))))',
        '    found.append(("special values", (special(inputs[0]), *inputs[1:])))',
        "    return found",
    ])  # fmt: skip


def _captured(affine: list[TensorType], type_: TensorType, dims: Mapping[str, Range]) -> str:
    env = {name: typical(dims.get(name, Range())) for name in free_names(type_.shape)}
    made = []
    for each in (type_, *affine):
        sizes = ", ".join(str(evaluate(size, env)) for size in each.shape)
        made.append(f"random(({sizes}{',' if each.rank == 1 else ''}), {each.dtype}, device)")
    return "\n".join([
        'def captured(device="cpu"):',
        '    """Random inputs of the sizes that were captured."""',
        *spread("return (", [*made, ""] if len(made) == 1 else made, ")", 4),
    ])  # fmt: skip


__all__ = ["group_norm_file"]
