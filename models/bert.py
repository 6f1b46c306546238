"""BERT: a bidirectional Transformer encoder for text.

    ids -> embeddings -> norm -> layer x 12 -> hidden states -> (first token -> pooler)

    layer:   x -> attention -> (+) -> norm -> intermediate -> gelu -> output -> (+) -> norm
             `--------------'          `-------------------------------------'

The architecture is that of Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers" (2018).
State-dict keys are those of `BertModel` in transformers.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._common import lookup, seeded


@dataclass(frozen=True)
class Config:
    """Sizes of a BERT; the default is base. `tokens` is the length of the example inputs."""

    vocabulary: int = 30522
    positions: int = 512
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    tokens: int = 128


class Embeddings(nn.Module):
    """Token ids [N, T] to vectors [N, T, width]: the sum of word, position and segment, normalised."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocabulary, config.width, padding_idx=0)
        self.position_embeddings = nn.Embedding(config.positions, config.width)
        self.token_type_embeddings = nn.Embedding(2, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=1e-12)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.word_embeddings(input_ids)
        x = x + self.token_type_embeddings.weight[0]  # every token belongs to the first segment
        x = x + self.position_embeddings.weight[: input_ids.shape[1]]
        return self.LayerNorm(x)


class SelfAttention(nn.Module):
    """Multi-head self-attention over [N, T, width]; `mask` [N, 1, 1, T] is true where a token may be seen."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q = self.query(x)
        k = self.key(x)
        v = self.value(x)
        q = q.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [N, heads, T, width / heads]
        k = k.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        v = v.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x.transpose(1, 2)
        return x.flatten(2)


class AddNorm(nn.Module):
    """A projection, then residual and norm: the end of both halves of a layer."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, out_features)
        self.LayerNorm = nn.LayerNorm(out_features, eps=1e-12)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        x = self.dense(x)
        x = x + residual
        return self.LayerNorm(x)


class Attention(nn.Module):
    """The first half of a layer."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.self = SelfAttention(config)
        self.output = AddNorm(config.width, config.width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        attended = self.self(x, mask)
        return self.output(attended, x)


class Intermediate(nn.Module):
    """The widening half of the position-wise network."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.dense = nn.Linear(config.width, config.hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dense(x)
        return F.gelu(x)


class Layer(nn.Module):
    """Attention, then the position-wise network, each followed by residual and norm."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = Intermediate(config)
        self.output = AddNorm(config.hidden, config.width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self.attention(x, mask)
        hidden = self.intermediate(x)
        return self.output(hidden, x)


class Encoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.depth))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        for layer in self.layer:
            x = layer(x, mask)
        return x


class Pooler(nn.Module):
    """The first token's state, as a summary of the text."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.dense = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, 0]
        x = self.dense(x)
        return torch.tanh(x)


class BERT(nn.Module):
    """Token ids to hidden states [N, T, width] and pooled output [N, width].

    `input_ids` int64 [N, T] with T <= positions; `attention_mask` [N, T] is zero at padding, one at tokens.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.pooler = Pooler(config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mask = None
        if attention_mask is not None:
            mask = attention_mask.bool()[:, None, None, :]  # the same for every head and query
        x = self.embeddings(input_ids)
        x = self.encoder(x, mask)
        return x, self.pooler(x)


BASE = Config()
SMALL = Config(vocabulary=100, positions=16, width=32, depth=2, heads=4, hidden=64, tokens=8)
CONFIGS = {"build": BASE, "masked": BASE, "small": SMALL, "small_masked": SMALL}


@seeded
def build() -> BERT:
    """BERT-base: 109.5 M parameters."""
    return BERT(BASE)


@seeded
def small() -> BERT:
    """Two narrow layers and a hundred words: 22,000 parameters."""
    return BERT(SMALL)


def masked() -> BERT:
    """BERT-base again; its example inputs are a padded batch with its attention mask."""
    return build()


def small_masked() -> BERT:
    """The small model again; its example inputs are a padded batch with its attention mask."""
    return small()


def example_inputs(batch: int = 1, factory: str = "build") -> tuple[Tensor, ...]:
    """Token ids, int64 [batch, tokens]; for a masked factory also the attention mask, of the same type."""
    config = lookup(CONFIGS, factory)
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(1, config.vocabulary, (batch, config.tokens), generator=generator)
    if "masked" not in factory:
        return (input_ids,)
    lengths = torch.randint(config.tokens // 2, config.tokens, (batch, 1), generator=generator)
    attention_mask = (torch.arange(config.tokens) < lengths).long()
    return input_ids * attention_mask, attention_mask
