"""Control flow: cond becomes If. The branches see outer values by themselves."""

from __future__ import annotations

from typing import Any

import torch

from codegen.onnx.builder import Builder
from codegen.onnx.table import lowers
from codegen.onnx.translate import lower_branch


@lowers(torch.ops.higher_order.cond)
def cond(op: Builder, condition: Any, then: Any, otherwise: Any, operands: Any = ()) -> Any:
    regions = op.node.regions
    branches = {
        f"{name}_branch": lower_branch(op, regions[ref.index], operands, f"{name}")
        for name, ref in (("then", then), ("else", otherwise))
    }
    truth = op.cast(condition, torch.bool)
    if condition.type.rank:
        truth = op.Squeeze(truth)
    made = op.If(truth, **branches, outputs=len(op.results))
    return [made] if len(op.results) == 1 else made
