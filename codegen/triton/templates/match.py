"""Which template a node of the graph is printed from."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from capture.errors import UnsupportedOpError
from capture.ir import Node, Range
from codegen.triton.file import KernelFile
from codegen.triton.templates.attention import attention_file
from codegen.triton.templates.conv import CONVOLUTION, conv_file
from codegen.triton.templates.products import PRODUCTS, product_file


def template_for(node: Node, dims: Mapping[str, Range] | None = None) -> KernelFile | None:
    """The kernel file of a node, or of a fusion around one, that a template is there for; else None.

    Its `launch` takes the node's operands that are tensors, each once, in their order.

    Args:
        dims: ranges of the graph's symbolic sizes.
    """
    nodes = list(node.region.nodes) if node.region is not None else [node]
    try:
        if len(nodes) == 1 and node.op is torch.ops.aten.scaled_dot_product_attention.default:
            return attention_file(node, dims or {})
        if nodes[0].op is CONVOLUTION:
            return conv_file(node, dims or {})
        if any(n.op in PRODUCTS for n in nodes):
            return product_file(node, dims or {})
    except UnsupportedOpError:
        return None  # what runs beside the product has no Triton form: the fusion is not one kernel
    return None


__all__ = ["template_for"]
