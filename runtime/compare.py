"""Parity: is a compiled model as right as eager? Judged against fp64, both sides.

For an output y of ours, e of eager and r of the fp64 reference (all of one shape):

    scale  = max |r|, leaving out a fill value (an extreme that r holds more than once, as masks do)
    error  = max |y - r| / scale          `error_vs_fp64`; the same of e is `eager_error_vs_fp64`
    limit  = max(2 * eager's error, floor of the dtype)          see runtime/tolerances.py
    passes = error <= limit

With `atol` or `rtol` given, or where fp64 cannot be had (r is e then), an output passes where
|y - r| <= atol + rtol * |r| in every element instead (what is not given is the dtype's). Integers,
booleans and plain Python values must be equal to eager's. A NaN never passes, not even where eager has one;
an infinity does where eager has the same. `max_abs_error` is max |y - e|; `relative_error` is that / scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from capture.ir import Graph
from capture.ir.types import DTYPE_NAMES
from runtime.quantized import allowed, as_meant, quantized_graph
from runtime.reference import Outcome, Reference, observed_call, reference, runnable, undone
from runtime.tolerances import tolerance

__all__ = ["OutputParity", "Parity", "compare", "judge", "judge_results"]

UNTOUCHED = "untouched"  # stands for an input or buffer that one side wrote to and the other did not


@dataclass(frozen=True)
class OutputParity:
    """One output, or one input or buffer that the model writes to. An error without meaning is None."""

    name: str
    ok: bool
    type: str
    reason: str = ""
    exact: bool = False
    max_abs_error: float | None = None
    relative_error: float | None = None
    error_vs_fp64: float | None = None
    eager_error_vs_fp64: float | None = None
    limit: float | None = None


@dataclass(frozen=True, repr=False)
class Parity:
    """The verdict over all outputs; the numbers are the worst output's each.

    Attributes:
        ok: every output passes.
        reference: what it was judged by: "fp64 model", "fp64 graph" or "eager" (fp64 could not be had).
        integers_exact: every integer and boolean output equals eager's; None where there are none.
        reason: why it fails, or why there is no fp64 reference; one line.
    """

    ok: bool
    max_abs_error: float | None
    relative_error: float | None
    error_vs_fp64: float | None
    eager_error_vs_fp64: float | None
    limit: float | None
    integers_exact: bool | None
    reference: str
    reason: str
    outputs: tuple[OutputParity, ...]

    def __bool__(self) -> bool:
        return self.ok

    def __repr__(self) -> str:
        """``<Parity ok: error vs fp64 ours 3.2e-07, eager 5.2e-07, at most 1.0e-06>``, in a line."""
        parts = []
        if self.error_vs_fp64 is not None:
            parts.append(
                f"error vs fp64 ours {self.error_vs_fp64:.1e}, eager {self.eager_error_vs_fp64 or 0.0:.1e}"
            )
        elif self.max_abs_error is not None:
            parts.append(f"differs from eager by {self.max_abs_error:.1e} at most")
        if self.limit is not None:
            parts[-1:] = [", ".join([*parts[-1:], f"at most {self.limit:.1e}"])]
        if self.integers_exact is not None:
            parts.append("integers exact" if self.integers_exact else "integers differ")
        if self.reason:
            parts.append(self.reason)
        return f"<Parity {'ok' if self.ok else 'FAILED'}{': ' if parts else ''}{'; '.join(parts)}>"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "outputs": [asdict(row) for row in self.outputs]}


def compare(
    model: Any,
    f: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    atol: float | None = None,
    rtol: float | None = None,
    graph: Graph | None = None,
) -> Parity:
    """Run the model, in its own dtypes and in fp64, and `f` on copies of the inputs; is `f` right?

    Args:
        model: an nn.Module, an ExportedProgram, a Graph, or any callable.
        f: what `runtime.compile` returned, or any callable that takes the same arguments.
        atol, rtol: judge by these instead of by twice eager's own error.
        graph: the captured graph, for a model that cannot be cast to fp64; by default `f.captured`.

    Returns:
        A `Parity`, true where every output passes.

    Raises:
        ModelError: the model raised on these inputs.
    """
    made = reference(model, args, kwargs, graph=graph or getattr(f, "captured", None))
    return judge(made, f, atol=atol, rtol=rtol)


def judge(
    made: Reference, f: Callable[..., Any], *, atol: float | None = None, rtol: float | None = None
) -> Parity:
    """`compare`, for a reference that was made before."""
    with undone(f), made.kept.resumed():  # what ran since then may have moved the buffers on
        ours = observed_call(runnable(f), made.args, made.kwargs, made.buffers)
    eager, fp64 = made.eager, made.fp64
    source, note = made.source or "eager", f"no fp64 reference ({made.problem})" if made.problem else ""
    if ours.spec != eager.spec or ours.paths != eager.paths:
        reason = f"returns another structure: {_shape_of(ours)}, eager {_shape_of(eager)}"
        return _verdict([OutputParity("out", False, "", reason)], source, note)
    wanted = _judged_writes(ours, eager, shares_buffers=hasattr(f, "captured"))
    quantized = quantized_graph(f)
    if quantized is not None:
        eager = as_meant(made, quantized)
    verdict = judge_results(
        [*ours.leaves, *(ours.written.get(name, UNTOUCHED) for name in wanted)],
        [*eager.leaves, *(eager.written.get(name, UNTOUCHED) for name in wanted)],
        None if fp64 is None else [*fp64.leaves, *(fp64.written.get(name) for name in wanted)],
        names=[*eager.paths, *wanted],
        atol=atol,
        rtol=rtol,
        source=source,
        note=note,
    )
    if quantized is None or atol is not None or rtol is not None:
        return verdict
    return _verdict(
        allowed(verdict.outputs), source, note or "eager stands for the quantised graph, run as it is"
    )


def judge_results(
    ours: Sequence[Any],
    eager: Sequence[Any],
    fp64: Sequence[Any] | None,
    *,
    names: Sequence[str] | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    source: str = "fp64",
    note: str = "",
) -> Parity:
    """The verdict over flat results: ours, eager's, and the reference's (None: there is none)."""
    if len(ours) != len(eager):
        reason = f"returns {len(ours)} values, eager {len(eager)}"
        return _verdict([OutputParity("out", False, "", reason)], source, note)
    names = names or (["out"] if len(ours) == 1 else [f"out[{i}]" for i in range(len(ours))])
    rows = [
        judge_leaf(name, y, e, r, atol=atol, rtol=rtol)
        for name, y, e, r in zip(names, ours, eager, fp64 or [None] * len(ours), strict=True)
    ]
    return _verdict(rows, source, note)


def _judged_writes(ours: Outcome, eager: Outcome, *, shares_buffers: bool) -> list[str]:
    """Names of the inputs and buffers that either side wrote to.

    A callable that has buffers of its own is not asked for the model's.
    """
    shares_buffers |= any(name.startswith("buffer ") for name in ours.written)
    names = sorted({*ours.written, *eager.written})
    return [name for name in names if shares_buffers or not name.startswith("buffer ")]


def _verdict(rows: list[OutputParity], source: str, note: str) -> Parity:
    failed = next((row for row in rows if not row.ok), None)
    exact = [row.ok for row in rows if row.exact]

    def worst(name: str) -> float | None:
        return max((v for row in rows if (v := getattr(row, name)) is not None), default=None)

    return Parity(
        ok=failed is None,
        max_abs_error=worst("max_abs_error"),
        relative_error=worst("relative_error"),
        error_vs_fp64=worst("error_vs_fp64"),
        eager_error_vs_fp64=worst("eager_error_vs_fp64"),
        limit=worst("limit"),
        integers_exact=all(exact) if exact else None,
        reference=source,
        reason=f"{failed.name}: {failed.reason}" if failed else note,
        outputs=tuple(rows),
    )


def judge_leaf(
    name: str, y: Any, e: Any, r: Any, *, atol: float | None = None, rtol: float | None = None
) -> OutputParity:
    """The row for one output: `y` ours, `e` eager's, `r` the reference's."""
    if y is UNTOUCHED or e is UNTOUCHED:
        who = ("ours", "eager") if y is UNTOUCHED else ("eager", "ours")
        return OutputParity(name, False, "", f"{who[1]} writes to it, {who[0]} does not")
    if not isinstance(e, Tensor):
        return _judge_plain(name, y, e)
    kind = f"{DTYPE_NAMES.get(e.dtype, str(e.dtype))}{list(e.shape)}"
    if not isinstance(y, Tensor) or (y.dtype, y.shape) != (e.dtype, e.shape):
        got = f"{DTYPE_NAMES.get(y.dtype)}{list(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        return OutputParity(name, False, kind, f"is {got}, eager's is {kind}")
    if not (e.is_floating_point() or e.is_complex()):
        return _judge_exact(OutputParity(name, True, kind, exact=True), y, e)
    return _judge_floating(
        OutputParity(name, True, kind), y, e, r if isinstance(r, Tensor) else None, atol, rtol
    )


def _judge_plain(name: str, y: Any, e: Any) -> OutputParity:
    """Python numbers, strings and None: equal, floats to the last digits of a double."""
    kind = type(e).__name__
    if e is not None and not isinstance(e, (bool, int, float, complex, str)):
        return OutputParity(
            name, False, kind, f"a {kind} cannot be compared; return tensors, or register it as a pytree"
        )
    if isinstance(e, float) and isinstance(y, float):
        same = math.isclose(y, e, rel_tol=1e-6, abs_tol=1e-12)
    else:
        same = type(y) is type(e) and y == e
    return OutputParity(
        name, same, kind, "" if same else f"is {y!r}, eager's is {e!r}", exact=isinstance(e, int)
    )


def _judge_exact(row: OutputParity, y: Tensor, e: Tensor) -> OutputParity:
    wrong = y != e
    count = int(wrong.sum())
    if not count:
        return row
    first = wrong.nonzero()[0]
    values = f"{y[tuple(first)].item()}, eager {e[tuple(first)].item()}"
    return replace(row, ok=False, reason=f"{count} of {y.numel()} differ, first {_at(first)}: {values}")


def _judge_floating(
    row: OutputParity, y: Tensor, e: Tensor, r: Tensor | None, atol: float | None, rtol: float | None
) -> OutputParity:
    zero = replace(row, max_abs_error=0.0, relative_error=0.0, error_vs_fp64=0.0, eager_error_vs_fp64=0.0)
    if y.numel() == 0:
        return zero
    if problem := _not_finite(y, e):
        return replace(row, ok=False, reason=problem)
    wide = torch.complex128 if e.is_complex() else torch.float64
    has_reference = r is not None and r.shape == e.shape
    target = r.to(wide) if has_reference else e.to(wide)
    target = torch.where(
        target.isfinite(), target, e.to(wide)
    )  # what overflows there alone is judged by eager
    if (lost := ~target.isfinite() & y.isfinite()).any():
        first = lost.nonzero()[0]
        found = e[tuple(first)].item()
        return replace(row, ok=False, reason=f"finite {_at(first)}, where eager has {found:g}")
    kept = target.isfinite() & ~y.isinf()  # an infinity that is left equals eager's
    if not kept.any():
        return zero
    apart = (y.to(wide) - e.to(wide)).abs()[kept]
    ours = (y.to(wide) - target).abs()[kept]
    eager = (e.to(wide) - target).abs()[kept]
    scale = reference_scale(target[kept], y.dtype)
    row = replace(row, max_abs_error=_max(apart), relative_error=_max(apart) / scale)
    if has_reference:
        row = replace(row, error_vs_fp64=_max(ours) / scale, eager_error_vs_fp64=_max(eager) / scale)
    if atol is None and rtol is None and has_reference:
        limit = max(2 * row.eager_error_vs_fp64, tolerance(y.dtype).floor)
        row = replace(row, limit=limit, ok=row.error_vs_fp64 <= limit)
        own = f"eager's own: {row.eager_error_vs_fp64:.1e}"
        reason = f"error vs fp64 {row.error_vs_fp64:.1e} exceeds {limit:.1e} ({own})"
    else:
        table = tolerance(y.dtype)
        atol, rtol = (table.atol if atol is None else atol), (table.rtol if rtol is None else rtol)
        wrong = int((ours > atol + rtol * target[kept].abs()).sum())
        row = replace(row, ok=wrong == 0)
        reason = f"{wrong} of {y.numel()} elements beyond atol={atol:g}, rtol={rtol:g}"
    if row.ok:
        return row
    return replace(row, reason=f"{reason}, worst {_at(kept.nonzero()[int(ours.argmax())])}")


def _not_finite(y: Tensor, e: Tensor) -> str:
    """What is wrong with the NaN and infinities of `y`; empty where nothing is."""
    if (bad := y.isnan()).any():
        first = bad.nonzero()[0]
        also = "; eager has it too" if bool(e[tuple(first)].isnan()) else ""
        return f"NaN in {int(bad.sum())} of {y.numel()} elements, first {_at(first)}{also}"
    if (bad := y.isinf() & (y != e)).any():
        first = bad.nonzero()[0]
        return f"infinite {_at(first)}, where eager has {e[tuple(first)].item():g}"
    return ""


def reference_scale(r: Tensor, dtype: torch.dtype) -> float:
    """The largest magnitude in `r`, a repeated extreme left out; 1 for zeros; never subnormal in `dtype`."""
    size = r.abs()
    largest = size.max()
    if largest == 0:
        return 1.0
    if (size == largest).sum() > 1:
        rest = size[size < largest]
        if rest.numel() and rest.max() > 0:
            largest = rest.max()
    return max(float(largest), torch.finfo(dtype).tiny)


def _max(size: Tensor) -> float:
    """The largest finite entry: eager's own NaN or overflow tells nothing of its rounding."""
    finite = size[size.isfinite()]
    return float(finite.max()) if finite.numel() else 0.0


def _at(index: Tensor) -> str:
    return f"at {index.tolist()}"


def _shape_of(outcome: Outcome) -> str:
    return f"{len(outcome.leaves)} value{'s' * (len(outcome.leaves) != 1)} ({', '.join(outcome.paths[:4])})"
