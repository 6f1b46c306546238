"""Two classifiers of handwritten digits, trained when they are built, so that their accuracy is real.

    build()   image -> stem -> residual block (32) -> residual block (64, half the size) -> mean -> logits
    vit()     image -> 16 patches -> block x 4 -> logits: the architecture of models/vit.py

The data are scikit-learn's bundled digits (the test part of the UCI set "Optical Recognition of Handwritten
Digits", Alpaydin and Kaynak, 1998): 1,797 images of 8x8 pixels. Every fifth is held out. Training takes 6 and
20 seconds of one core and starts from a fixed seed: on one machine the weights are the same at every call.
"""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import vit as _vit
from ._common import lookup
from ._training import shuffled, train, trained

BATCH = 64
EPOCHS = {"build": 12, "vit": 40}
RATES = {"build": 4e-3, "vit": 2e-3}
CALIBRATION = 256  # training images


class Residual(nn.Module):
    """[N, inner, H, W] to [N, channels, H / stride, W / stride]."""

    def __init__(self, inner: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Conv2d(inner, channels, 1, stride, bias=False) if inner != channels else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class CNN(nn.Module):
    """Images [N, 1, 8, 8] to logits [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.block1 = Residual(32, 32, 1)
        self.block2 = Residual(32, 64, 2)
        self.block3 = Residual(64, 64, 1)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = self.block3(self.block2(self.block1(x)))
        return self.head(x.mean((2, 3)))


class ViT(_vit.ViT):
    """Images [N, 1, 8, 8] to logits [N, 10], by patches of 2x2."""

    def __init__(self) -> None:
        super().__init__(_vit.Config(image=8, patch=2, width=64, depth=4, heads=4, hidden=128, classes=10))
        self.patch_embed.proj = nn.Conv2d(1, 64, 2, stride=2)


FACTORIES: dict[str, Callable[[], nn.Module]] = {"build": CNN, "vit": ViT}


def build() -> nn.Module:
    """A residual CNN: 151,000 parameters."""
    return trained(CNN, _weights("build"))


def vit() -> nn.Module:
    """A Transformer of four blocks: 136,000 parameters."""
    return trained(ViT, _weights("vit"))


def example_inputs(batch: int = 1, factory: str = "build") -> tuple[Tensor]:
    """Held-out images, float32 [batch, 1, 8, 8], from 0 to 1; they begin again where there are no more."""
    lookup(FACTORIES, factory)
    images, _ = held_out()
    return (images[torch.arange(batch) % len(images)],)


def calibration_data() -> list[tuple[Tensor]]:
    """Training images in batches of 64: what quantisation may look at."""
    images, _ = training()
    return [(batch,) for batch in images[:CALIBRATION].split(BATCH)]


def evaluate(fn: Callable[[Tensor], Tensor]) -> float:
    """Top-1 accuracy on the 360 held-out images, 0 to 1, which `fn` is given at once: [360, 1, 8, 8]."""
    images, labels = held_out()
    with torch.no_grad():
        return float((fn(images).argmax(-1) == labels).float().mean())


def training() -> tuple[Tensor, Tensor]:
    """Images, float32 [1437, 1, 8, 8], and their digits, int64 [1437]."""
    images, labels, held = _data()
    return images[~held], labels[~held]


def held_out() -> tuple[Tensor, Tensor]:
    """Images, float32 [360, 1, 8, 8], and their digits, int64 [360]: every fifth, never trained on."""
    images, labels, held = _data()
    return images[held], labels[held]


@cache
def _data() -> tuple[Tensor, Tensor, Tensor]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).float().div(16).unsqueeze(1)
    return images, torch.from_numpy(digits.target).long(), torch.arange(len(images)) % 5 == 0


@cache
def _weights(factory: str) -> dict[str, Tensor]:
    """What training gives; the random state is left as it was."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(0)
        model, data = FACTORIES[factory](), training()
        steps = EPOCHS[factory] * (len(data[0]) // BATCH)
        train(model, shuffled(data, BATCH, EPOCHS[factory]), _loss, steps, RATES[factory])
    return {name: t.detach().clone() for name, t in model.state_dict().items()}


def _loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    images, labels = batch
    return F.cross_entropy(model(images), labels, label_smoothing=0.05)
