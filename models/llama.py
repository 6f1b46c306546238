"""A Llama: a causal Transformer with rotary positions, RMSNorm, SwiGLU and grouped-query attention.

    ids -> embed_tokens -> layer x 12 -> norm -> lm_head -> logits

    layer:   x -> input_layernorm -> self_attn -> (+) -> post_attention_layernorm -> mlp -> (+)
             `---------------------------------'  `--------------------------------------'

The architecture is that of Touvron et al., "LLaMA: Open and Efficient Foundation Language Models" (2023),
with the grouped keys and values of its successor, at the width and depth of GPT-2. State-dict keys are those
of `LlamaForCausalLM` in transformers.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._common import lookup, seeded


@dataclass(frozen=True)
class Config:
    """Sizes of a Llama. `tokens` is the length of the example inputs."""

    vocabulary: int = 32000
    positions: int = 2048
    width: int = 768
    depth: int = 12
    heads: int = 12
    kv_heads: int = 4
    hidden: int = 2048
    theta: float = 10000.0
    tokens: int = 128


class RMSNorm(nn.Module):
    """Scale to a root mean square of one over the last dimension (Zhang and Sennrich, 2019)."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        mean_square = x.pow(2).mean(-1, keepdim=True)
        scale = torch.rsqrt(mean_square + self.eps)
        return x * scale * self.weight


class RotaryEmbedding(nn.Module):
    """The angles of rotary positions, position * theta^(-2i/dim), as tables of their cosines and sines."""

    cos: Tensor
    sin: Tensor

    def __init__(self, dim: int, positions: int, theta: float) -> None:
        super().__init__()
        frequency = theta ** -(torch.arange(0, dim, 2) / dim)
        angle = torch.outer(torch.arange(positions), frequency)
        angle = torch.cat([angle, angle], dim=-1)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids [N, T] to the tables of their positions, two of [T, dim]."""
        tokens = input_ids.shape[1]
        return self.cos[:tokens], self.sin[:tokens]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of features (i, i + dim/2) of [N, heads, T, dim] by its angle (Su et al., 2021)."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return x * cos + turned * sin


class Attention(nn.Module):
    """Causal self-attention over [N, T, width] in which heads / kv_heads queries share a key and a value."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.kv_heads = config.kv_heads
        dim = config.width // config.heads
        self.q_proj = nn.Linear(config.width, config.heads * dim, bias=False)
        self.k_proj = nn.Linear(config.width, config.kv_heads * dim, bias=False)
        self.v_proj = nn.Linear(config.width, config.kv_heads * dim, bias=False)
        self.o_proj = nn.Linear(config.heads * dim, config.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q = self.q_proj(x)
        k = self.k_proj(x)
        v = self.v_proj(x)
        q = q.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [N, heads, T, dim]
        k = k.unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        v = v.unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        q = rotate(q, cos, sin)
        k = rotate(k, cos, sin)
        x = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x.transpose(1, 2)
        x = x.flatten(2)
        return self.o_proj(x)


class MLP(nn.Module):
    """The position-wise network of a layer: SwiGLU (Shazeer, 2020)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.up_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.down_proj = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate_proj(x)
        gate = F.silu(gate)
        up = self.up_proj(x)
        return self.down_proj(gate * up)


class Layer(nn.Module):
    """Attention, then MLP, each behind a norm and beside a residual."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.width)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.width)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        x = x + self.mlp(self.post_attention_layernorm(x))
        return x


class Decoder(nn.Module):
    """Token ids [N, T] to hidden states [N, T, width]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.depth))
        self.norm = RMSNorm(config.width)
        self.rotary_emb = RotaryEmbedding(config.width // config.heads, config.positions, config.theta)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed_tokens(input_ids)
        cos, sin = self.rotary_emb(input_ids)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)


class Llama(nn.Module):
    """Token ids int64 [N, T], T <= positions, to logits of each next token [N, T, vocabulary]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.width, config.vocabulary, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.model(input_ids)
        return self.lm_head(x)


CONFIGS = {
    "build": Config(),
    "small": Config(
        vocabulary=100, positions=32, width=32, depth=2, heads=4, kv_heads=2, hidden=64, tokens=8
    ),
}


@seeded
def build() -> Llama:
    """A Llama of GPT-2's width and depth: 124.7 M parameters."""
    return Llama(CONFIGS["build"])


@seeded
def small() -> Llama:
    """Two narrow layers and a hundred words: 25,000 parameters."""
    return Llama(CONFIGS["small"])


def example_inputs(batch: int = 1, factory: str = "build") -> tuple[Tensor]:
    """Token ids, int64 [batch, tokens]."""
    config = lookup(CONFIGS, factory)
    generator = torch.Generator().manual_seed(0)
    return (torch.randint(config.vocabulary, (batch, config.tokens), generator=generator),)
