"""A small GPT that reads bytes, trained when it is built, so that its perplexity is real.

    bytes -> the architecture of models/gpt2.py (3 blocks, 128 wide) -> logits of each next byte

The text is what `help()` prints on the topics of the Python that runs this; its last tenth is held out. It
trains for some 40 seconds of one core from a fixed seed: on one machine, with one version of Python, the
weights are the same at every call.
"""

import math
from collections.abc import Callable, Iterator
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ._common import lookup
from ._training import train, trained
from .gpt2 import GPT2, Config

CONFIG = Config(vocabulary=256, positions=64, width=128, depth=3, heads=4, tokens=64)
BATCH = 16
STEPS = 600
RATE = 4e-3
WINDOWS = 64  # of the held-out text, that it is judged by


def build() -> GPT2:
    """A byte-level GPT: 636,000 parameters."""
    return trained(lambda: GPT2(CONFIG), _weights())


def example_inputs(batch: int = 1, factory: str = "build") -> tuple[Tensor]:
    """Held-out text, int64 [batch, 64]; it begins again where there is no more."""
    lookup({"build": CONFIG}, factory)
    windows = held_out()[:, :-1]
    return (windows[torch.arange(batch) % len(windows)],)


def calibration_data() -> list[tuple[Tensor]]:
    """Text that it was trained on, in batches of 16: what quantisation may look at."""
    generator = torch.Generator().manual_seed(1)
    return [(batch[:, :-1],) for batch in _windows(4, generator)]


def evaluate(fn: Callable[[Tensor], Tensor]) -> float:
    """One over the perplexity of the held-out text: the mean probability, geometrically, of the right byte.

    `fn` is given ids [64, 64] at once and returns logits [64, 64, 256].
    """
    return 1 / perplexity(fn)


def perplexity(fn: Callable[[Tensor], Tensor]) -> float:
    """The perplexity of the held-out text, a byte at a time; 256 for a model that knows nothing."""
    windows = held_out()
    with torch.no_grad():
        loss = F.cross_entropy(fn(windows[:, :-1]).flatten(0, 1).float(), windows[:, 1:].flatten())
    return math.exp(float(loss))


def held_out() -> Tensor:
    """Windows of the text that it was not trained on, int64 [64, 65], evenly apart."""
    text = _text()[1]
    starts = torch.linspace(0, len(text) - CONFIG.tokens - 1, WINDOWS).long()
    return _cut(text, starts)


@cache
def _text() -> tuple[Tensor, Tensor]:
    """The bytes to train on, and those held out."""
    from pydoc_data.topics import topics

    data = "\n".join(topics[name] for name in sorted(topics)).encode()
    text = torch.frombuffer(bytearray(data), dtype=torch.uint8).long()
    end = len(text) * 9 // 10
    return text[:end], text[end:]


def _windows(count: int, generator: torch.Generator | None = None) -> Iterator[Tensor]:
    """Batches of windows, int64 [16, 65], from anywhere in the training text."""
    text, _ = _text()
    for _ in range(count):
        yield _cut(text, torch.randint(len(text) - CONFIG.tokens, (BATCH,), generator=generator))


def _cut(text: Tensor, starts: Tensor) -> Tensor:
    return text[starts[:, None] + torch.arange(CONFIG.tokens + 1)]


@cache
def _weights() -> dict[str, Tensor]:
    """What training gives; the random state is left as it was."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(0)
        model = GPT2(CONFIG)
        train(model, ((batch,) for batch in _windows(STEPS)), _loss, STEPS, RATE)
    return {name: t.detach().clone() for name, t in model.state_dict().items()}


def _loss(model: torch.nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    (windows,) = batch
    return F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
