"""The kernels of a reduction as text: whole rows, chunk after chunk, or parts that a second one joins."""

from __future__ import annotations

from collections.abc import Sequence

from codegen.triton.file import NAME
from codegen.triton.launching import spread
from codegen.triton.ops import used_helpers
from codegen.triton.rows import Loaded, RowKernel, state_of
from codegen.triton.steps import COUNT, Step


class RowText(RowKernel):
    """A reduction that can print its kernels."""

    def text(self) -> str:
        written = [getattr(self, f"_{form}")() for form in self.forms]
        text = "\n\n\n".join(written)
        return "\n\n\n".join([*used_helpers(self.steps.helpers, text), text])

    def _parameters(self, extra: Sequence[str], tensors: Sequence[Loaded]) -> list[str]:
        static = all(isinstance(size, int) for size in self.rows.shape)
        constant = ": tl.constexpr" if static else ""
        sizes, strides = self.numbers(tensors)
        found = [f"{t.operand.name}_ptr" for t in tensors]
        found += [*(p for p in extra if p.endswith("_ptr")), "row_count", *(name for name, _ in strides)]
        found += [f"{COUNT}{constant}", *(f"{name}{constant}" for name, _ in sizes)]
        return found + [f"{p}: tl.constexpr" for p in extra if not p.endswith("_ptr")]

    def _function(self, suffix: str, parameters: Sequence[str], lines: Sequence[str]) -> str:
        head = spread(f"def {NAME}{suffix}(", parameters, "):", 0)
        return "\n".join(["@triton.jit", *head, *(f"    {line}" for line in lines)])

    _HEAD = (
        "start = tl.program_id(0).to(tl.int64) if WIDE else tl.program_id(0)",
        "row = start * ROWS + tl.arange(0, ROWS)[:, None]",
        "kept = row < row_count",
    )

    def _whole(self) -> str:
        lines = [
            *self._HEAD,
            "column = tl.arange(0, COLUMNS)[None, :]",
            f"inside = column < {COUNT}",
            "mask = kept & inside",
            *(f"{t.operand.name} = {t.load}" for t in self.loads),
        ]
        for step in self.steps.steps:
            lines.append(_line(step))
        lines += [self._store(t) for t in self.stores]
        parameters = self._parameters(["WIDE", "ROWS", "COLUMNS"], [*self.loads, *self.stores])
        return self._function("", parameters, lines)

    def _store(self, t: Loaded) -> str:
        mask = "mask" if t.column != 0 else "kept"
        at = t.place if t.row != 0 or t.column != 0 else "row"  # a lone number is masked like a row
        return f"tl.store({t.operand.name}_ptr + {at}, {self.name(t)}, {mask})"

    def _narrow(self) -> list[str]:
        return [f"{t.operand.name} = {t.load}" for t in self.loads if t.column == 0]

    def _loop(self) -> str:
        lines = [*self._HEAD, *self._narrow()]
        for number in range(self.passes):
            lines += self._narrow_steps(number)
            lines += self._pass(number, f"0, {COUNT}, COLUMNS")
        lines += self._narrow_steps(self.passes)
        lines += [self._store(t) for t in self.stores if t not in self.wide_results]
        parameters = self._parameters(["WIDE", "ROWS", "COLUMNS"], [*self.loads, *self.stores])
        return self._function("_loop", parameters, lines)

    def _narrow_steps(self, number: int) -> list[str]:
        narrow = [s for s in self.steps.steps if s.reduction is None and not s.wide]
        return [_line(s) for s in narrow if self.at(s) == number]

    def _pass(self, number: int, span: str) -> list[str]:
        """One pass over the columns: states of its reductions, and what is written in it."""
        reductions = [s for s in self.reductions if self.at(s) == number]
        written = [t for t in self.wide_results if self.stage[self.name(t)] == number]
        if not reductions and not written:
            return []
        needed = {name for s in reductions for name in s.reads} | {self.name(t) for t in written}
        body: list[str] = []
        scans: list[Step] = []
        for step in reversed([s for s in self.steps.steps if s.wide and s.reduction is None]):
            if step.names[0] in needed:
                needed |= step.reads
                body.insert(0, _line(step))
                if step.carry is not None:
                    scans.append(step)
                    body[0] = f"{step.names[0]} = {step.carry[0]} + {step.text}"
        inner = [
            "column = first + tl.arange(0, COLUMNS)[None, :]",
            f"inside = column < {COUNT if 'end' not in span else 'end'}",
            "mask = kept & inside",
            *(
                f"{t.operand.name} = {t.load}"
                for t in self.loads
                if t.column != 0 and t.operand.name in needed
            ),
            *body,
        ]
        lines = []
        for step in scans:
            assert step.carry is not None
            name, kind, element = step.carry
            lines.append(f"{name} = tl.full((ROWS, 1), 0, {kind})")
            inner.append(f"{name} += tl.sum({element}, 1, keep_dims=True)")
        for step in reductions:
            r = step.reduction
            assert r is not None
            for name, start, kind in zip(r.state, r.start, r.dtypes, strict=True):
                lines.append(f"{name} = tl.full((ROWS, 1), {start}, {kind})")
            parts = [f"{name}_part" for name in r.state]
            inner.append(f"{', '.join(parts)} = {r.part}")
            inner.append(f"{', '.join(r.state)} = {r.join.format(*r.state)}")
        inner += [self._store(t) for t in written]
        return [*lines, f"for first in range({span}):", *(f"    {line}" for line in inner)]

    def _split(self) -> str:
        states = [(n, k, s) for step in self.reductions for n, k, s in state_of(step)]
        pointers = [f"{name}_ptr" for name, _, _ in states]
        first = [
            *self._HEAD,
            *self._narrow(),
            *self._narrow_steps(0),
            "part = tl.program_id(1)",
            f"end = tl.minimum({COUNT}, (part + 1) * span)",
            *self._pass(0, "part * span, end, COLUMNS"),
            *(f"tl.store({name}_ptr + part * row_count + row, {name}, kept)" for name, _, _ in states),
        ]
        parameters = self._parameters([*pointers, "WIDE", "ROWS", "COLUMNS"], self.loads)
        at = parameters.index("row_count")
        parts = self._function("_parts", [*parameters[: at + 1], "span", *parameters[at + 1 :]], first)
        second = [
            *self._HEAD,
            *self._narrow(),
            *self._narrow_steps(0),
            "part = tl.arange(0, PARTS)[None, :]",
            "mask = kept & (part < part_count)",
        ]
        for step in self.reductions:
            assert step.reduction is not None
            for name, _, start in state_of(step):
                second.append(f"{name} = tl.load({name}_ptr + part * row_count + row, mask, other={start})")
            second.append(_folded(step))
        second += [*self._narrow_steps(1), *(self._store(t) for t in self.stores)]
        narrow = [t for t in self.loads if t.column == 0]
        parameters = self._parameters([*pointers, "WIDE", "ROWS", "PARTS"], [*narrow, *self.stores])
        at = parameters.index("row_count")
        joined = self._function("_join", [*parameters[: at + 1], "part_count", *parameters[at + 1 :]], second)
        return f"{parts}\n\n\n{joined}"


def _line(step: Step) -> str:
    comment = f"  # {step.comment}" if step.comment else ""
    return f"{', '.join(step.names)} = {step.text}{comment}"


def _folded(step: Step) -> str:
    """The line that makes one state of those of all parts."""
    assert step.reduction is not None
    r = step.reduction
    names = ", ".join(r.state)
    if not r.fold:
        return f"{names} = tl.sum({names}, 1, keep_dims=True)"
    given = names if len(r.state) == 1 else f"({names})"
    return f"{names} = tl.reduce({given}, 1, {r.fold}, keep_dims=True)"


__all__ = ["RowText"]
