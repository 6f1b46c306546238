"""Why a front end could not take a model, in terms of the user's own code."""

from __future__ import annotations

import ast
import re
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.fx.experimental.symbolic_shapes import ConstraintViolationError, GuardOnDataDependentSymNode
from torch.fx.proxy import TraceError

from capture.errors import CaptureError
from capture.frontends.source import Frame, Sources, innermost_user_frame, is_user_file, parse_stack
from capture.wording import first_line

__all__ = ["Failure", "UnsoundError", "combined_error", "user_frame"]


class UnsoundError(CaptureError):
    """The graph that a front end has made, or would make, does something else than the model."""


@dataclass(frozen=True)
class Failure:
    """A front end's failure.

    Attributes:
        frontend: its name, as `Graph.frontend` would have it.
        error: what it raised.
        frame: the user's line that it could not follow, if one is to blame.
    """

    frontend: str
    error: Exception
    frame: Frame | None

    @property
    def where(self) -> str | None:
        if isinstance(self.error, CaptureError):
            return self.error.where
        return self.frame and f"{self.frame.file}:{self.frame.line}   {self.frame.code}"

    @property
    def place(self) -> str:
        return (self.where or "").partition("   ")[0]

    @property
    def kind(self) -> str:
        """``data``: control flow on a tensor's value; ``size``: on a size that should vary; or ``other``."""
        for error in _chain(self.error):
            text = str(error)
            if isinstance(error, (GuardOnDataDependentSymNode, DataDependentOutputException)):
                return "data"
            if isinstance(error, TraceError) or "data-dependent" in text.lower():
                return "data"
            if isinstance(error, ConstraintViolationError) or "cannot vary" in text:
                return "size"
            if isinstance(error, TypeError) and re.search(
                r"not 'Proxy'|'Proxy' object cannot be interp", text
            ):
                return "data"  # int(), float() or range() of a traced value
        return "other"

    @property
    def reason(self) -> str:
        """One line: what the front end could not do, and where."""
        if self.kind == "data":
            text = "control flow depends on the data"
        else:
            text = first_line(self.error)
        return f"{self.place}: {text}" if self.place else text


def user_frame(error: BaseException) -> Frame | None:
    """The innermost line of the user's code that an error came through, or that it speaks of."""
    sources = Sources()
    for link in _chain(error):
        frames = list(_traceback_frames(link)) or list(_recorded_frames(link)) or parse_stack(str(link))
        if frame := innermost_user_frame(frames):
            return sources.frame(frame)
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, then what it was raised from or during."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _traceback_frames(error: BaseException) -> Iterator[Frame]:
    for entry in traceback.extract_tb(error.__traceback__):
        if is_user_file(entry.filename) and entry.lineno:
            yield Frame(entry.filename, entry.lineno, (entry.line or "").strip())


def _recorded_frames(error: BaseException) -> Iterator[Frame]:
    """The stack of the traced program, which Dynamo keeps on its errors."""
    for entry in getattr(error, "real_stack", None) or ():
        if is_user_file(entry.filename) and entry.lineno:
            yield Frame(entry.filename, entry.lineno, (entry.line or "").strip())


def combined_error(failures: Sequence[Failure]) -> CaptureError:
    """One error for a model that no front end took."""
    first = failures[0]
    if first.kind == "data":
        return _data_error(failures)
    sized = [f for f in failures if f.kind == "size"]
    if first.kind == "size" and sized:
        return _size_error(sized)
    ours = [f.error for f in failures if isinstance(f.error, CaptureError)]
    if ours and (len(failures) == 1 or isinstance(ours[0], UnsoundError)):
        return max(ours, key=lambda e: e.where is not None)
    why = f"{first.frontend}: {first.reason}"
    for failure in failures[1:]:
        alike = failure.reason.rpartition(": ")[2] == first.reason.rpartition(": ")[2]
        why += f"\n{failure.frontend}: {'the same' if alike else failure.reason}"
    where = next((f.where for f in failures if f.where), None)
    return CaptureError("the model cannot be captured", where=where, why=why, hint=_hint(failures))


