"""Fake inputs for tracing: sizes symbolic where the user says so, and a log of what the trace assumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import nn
from torch._dynamo.source import ConstantSource
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StrictMinMaxConstraint
from torch.utils import _pytree as pytree
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges

from capture.errors import CaptureError
from capture.frontends.dynamic import Axis, parameter_names
from capture.frontends.place import Place
from capture.frontends.sizes import Sizes
from capture.frontends.source import Frame, Sources
from capture.ir import Graph

__all__ = ["FakeInputs", "input_names"]


class _GuardLog(list[Any]):
    """A ShapeEnv's guards; notes the user's line that each was made for."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.frames: list[Frame | None] = []
        self._place = place

    def append(self, guard: Any) -> None:
        self.frames.append(self._place.here()[1])
        super().append(guard)


class FakeInputs:
    """What stands for the flat inputs while a model is traced.

    Args:
        names, leaves, axes: of each flat input its name, its example and its varying axes.
        place: says which line of the user's a guard is for.

    Attributes:
        fakes: a fake tensor, a SymInt, or the literal itself, for each flat input.
        mode: the fake mode they belong to: that of the examples, where these are fake already.
    """

    def __init__(
        self, names: Sequence[str], leaves: Sequence[Any], axes: Sequence[Mapping[int, Axis]], place: Place
    ) -> None:
        self.names = list(names)
        self._symbols: dict[str, tuple[sympy.Symbol, torch.SymInt, Axis]] = {}
        given = detect_fake_mode(list(leaves))
        self._ours = given is None
        self.mode = given or FakeTensorMode(
            shape_env=ShapeEnv(allow_scalar_outputs=False, allow_dynamic_output_shape_ops=True),
            allow_non_fake_inputs=True,
        )
        self._guards = _GuardLog(place)
        if self._ours and self.mode.shape_env is not None:
            self.mode.shape_env.guards = self._guards
        self.fakes = [self._fake(*row) for row in zip(self.names, leaves, axes, strict=True)]

    def _fake(self, name: str, leaf: Any, axes: Mapping[int, Axis]) -> Any:
        if isinstance(leaf, FakeTensor):
            return leaf.detach()
        if isinstance(leaf, torch.Tensor):
            return self._tensor(name, leaf.detach(), axes)
        return self._size(name, -1, leaf, axes[-1]) if -1 in axes else leaf

    def _tensor(self, name: str, leaf: torch.Tensor, axes: Mapping[int, Axis]) -> torch.Tensor:
        if not axes:
            return self.mode.from_tensor(leaf, static_shapes=True)
        shape = [self._size(name, i, n, axes[i]) if i in axes else n for i, n in enumerate(leaf.shape)]
        strides: list[Any] = [1] * leaf.dim()
        expected: Any = 1
        for axis in sorted(range(leaf.dim()), key=lambda i: (leaf.stride(i), -i)):
            strides[axis] = expected
            expected = expected * shape[axis]
        with self.mode:
            return torch.empty_strided(shape, strides, dtype=leaf.dtype, device=leaf.device)

    def _size(self, name: str, position: int, example: int, axis: Axis) -> Any:
        """The axis' size as a SymInt; axes of one named dim share its symbol."""
        key = axis.name or (name if position < 0 else f"{name}_dim{position}")
        if key not in self._symbols:
            root = next((n for n in range(1, example + 1) if axis.size(n) == example), example)
            source = ConstantSource(f"dim_{key}")
            env = self.mode.shape_env
            assert env is not None
            bounds = ValueRanges(max(2, axis.lower), int_oo if axis.upper is None else axis.upper)
            symbol = env.create_symbol(
                root,
                source,
                dynamic_dim=DimDynamic.DYNAMIC,
                constraint_dim=StrictMinMaxConstraint(warn_only=False, vr=bounds),
            )
            self._symbols[key] = (symbol, env.create_symintnode(symbol, hint=root, source=source), axis)
        root_size = self._symbols[key][1]
        return root_size if axis.of_root is None else axis.of_root(root_size)

    def fake(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the model's as one of the same fake mode."""
        if isinstance(tensor, FakeTensor) and tensor.fake_mode is self.mode:
            return tensor.detach()
        with torch.no_grad():
            return self.mode.from_tensor(tensor.detach(), static_shapes=True)

    def sizes(self, graph: Graph) -> Sizes:
        """The graph's names for the symbols of these inputs, with the ranges that the user gave."""
        env = self.mode.shape_env
        ranges = {} if env is None else {**env.var_to_range}
        for symbol, _, axis in self._symbols.values():
            ranges[symbol] = ValueRanges(axis.lower, int_oo if axis.upper is None else axis.upper)
        sizes = Sizes(graph, ranges)
        for name, (symbol, _, _) in self._symbols.items():
            sizes.name(symbol, name)
        rows = list(zip(self.names, self.fakes, strict=True))
        for kind in (torch.Tensor, torch.SymInt):  # a size is better named after the axis that it measures
            for name, fake in rows:
                if isinstance(fake, kind):
                    sizes.name_input(name, fake)
        return sizes

    def check_guards(self, sizes: Sizes) -> None:
        """Make sure that the trace holds for every size that the user asked for.

        Raises:
            CaptureError: it does not; the message names the line that fixed or bounded the size.
        """
        varying = {symbol for symbol, _, axis in self._symbols.values() if axis.strict}
        for guard, frame in zip(self._guards, self._guards.frames, strict=True):
            if not guard.expr.free_symbols & varying or sizes.holds_always(guard.expr):
                continue
            where = Sources().frame(frame)
            shown = guard.expr.xreplace(sizes.names)
            names = ", ".join(sorted(s.name for s in shown.free_symbols))
            raise CaptureError(
                f"the size {names} cannot vary as asked",
                where=where and f"{where.file}:{where.line}   {where.code}",
                why=f"The run depends on {shown}; for other sizes it would be another graph.",
                hint=f"a range of {names} in which that is true, or no dynamic shape for it",
            )


def input_names(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
    """A name for each flat input: the parameter's, then the keys that lead to it, as in ``state_h``."""
    parameters = parameter_names(model, args, kwargs)
    names: list[str] = []
    for (parameter, item), value in zip(parameters, [*args, *kwargs.values()], strict=True):
        prefix = parameter if item is None else item if isinstance(item, str) else f"{parameter}_{item}"
        for path, _ in pytree.tree_flatten_with_path(value)[0]:
            keys = [str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path]
            names.append("_".join([prefix, *keys]))
    seen: dict[str, int] = {}
    for i, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            names[i] = f"{name}_{seen[name]}"
    return names
