"""What a pattern needs, found without tracing it: the functions that it calls in one run on meta tensors.

A trace takes milliseconds, this a fraction of one. So rules for operators that a graph has not cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["needed_ops"]

# Functions that always end in the operator of their name, which clean-up neither makes nor takes away.
_TELLING = frozenset(
    """erf exp log sin cos tanh sigmoid sqrt rsqrt mean var std softmax log_softmax logsumexp cumsum gelu silu
    mish elu selu celu softplus relu relu6 hardtanh hardswish hardsigmoid leaky_relu layer_norm group_norm
    rms_norm conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d embedding einsum bmm
    scaled_dot_product_attention masked_fill maximum minimum max_pool2d avg_pool2d""".split()
)


class _Calls(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(getattr(function, "__name__", ""))
        return function(*args, **(kwargs or {}))


def needed_ops(pattern: Callable[..., Any], example_args: Sequence[Any]) -> frozenset[str]:
    """Names of operators (``aten.erf``) that each graph has in which the pattern occurs, if any are known."""
    args = [torch.empty_like(v, device="meta") if isinstance(v, torch.Tensor) else v for v in example_args]
    calls = _Calls()
    try:
        with torch.no_grad(), calls:
            pattern(*args)
    except Exception:  # what does not run on meta tensors may well be traced; if not, the tracer tells why
        return frozenset()
    return frozenset(f"aten.{name}" for name in calls.names & _TELLING)
