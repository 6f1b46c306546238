"""GPT-2: a causal Transformer that predicts the next token, with or without a key-value cache.

    ids -> wte + wpe -> block x 12 -> ln_f -> (wte again, as the output matrix) -> logits

    block:   x -> ln_1 -> attention -> (+) -> ln_2 -> mlp -> (+)
             `-----------------------'  `-----------------'

The architecture is that of Radford et al., "Language Models are Unsupervised Multitask Learners" (2019).
State-dict keys are those of the published checkpoint. That one, however, holds the matrices of linear layers
transposed, and causal masks: `from_checkpoint` converts it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._common import lookup, seeded


@dataclass(frozen=True)
class Config:
    """Sizes of a GPT-2; the default is the 124 M one. `tokens` is the length of the example inputs."""

    vocabulary: int = 50257
    positions: int = 1024
    width: int = 768
    depth: int = 12
    heads: int = 12
    tokens: int = 128


@dataclass(frozen=True)
class CacheConfig:
    """Sizes of the key-value cache: how many sequences, and how many tokens of each."""

    batch: int = 1
    length: int = 512


class KVCache(nn.Module):
    """The keys and values of all tokens so far, in two buffers [batch, heads, length, width / heads]."""

    k: Tensor
    v: Tensor

    def __init__(self, config: Config, cache: CacheConfig) -> None:
        super().__init__()
        shape = (cache.batch, config.heads, cache.length, config.width // config.heads)
        self.register_buffer("k", torch.zeros(shape), persistent=False)
        self.register_buffer("v", torch.zeros(shape), persistent=False)

    def forward(self, k: Tensor, v: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Write the newest T keys and values at `position` int64 [T]; return the whole cache."""
        self.k[:, :, position] = k
        self.v[:, :, position] = v
        return self.k, self.v


class Attention(nn.Module):
    """Multi-head self-attention over [N, T, width], every token seeing itself and those before it.

    With a cache, x holds the newest tokens alone, and `mask` [T, length] is true where they may look.
    """

    def __init__(self, config: Config, cache: CacheConfig | None) -> None:
        super().__init__()
        self.heads = config.heads
        self.c_attn = nn.Linear(config.width, 3 * config.width)
        self.c_proj = nn.Linear(config.width, config.width)
        self.cache = None if cache is None else KVCache(config, cache)

    def forward(self, x: Tensor, position: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        qkv = self.c_attn(x)
        qkv = qkv.unflatten(-1, (3, self.heads, -1))  # [N, T, 3, heads, width / heads]
        qkv = qkv.permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.cache is not None:
            k, v = self.cache(k, v, position)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        x = x.transpose(1, 2)
        x = x.flatten(2)
        return self.c_proj(x)


class MLP(nn.Module):
    """The position-wise network of a block."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.width, 4 * config.width)
        self.c_proj = nn.Linear(4 * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_fc(x)
        x = F.gelu(x, approximate="tanh")
        return self.c_proj(x)


class Block(nn.Module):
    """Attention, then MLP, each behind a norm and beside a residual."""

    def __init__(self, config: Config, cache: CacheConfig | None) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.width)
        self.attn = Attention(config, cache)
        self.ln_2 = nn.LayerNorm(config.width)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, position: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.ln_1(x), position, mask)
        x = x + self.mlp(self.ln_2(x))
        return x


class GPT2(nn.Module):
    """Token ids int64 [N, T], T <= positions, to logits of each next token [N, T, vocabulary]."""

    def __init__(self, config: Config, cache: CacheConfig | None = None) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocabulary, config.width)
        self.wpe = nn.Embedding(config.positions, config.width)
        self.h = nn.ModuleList(Block(config, cache) for _ in range(config.depth))
        self.ln_f = nn.LayerNorm(config.width)
        nn.init.normal_(self.wte.weight, std=config.width**-0.5)  # as the output matrix: logits of order one
        nn.init.normal_(self.wpe.weight, std=config.width**-0.5)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.wte(input_ids)
        x = x + self.wpe.weight[: input_ids.shape[1]]
        for block in self.h:
            x = block(x)
        x = self.ln_f(x)
        return F.linear(x, self.wte.weight)


class CachedGPT2(GPT2):
    """Newest tokens int64 [N, T] at `position` int64 [T] to logits [N, T, vocabulary], N the cache's batch.

    One token a call decodes; several at once fill the cache with a prompt. A new sequence simply starts at
    position 0: what an earlier one left behind its newest position stays hidden.
    """

    def __init__(self, config: Config, cache: CacheConfig) -> None:
        super().__init__(config, cache)
        self.length = cache.length
        self.requires_grad_(False)  # or the cache would hold on to the autograd graph of every step

    def forward(self, token: Tensor, position: Tensor) -> Tensor:
        x = self.wte(token)
        x = x + self.wpe(position)
        mask = torch.arange(self.length, device=position.device) <= position[:, None]  # [T, length]
        for block in self.h:
            x = block(x, position, mask)
        x = self.ln_f(x)
        return F.linear(x, self.wte.weight)


def from_checkpoint(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published checkpoint's state dict as this module's: matrices transposed, causal masks dropped."""
    transposed = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    return {
        key: value.t().contiguous() if key.endswith(transposed) else value
        for key, value in state.items()
        if not key.endswith((".attn.bias", ".attn.masked_bias"))
    }


FULL = Config()
SMALL = Config(vocabulary=100, positions=32, width=32, depth=2, heads=4, tokens=8)
CONFIGS = {"build": FULL, "with_cache": FULL, "small": SMALL, "small_with_cache": SMALL}


@seeded
def build() -> GPT2:
    """GPT-2 small: 124.4 M parameters."""
    return GPT2(FULL)


@seeded
def small() -> GPT2:
    """Two narrow blocks and a hundred words: 30,000 parameters."""
    return GPT2(SMALL)


@seeded
def with_cache(batch: int = 1, length: int = 512) -> CachedGPT2:
    """The same weights as `build`, decoding with a cache of `length` tokens for `batch` sequences."""
    return CachedGPT2(FULL, CacheConfig(batch, length))


@seeded
def small_with_cache(batch: int = 1, length: int = 16) -> CachedGPT2:
    """The same weights as `small`, decoding with a cache of `length` tokens for `batch` sequences."""
    return CachedGPT2(SMALL, CacheConfig(batch, length))


def example_inputs(batch: int = 1, factory: str = "build") -> tuple[Tensor, ...]:
    """Token ids, int64 [batch, tokens]; with a cache, one token int64 [batch, 1] and its position int64 [1].

    A batch other than 1 needs a cache made for it: `with_cache(batch)`.
    """
    config = lookup(CONFIGS, factory)
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(config.vocabulary, (batch, config.tokens), generator=generator)
    if "cache" not in factory:
        return (input_ids,)
    return input_ids[:, :1], torch.tensor([5])
