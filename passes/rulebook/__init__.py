"""The built-in rules: operators that models spell out, put back as the one operator that they are.

    0.5 * x * (1 + erf(x / sqrt(2)))                       ==>  gelu(x)
    (x - mean) * rsqrt(var + eps) * w + b                  ==>  layer_norm(x, w, b, eps)
    softmax(q @ k.transpose(-1, -2) * s + mask, -1) @ v    ==>  scaled_dot_product_attention(q, k, v, mask, s)

Importing this registers them; nothing is traced before a graph has the operators that a rule needs.
docs/built-in-rules.md lists them; `python -m passes.rulebook` prints that page.
"""

from passes.rulebook import (  # noqa: F401
    activations,
    attention,
    attention_options,
    batch_norm,
    group_norms,
    losses,
    norms,
    scores,
    softmax,
)
from passes.rulebook.common import BUILT_IN

__all__ = ["BUILT_IN"]
