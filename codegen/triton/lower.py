"""Choose a Triton kernel for each region and reduction: write an `impl` recipe, leave the meaning as it is.

    %3 = fusion.reduction(%x, %mask) {...}    ==>    %3 = ... via triton.reduction(file="softmax_2f81ab34")
    %4 = aten.layer_norm(%3, [768], @w, @b)   ==>    %4 = ... via triton.reduction(file="layer_norm_5c00d1e2")
    %5 = fusion.linear(%4, @w2, @b2) {...}    ==>    %5 = ... via triton.linear(file="linear_77a0b3c4")

A region around a product for which there is no template is taken apart: the product stays with PyTorch's
library, and what follows it becomes a pointwise region of its own. So is one around a GroupNorm or a
cross-entropy, which have kernels of their own.

Does not fire on lone pointwise operators and lone products, for which PyTorch has kernels that are as fast,
nor on what has no Triton form; the ledger tells what that was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from capture.errors import UnsupportedOpError
from capture.ir import Fusion, Graph, Impl, Node, Range, op_name
from codegen.triton.file import KernelFile
from codegen.triton.group_norm import group_norm_file
from codegen.triton.pointwise import pointwise_file
from codegen.triton.reduction import reduction_file
from codegen.triton.steps import is_reduction
from passes.base import Pass, PassResult, register_pass
from passes.fusion import ANCHORS
from passes.ledger import FUSED, KEPT, Fate, fates_of
from passes.pipelines import PIPELINES
from passes.regions import inline_region, make_region

aten = torch.ops.aten

_FOR_ONEDNN = ("layout", "fuse-quantized", "lower-int8", "memory")  # and the plan of an arena on the CPU
PREFIX = "triton."  # of the names of kernels in recipes


@register_pass
@dataclass(frozen=True)
class LowerTriton(Pass):
    name = "lower-triton"

    def run(self, graph: Graph) -> PassResult:
        stats: Counter[str] = Counter()
        fates: dict[int, Fate] = {}
        for node in list(graph.nodes):
            if node.impl is not None or not (isinstance(node.op, Fusion) or _reduces(node)):
                continue
            try:
                self._lower(node, graph.dims, stats)
            except UnsupportedOpError as error:
                fates |= fates_of(node, *_left(node, error))
                for part in _parts(graph, node):
                    self._lower(part, graph.dims, stats)
        return PassResult(bool(stats), dict(stats), fates)

    def _lower(self, node: Node, dims: Mapping[str, Range], stats: Counter[str]) -> None:
        kernel = f"{PREFIX}{node.op.kind if isinstance(node.op, Fusion) else 'reduction'}"
        node.set_impl(Impl(kernel, {"file": kernel_file(node, dims).name}))
        stats[kernel] += 1


def _reduces(node: Node) -> bool:
    return is_reduction(node) or node.is_op(aten.group_norm.default)


def _left(node: Node, error: UnsupportedOpError) -> tuple[str, str]:
    """The fate of a node's ops that have no kernel, and why."""
    why = f"{error.what}, {error.why}" if error.why else error.what
    if isinstance(node.op, Fusion):
        return FUSED, f"into {node.op}, which PyTorch runs op by op: {why}"
    return KEPT, f"stays with PyTorch: {why}"


def kernel_file(node: Node, dims: Mapping[str, Range]) -> KernelFile:
    """The file of the kernel that runs a node: printed from its region, or from a template.

    Its `launch` takes the node's tensors, each once, in the order of the operands.

    Raises:
        UnsupportedOpError: there is no kernel for it; names the operator.
    """
    from codegen.triton.templates import template_for

    if len(set(node.operand_values)) != len(node.operand_values) and node.region is not None:
        raise UnsupportedOpError(f"{op_name(node.op)} has no kernel here", why="it reads a tensor twice")
    if isinstance(node.op, Fusion) and node.op.kind == "pointwise":
        return pointwise_file(node, dims)
    if node.is_op(aten.group_norm.default):
        return group_norm_file(node, dims)
    if is_reduction(node) or (isinstance(node.op, Fusion) and node.op.kind == "reduction"):
        return reduction_file(node, dims)
    made = template_for(node, dims)
    if made is None:
        raise UnsupportedOpError(f"{op_name(node.op)} has no kernel here", why="no template takes it")
    return made


def _parts(graph: Graph, node: Node) -> list[Node]:
    """What of a region that has no kernel has one: then the region is taken apart."""
    tail = _tail(graph, node)
    if tail is not None:
        return [tail]
    inner = list(node.region.nodes) if node.region is not None and isinstance(node.op, Fusion) else []
    found = [i for i, n in enumerate(inner) if _reduces(n) and _has_kernel(n, graph.dims)]
    if not found:
        return []
    inlined = inline_region(graph, node)
    return [inlined[i] for i in found]


def _has_kernel(node: Node, dims: Mapping[str, Range]) -> bool:
    try:
        kernel_file(node, dims)
    except UnsupportedOpError:
        return False
    return True


def _tail(graph: Graph, node: Node) -> Node | None:
    """What follows the product of a region that has no kernel, as a region of its own; None where none.

    Nothing changes unless that region has a kernel.
    """
    region = node.region
    inner = list(region.nodes) if region is not None and isinstance(node.op, Fusion) else []
    at = next((i for i, n in enumerate(inner) if n.op in ANCHORS), len(inner))
    if len(inner) - at < 3:
        return None
    copy = graph.clone()
    twin = next(n for n, original in zip(copy.nodes, graph.nodes, strict=True) if original is node)
    if not _has_kernel(
        make_region(copy, Fusion("pointwise"), inline_region(copy, twin)[at + 1 :]), copy.dims
    ):
        return None
    return make_region(graph, Fusion("pointwise"), inline_region(graph, node)[at + 1 :])


def pipeline(level: int) -> list[str]:
    """The passes of a level where Triton kernels run the regions.

    Regions are cut for a GPU. What is for oneDNN is left out (channels-last convolutions, its integer
    kernels), and the memory plan: kernels take their memory from PyTorch's allocator.
    """
    instead = {"fuse": "fuse{target=gpu}", "lower": LowerTriton.name}
    names = [instead.get(name, name) for name in PIPELINES[level] if name not in _FOR_ONEDNN]
    return names if LowerTriton.name in names else [*names, LowerTriton.name]


__all__ = ["PREFIX", "LowerTriton", "kernel_file", "pipeline"]
