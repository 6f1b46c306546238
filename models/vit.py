"""Vision Transformer: an image cut into patches, read as a sequence.

    image -> patches -> (+ class token, + positions) -> block x 12 -> norm -> class token -> head -> logits

    block:   x -> norm1 -> attention -> (+) -> norm2 -> mlp -> (+)
             `-----------------------'  `-------------------'

The architecture is that of Dosovitskiy et al., "An Image is Worth 16x16 Words" (2020). State-dict keys are
timm's.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._common import lookup, seeded


@dataclass(frozen=True)
class Config:
    """Sizes of a ViT; the default is B/16."""

    image: int = 224
    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    classes: int = 1000


class PatchEmbed(nn.Module):
    """Image [N, 3, H, W] to one vector a patch, [N, H/P * W/P, width]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, config.patch, stride=config.patch)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        x = x.flatten(2)
        return x.transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention over [N, T, width], every patch seeing every other."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)
        qkv = qkv.unflatten(-1, (3, self.heads, -1))  # [N, T, 3, heads, width / heads]
        qkv = qkv.permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        x = x.transpose(1, 2)
        x = x.flatten(2)
        return self.proj(x)


class MLP(nn.Module):
    """The position-wise network of a block."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.hidden)
        self.fc2 = nn.Linear(config.hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        x = F.gelu(x)
        return self.fc2(x)


class Block(nn.Module):
    """Attention, then MLP, each behind a norm and beside a residual."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x


class ViT(nn.Module):
    """Image [N, 3, H, W] to logits [N, classes]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        patches = (config.image // config.patch) ** 2
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + patches, config.width))
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.head = nn.Linear(config.width, config.classes)
        nn.init.normal_(self.cls_token, std=0.5)
        nn.init.normal_(self.pos_embed, std=0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        cls = self.cls_token.expand(x.shape[0], -1, -1)
        x = torch.cat([cls, x], dim=1)
        x = x + self.pos_embed
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        x = x[:, 0]
        return self.head(x)


CONFIGS = {
    "build": Config(),
    "small": Config(image=32, patch=8, width=32, depth=2, heads=4, hidden=64, classes=10),
}


@seeded
def build() -> ViT:
    """ViT-B/16 at 224x224: 86.6 M parameters."""
    return ViT(CONFIGS["build"])


@seeded
def small() -> ViT:
    """Two narrow blocks on 32x32 images: 24,000 parameters."""
    return ViT(CONFIGS["small"])


def example_inputs(batch: int = 1, factory: str = "build") -> tuple[Tensor]:
    """Normalised images, float32 [batch, 3, size, size]: noise, each on a tint of its own."""
    size = lookup(CONFIGS, factory).image
    generator = torch.Generator().manual_seed(0)
    tint = torch.randn(batch, 3, 1, 1, generator=generator)
    noise = torch.randn(batch, 3, size, size, generator=generator)
    return (tint + noise,)
