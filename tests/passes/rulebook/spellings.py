"""Operators as models spell them out; the name of each says which operator should be found."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Function = Callable[..., Tensor]
C = math.sqrt(2 / math.pi)


def tanh_of_exponentials(x: Tensor) -> Tensor:
    return (x.exp() - (-x).exp()) / (x.exp() + (-x).exp())


def softmax(x: Tensor, shift: Tensor, dim: int) -> Tensor:
    e = torch.exp(x - shift)
    return e / e.sum(dim, keepdim=True)


def normalised(x: Tensor, variance: Function, divided: Function) -> Tensor:
    d = x - x.mean(-1, keepdim=True)
    return divided(d, variance(x, d) + 1e-5)


def by_square(x: Tensor, d: Tensor) -> Tensor:
    return d.pow(2).mean(-1, keepdim=True)


def at_once(x: Tensor, **biased: Any) -> Tensor:
    variance, mean = torch.var_mean(x, -1, keepdim=True, **biased)
    return (x - mean) * torch.rsqrt(variance + 1e-5)


def by_root(d: Tensor, v: Tensor) -> Tensor:
    return d / torch.sqrt(v)


def by_rsqrt(d: Tensor, v: Tensor) -> Tensor:
    return d * torch.rsqrt(v)


ACTIVATIONS: dict[str, list[Function]] = {
    "gelu": [
        lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
        lambda x: x * 0.5 * (1.0 + torch.erf(x * 0.7071067811865475)),
        lambda x: x * (0.5 * (1 + torch.erf(x / 2**0.5))),
        lambda x: 0.5 * (x * (1 + torch.erf(x / 1.4142135623730951))),
        lambda x: x * ((1 + torch.erf(x * math.sqrt(0.5))) / 2),
        lambda x: x / 2 * (1 + torch.erf(x * math.sqrt(0.5))),
    ],
    "gelu-tanh": [
        lambda x: 0.5 * x * (1 + torch.tanh(C * (x + 0.044715 * torch.pow(x, 3)))),
        lambda x: 0.5 * x * (1 + torch.tanh(C * (x + 0.044715 * x * x * x))),
        lambda x: 0.5 * x * (1 + torch.tanh(C * (x + 0.044715 * (x * x * x)))),
        lambda x: x * (0.5 * (1 + torch.tanh(C * x * (1 + 0.044715 * x * x)))),
        lambda x: 0.5 * (x * (1 + torch.tanh(x * C * (1 + 0.044715 * x**2)))),
    ],
    "silu": [
        lambda x: x * torch.sigmoid(x),
        lambda x: x / (1 + torch.exp(-x)),
        lambda x: x * (1 / (1 + torch.exp(-x))),
    ],
    "sigmoid": [lambda x: 1 / (1 + torch.exp(-x))],
    "tanh": [tanh_of_exponentials, lambda x: 2 * torch.sigmoid(2 * x) - 1],
    "relu": [
        lambda x: x.clamp(min=0),
        lambda x: x.clamp_min(0.0),
        lambda x: torch.maximum(x, torch.zeros_like(x)),
        lambda x: torch.maximum(torch.tensor(0.0).to(x.dtype), x),
        lambda x: torch.where(x < 0, 0.0, x),
        lambda x: torch.where(x <= 0, 0.0, x),
        lambda x: x.masked_fill(x < 0, 0.0),
    ],
    "relu6": [
        lambda x: x.clamp(0, 6),
        lambda x: F.hardtanh(x, 0.0, 6.0),
        lambda x: F.relu(x).clamp(max=6),
        lambda x: torch.clamp_max(torch.clamp_min(x, 0), 6),
    ],
    "leaky_relu": [
        lambda x: torch.where(x > 0, x, 0.1 * x),
        lambda x: torch.where(x >= 0, x, x * 0.1),
        lambda x: torch.maximum(x, 0.1 * x),
    ],
    "elu": [
        lambda x: torch.where(x > 0, x, torch.exp(x) - 1),
        lambda x: torch.where(x >= 0, x, 0.7 * (torch.exp(x) - 1)),
        lambda x: torch.where(x >= 0, x, torch.expm1(x)),
        lambda x: torch.where(x > 0, x, 1.5 * torch.expm1(x)),
    ],
    "hardsigmoid": [
        lambda x: F.relu6(x + 3) / 6,
        lambda x: torch.clamp(x + 3, 0, 6) / 6,
        lambda x: F.relu6(x + 3) * (1 / 6),
    ],
    "hardswish": [
        lambda x: x * F.relu6(x + 3) / 6,
        lambda x: x * torch.clamp(x + 3, 0, 6) / 6,
        lambda x: x * (F.relu6(x + 3) / 6),
    ],
    "softplus": [
        lambda x: torch.log(1 + torch.exp(x)),
        lambda x: torch.log1p(torch.exp(x)),
        lambda x: F.relu(x) + torch.log1p(torch.exp(-x.abs())),
        lambda x: x.clamp(min=0) + torch.log1p(torch.exp(-x.abs())),
        lambda x: x.clamp_min(0) + torch.log1p(torch.exp(-x.abs())),
    ],
    "mish": [
        lambda x: x * torch.tanh(F.softplus(x)),
        lambda x: x * torch.tanh(torch.log1p(x.exp())),
    ],
}

SOFTMAXES: dict[str, list[Function]] = {
    "softmax": [
        lambda x: softmax(x, x.max(-1, keepdim=True).values, -1),
        lambda x: softmax(x, x.amax(1, keepdim=True), 1),
        lambda x: x.exp() / x.exp().sum(-1, keepdim=True),
    ],
    "log_softmax": [
        lambda x: torch.log(torch.softmax(x, -1)),
        lambda x: x - torch.logsumexp(x, 1, keepdim=True),
        lambda x: x - x.exp().sum(-1, keepdim=True).log(),
        lambda x: (x - x.amax(-1, True)) - (x - x.amax(-1, True)).exp().sum(-1, True).log(),
    ],
    "logsumexp": [
        lambda x: torch.log(torch.exp(x).sum(-1)),
        lambda x: x.amax(-1, True) + (x - x.amax(-1, True)).exp().sum(-1, True).log(),
    ],
}

NORMS: dict[str, list[Function]] = {
    "layer_norm": [
        lambda x, w, b: normalised(x, lambda x, d: x.var(-1, unbiased=False, keepdim=True), by_root),
        lambda x, w, b: normalised(x, lambda x, d: x.var(-1, correction=0, keepdim=True), by_rsqrt) * w + b,
        lambda x, w, b: b + w * normalised(x, by_square, by_rsqrt),
        lambda x, w, b: w * normalised(x, lambda x, d: (d * d).mean(-1, keepdim=True), by_root),
        lambda x, w, b: normalised(x, lambda x, d: d.square().mean(-1, keepdim=True), by_root) * w + b,
        lambda x, w, b: normalised(
            x, lambda x, d: (x * x).mean(-1, keepdim=True) - x.mean(-1, keepdim=True) ** 2, by_rsqrt
        ),
        lambda x, w, b: normalised(
            x, lambda x, d: x.pow(2).mean(-1, keepdim=True) - x.mean(-1, keepdim=True) ** 2, by_root
        ),
        lambda x, w, b: normalised(x, by_square, lambda d, v: d / v**0.5),
        lambda x, w, b: at_once(x, unbiased=False) * w + b,
        lambda x, w, b: at_once(x, correction=0),
        lambda x, w, b: normalised(x, by_square, lambda d, v: w * d / torch.sqrt(v)) + b,
        lambda x, w, b: normalised(x, by_square, lambda d, v: d * (w * torch.rsqrt(v))) + b,
    ],
    "rms_norm": [
        lambda x, w, b: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * w,
        lambda x, w, b: w * (x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6)),
        lambda x, w, b: x * (x.square().mean(-1, keepdim=True) + 1e-6) ** -0.5,
        lambda x, w, b: (w * x) * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
        lambda x, w, b: x * (w / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)),
    ],
    "linalg_vector_norm": [lambda x, w, b: (x * x).sum(-1).sqrt()],
}
