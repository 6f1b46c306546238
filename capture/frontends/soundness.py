"""Does a graph do what the model does? Asked where a front end cannot know: by running both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch._C import _DisableAutocast
from torch.utils import _pytree as pytree

from capture.frontends.failures import UnsoundError
from capture.frontends.state import Kept, ModelState, StateGuard, is_plain, same_values
from capture.ir import Constant, Graph, Trait, has
from capture.ir.memory import identity, overlap

__all__ = ["agrees", "check_layouts", "equal", "is_real", "lost_write", "run_aside"]


def run_aside(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], times: int = 1
) -> list[Any]:
    """Run the model on copies of the arguments, each time with the same random numbers and buffers.

    What it keeps elsewhere is carried from run to run. In the end all that it did is undone.

    Returns:
        Of each run what the model returned, what it left in the arguments and the buffers, and the paths of
        the buffers that it put another tensor in the place of.
    """
    held = [t for t in ModelState(model).tensors.values() if not isinstance(t, nn.Parameter)]
    kept, buffers = Kept(None, held), Kept(model, model.buffers())
    outputs = []
    try:
        with StateGuard(model), torch.no_grad(), _DisableAutocast(), torch.random.fork_rng():
            for _ in range(times):
                given, named = pytree.tree_map(_copied, (args, dict(kwargs)))
                torch.manual_seed(0)
                result = model(*given, **named)
                left = pytree.tree_map(_copied, (result, given, named, _buffers(model)))
                outputs.append((*left, buffers.replaced))
                buffers.restore()
    finally:
        kept.restore()
    return outputs


def _buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    return {path: buffer for path, buffer in model.named_buffers() if is_plain(buffer)}


def is_real(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether the arguments hold numbers, so that a model can run on them."""
    leaves = pytree.tree_leaves((args, dict(kwargs)))
    return all(type(v) in (torch.Tensor, nn.Parameter) for v in leaves if isinstance(v, torch.Tensor))


def lost_write(graph: Graph, model: nn.Module, seen: Any) -> str | None:
    """The first buffer that a run of the model changed or replaced and that the graph does not write to.

    Args:
        seen: what `run_aside` gave for the run.
    """
    *_, after, replaced = seen
    written = [c.tensor for c in graph.writebacks if isinstance(c, Constant) and c.tensor is not None]
    kept = {identity(tensor) for tensor in written}
    for path, tensor in model.named_buffers():
        if path in replaced:
            lost = identity(tensor) not in kept
        else:  # a write to another buffer may show in it
            changed = path in after and not same_values(after[path], tensor)
            lost = changed and not any(overlap(tensor, other) for other in written)
        if lost:
            return path
    return None


def agrees(
    graph: Graph, model: nn.Module, expected: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> bool:
    """Whether the graph does to these arguments and the model's buffers what `run_aside` saw, up to rounding.

    A graph that draws random numbers is not compared: it may draw them in another order.
    """
    if any(has(node.op, Trait.RANDOM) for node in graph.nodes):
        return True
    given, named = pytree.tree_map(_copied, (args, dict(kwargs)))
    targets = [c.tensor for c in graph.writebacks if isinstance(c, Constant) and c.tensor is not None]
    kept = Kept(None, targets)
    try:
        result = graph.run(*given, **named)
        found = pytree.tree_map(_copied, (result, given, named, _buffers(model)))
    finally:
        kept.restore()
    return equal(expected[:-1], found)


def check_layouts(graph: Graph, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Make sure that the model writes the same to inputs that lie otherwise in memory than the example's.

    ``x.contiguous().add_(1)`` writes to a contiguous x, and to a copy of any other. Asked where an example
    input is not contiguous: that the model writes to a copy leaves no trace in its graph.

    Raises:
        UnsoundError: it writes something else to contiguous inputs.
    """
    given = (args, dict(kwargs))
    if not is_real(args, kwargs) or all(map(_is_contiguous, pytree.tree_leaves(given))):
        return
    straight = pytree.tree_map(_contiguous, given)
    after = _left_in(model, straight)
    if any(not isinstance(target, Constant) for target in graph.writebacks):
        alike = [_left_in(model, given), _left_in(model, pytree.tree_map(_turned, given))]
    else:
        alike = [straight]
    if not all(equal(after, other) for other in alike):
        raise UnsoundError(
            "what the model writes to its inputs depends on how they lie in memory",
            why="A write to x.contiguous(), reshape() or flatten() changes x only where these make no copy.",
            hint="capture on contiguous inputs, or do not write in place",
        )


def _is_contiguous(value: Any) -> bool:
    plain = isinstance(value, torch.Tensor) and value.layout is torch.strided
    return not plain or value.is_contiguous()


def _left_in(model: nn.Module, given: Any) -> Any:
    """What the arguments hold after a call on copies of them."""
    return run_aside(model, *given)[0][1:3]


def _contiguous(value: Any) -> Any:
    return value if _is_contiguous(value) else value.detach().contiguous()


def _turned(value: Any) -> Any:
    """The same values with the axes the other way round in memory, and space between the elements."""
    if _is_contiguous(value):
        return value
    reverse = tuple(reversed(range(value.dim())))
    apart = value.detach().permute(reverse).contiguous()
    return torch.stack((apart, apart), -1)[..., 0].permute(reverse)


def _copied(value: Any) -> Any:
    """A copy that lies in memory as the value does, but for overlaps."""
    if not isinstance(value, torch.Tensor):
        return value
    copy = value.detach().clone()
    if copy.layout is not torch.strided or copy.stride() == value.stride() or 0 in value.stride():
        return copy
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device).copy_(
        copy
    )


def equal(a: Any, b: Any, *, exact: bool = False) -> bool:
    """Whether two results are the same: to the bit, or up to a few roundings of the dtype."""
    left, right = pytree.tree_leaves(a), pytree.tree_leaves(b)
    return len(left) == len(right) and all(_same(x, y, exact) for x, y in zip(left, right, strict=True))


def _same(x: Any, y: Any, exact: bool) -> bool:
    if not isinstance(x, torch.Tensor) or not isinstance(y, torch.Tensor):
        return type(x) is type(y) and bool(x == y)
    if exact:
        return same_values(x, y)
    if (x.dtype, x.shape) != (y.dtype, y.shape):
        return False
    inexact = x.is_floating_point() or x.is_complex()
    rtol = 100 * torch.finfo(x.dtype).eps if inexact else 0.0
    scale = float(x.abs().nan_to_num(0.0, 0.0, 0.0).max()) if inexact and x.numel() else 0.0
    return torch.allclose(x, y, rtol=rtol, atol=rtol * scale, equal_nan=True)