def _data_error(failures: Sequence[Failure]) -> CaptureError:
    blamed = next((f for f in failures if f.frame), failures[0])
    code = blamed.frame.code if blamed.frame else ""
    statement, condition = _statement(code)
    others = [f"{f.frontend}: {_other(f, blamed)}" for f in failures if f is not blamed]
    why = f"{blamed.frontend} cannot {'follow' if condition else 'know'} {statement}."
    if others:
        why += "\nTried too: " + "; ".join(others) + "."
    if statement.startswith("a Python"):
        hint = f"torch.where({condition}, a, b), or torch.cond({condition}, branch_a, branch_b, operands)"
    else:
        hint = "keep the number in a tensor, or torch._check(...) the range that the code after it relies on"
    return CaptureError("control flow depends on the data", where=blamed.where, why=why, hint=hint)


def _other(failure: Failure, blamed: Failure) -> str:
    if failure.kind == "data" and failure.frontend == "dispatch tracing":
        return "would freeze what the example input gives, so it is not done silently"
    if failure.kind == "data" and failure.place in ("", blamed.place):
        return "same line"
    return failure.reason


def _statement(code: str) -> tuple[str, str]:
    """What kind of Python a line is, and the condition in it."""
    match = re.match(r"(?:el)?(if|while)\b(.*?):?\s*$", code) or re.match(r"(assert)\b(.*)", code)
    if match is None and (inline := re.search(r"\sif\s(.+?)\selse\s", code)):
        return "a Python `if` on a tensor's value", inline[1].strip()
    if match is None:
        return "a number read out of a tensor", ""
    source = code.removeprefix("el").rstrip()
    try:
        node: Any = ast.parse(source + (" pass" if source.endswith(":") else "")).body[0]
        condition = ast.unparse(node.test)
    except (SyntaxError, AttributeError, IndexError):
        condition = match[2].strip()
    return f"a Python `{match[1]}` on a tensor's value", condition


def _size_error(failures: Sequence[Failure]) -> CaptureError:
    """Ours names the line, torch's names the remedy: put the two together."""
    ours = next((f.error for f in failures if isinstance(f.error, CaptureError)), None)
    text = "\n".join(str(f.error) for f in failures)
    fixes = re.search(r"Suggested fixes:\n((?:\s+.+\n?)+?)(?:\n|$)", text)
    hint = "; ".join(line.strip() for line in fixes[1].splitlines() if line.strip()) if fixes else None
    if ours is not None:
        return CaptureError(ours.what, where=ours.where, why=ours.why, hint=hint or ours.hint)
    lines = [line.strip() for line in text.splitlines()[1:] if line.strip().startswith("- ")]
    return CaptureError(
        "a size cannot vary as asked", why="\n".join(lines) or first_line(failures[0].error), hint=hint
    )


_FAKE_KERNEL = "a fake kernel for the operator: @torch.library.register_fake"
_HINTS = (
    (r"no fake impl registered for \W*CustomOpDef\(([\w:]+)\)", _FAKE_KERNEL + r"('\1')"),
    (r"no fake impl|fake kernel|UnsupportedOperator", _FAKE_KERNEL),
    (
        r"register a pytree|unrecognized type|returns an object",
        "torch.export.register_dataclass for the class, or tensors in tuples and dicts",
    ),
    (r"numpy", "torch operations in the place of NumPy's"),
)


def _hint(failures: Sequence[Failure]) -> str | None:
    for failure in failures:
        if isinstance(failure.error, CaptureError) and failure.error.hint:
            return failure.error.hint
        for pattern, hint in _HINTS:
            if found := re.search(pattern, str(failure.error)):
                return found.expand(hint)
    return None
