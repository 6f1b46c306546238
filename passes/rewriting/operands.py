"""Random operands to replay a rewrite on: usual numbers, and those at which formulas part."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from capture.ir import Node, TensorType, Trait, Value, has
from passes.queries import fixed_tensor
from passes.rewriting.match import Match
from passes.rewriting.rule import EXTREMES

__all__ = ["EXTREMES", "draw", "has_extremes", "is_safe_to_spread"]

_WIDE = 100  # integers between -100 and 100; of large numbers the standard deviation
_LARGEST = 300.0  # exp of it, and exp of that squared, are finite in fp64
_SPECIAL = {"infinite": (torch.inf, -torch.inf, 0.0, -0.0), "nan": (torch.nan,)}
_ONE_IN = 4  # numbers of a trial are large
_FEW = 16  # one in so many is special, and each special number is there


def has_extremes(match: Match) -> bool:
    """Whether a trial of extremes says something: a floating operand varies, and what follows is defined.

    To cast NaN, or what is out of range, to an integer is not: each machine has its own answer.
    """
    varies = any(v.tensor_type.dtype.is_floating_point and not _is_fixed(match, v) for v in match.leaves)
    return varies and not any(map(_makes_integers, match.nodes))


def _is_fixed(match: Match, value: Value) -> bool:
    return fixed_tensor(match.graph, value) is not None


def _makes_integers(node: Node) -> bool:
    """Whether a node casts floating numbers to integers."""
    if not has(node.op, Trait.POINTWISE) or not any(_is_floating(v) for v in node.operand_values):
        return False
    made = [v.type.dtype for v in node.results if isinstance(v.type, TensorType)]
    return any(not (d.is_floating_point or d.is_complex or d is torch.bool) for d in made)


def _is_floating(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.type.dtype.is_floating_point


def is_safe_to_spread(match: Match) -> bool:
    """Whether integers may be any: an index out of range is an error on a CPU, on a GPU the process ends."""
    integers = [v for v in match.leaves if not _is_floating(v) and v.tensor_type.dtype is not torch.bool]
    pointwise = all(has(node.op, Trait.POINTWISE) for node in match.nodes)
    return bool(integers) and (pointwise or all(v.tensor_type.device.type == "cpu" for v in integers))


def draw(
    type_: TensorType,
    env: Mapping[str, int],
    kind: str,
    generator: torch.Generator,
    *,
    between: tuple[int, int] | None,
    spread: bool,
) -> torch.Tensor:
    """Random numbers of a type, its varying sizes as in `env`.

    Normal numbers, for a kind of EXTREMES some of them replaced; booleans, a true in each row; integers in
    `between`, or where that is not known in [-100, 100] if `spread`, else in [0, 1].
    """
    shape, dtype = type_.concrete(env), type_.dtype
    if dtype is torch.bool:
        made = torch.rand(shape, generator=generator) < 0.5
        made = made.index_fill(-1, torch.tensor([0]), True) if made.numel() and made.dim() else made
        return made.to(type_.device)
    if dtype.is_complex:
        return torch.randn(shape, generator=generator).to(dtype).to(type_.device)
    if dtype.is_floating_point:
        made = _with_extremes(torch.randn(shape, generator=generator), kind, generator)
        return made.to(dtype).to(type_.device)
    limits = torch.iinfo(dtype)
    wide = (max(limits.min, -_WIDE), min(limits.max, _WIDE)) if spread else (0, 1)
    low, high = between or wide
    return torch.randint(low, high + 1, shape, generator=generator).to(dtype).to(type_.device)


def _with_extremes(numbers: torch.Tensor, kind: str, generator: torch.Generator) -> torch.Tensor:
    """The numbers, some of them large, or a few special: of rows and heads most keep to usual numbers."""
    if kind not in EXTREMES or not numbers.numel():
        return numbers
    if kind == "large":
        chosen = torch.randint(_ONE_IN, numbers.shape, generator=generator) == 0
        chosen.view(-1)[0] = True
        return torch.where(chosen, (_WIDE * numbers).clamp(-_LARGEST, _LARGEST), numbers)
    special = torch.tensor(_SPECIAL[kind])
    places = torch.randperm(numbers.numel(), generator=generator)
    places = places[: max(len(special), numbers.numel() // _FEW)]
    numbers.view(-1)[places] = special.repeat(len(places))[: len(places)]
    return numbers
