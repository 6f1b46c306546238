"""What a pass is: a frozen dataclass with a name, options as fields, and `run`."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from capture.errors import UsageError
from capture.ir import Graph
from capture.ir.parse import split
from passes.ledger import Fate


@dataclass(frozen=True)
class PassResult:
    """What a pass has done.

    Attributes:
        changed: whether the graph is another one now.
        stats: counts worth telling ("folded": 53).
        fates: what became of captured ops, by id, where the pass knows better than what the manager sees
            by itself: ids that are gone from the graph, that moved into a fusion, whose op changed.
        notes: lines that a user should see, such as a rewrite that was refused.
    """

    changed: bool
    stats: Mapping[str, Any] = field(default_factory=dict)
    fates: Mapping[int, Fate] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setting:
    """What a pipeline tells its passes.

    Attributes:
        level: its optimisation level.
        check_rewrites: whether each application of a rule is to be replayed.
        inputs: the example inputs to replay with, as (args, kwargs), or None.
    """

    level: int = 2
    check_rewrites: bool = False
    inputs: tuple[Sequence[Any], Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class Pass:
    """Edits the graph it is given: a working copy, made once by `optimize`. Deterministic, measures nothing.

    `reason` is what the ledger says of captured ops that vanish without being named in `PassResult.fates`.
    """

    name: ClassVar[str] = ""
    reason: ClassVar[str] = ""

    def run(self, graph: Graph) -> PassResult:
        """Edit `graph` in place."""
        raise NotImplementedError(f"{type(self).__name__} has no run()")

    def at(self, setting: Setting) -> Pass:
        """The pass as that pipeline runs it: itself, where the setting says nothing to it."""
        return self


@dataclass(frozen=True)
class PassRecord:
    """A row of `Graph.history`: what one pass did. `seconds` is wall time, verification excluded."""

    name: str
    seconds: float
    changed: bool
    nodes_before: int
    nodes_after: int
    stats: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def check_graph(given: Any, function: str) -> None:
    """Refuse what is no graph, a module above all.

    Raises:
        UsageError: it is not a Graph.
    """
    if not isinstance(given, Graph):
        raise UsageError(
            f"{function} takes a captured graph, not a {type(given).__name__}",
            hint=f"from capture import capture; {function}(capture(model, args), ...)",
        )


_REGISTRY: dict[str, type[Pass]] = {}
P = TypeVar("P", bound=type[Pass])


def register_pass(cls: P) -> P:
    """Class decorator: make a pass known by its name, so that pipelines and `--passes` find it.

    Raises:
        ValueError: the class has no name, or the name is taken by another class.
    """
    if not cls.name:
        raise ValueError(f"{cls.__name__} needs a `name`")
    if not cls.__module__.startswith("passes."):
        _know_ours()  # whose names are taken
    taken = _REGISTRY.get(cls.name)
    if taken is not None and taken.__qualname__ != cls.__qualname__:
        raise ValueError(
            f"a pass named {cls.name!r} is registered already: {taken.__module__}.{taken.__qualname__}"
        )
    _REGISTRY[cls.name] = cls
    return cls


def _know_ours() -> None:
    importlib.import_module("passes.catalogue")  # not before somebody asks: each imports this module


def registered() -> dict[str, type[Pass]]:
    """Every known pass by name."""
    _know_ours()
    return dict(_REGISTRY)


def parse_passes(text: str) -> list[Pass]:
    """The passes of a comma-separated list: ``simplify,fold-constants{max_bytes=1024}``.

    Raises:
        UsageError: unknown pass or option.
    """
    return [make_pass(item) for item in split(text) if item]


def make_pass(spec: str | Pass) -> Pass:
    """A pass from its name, with options where given: ``fuse`` or ``fuse{max_ops=8}``.

    Raises:
        UsageError: unknown pass or option.
    """
    if isinstance(spec, Pass):
        return spec
    name, brace, rest = (part.strip() for part in spec.partition("{"))
    known = registered()
    if name not in known:
        raise UsageError(f"there is no pass named {name!r}", hint="one of " + ", ".join(sorted(known)))
    if brace and not rest.endswith("}"):
        raise UsageError(f"cannot read the pass {spec!r}", hint=f"{name}{{option=value}}")
    cls = known[name]
    fields = {f.name: f for f in dataclasses.fields(cls) if f.repr}
    options: dict[str, Any] = {}
    for item in filter(None, rest.removesuffix("}").split(",")):
        key, _, text = (part.strip() for part in item.partition("="))
        if key not in fields:
            options_of = ", ".join(fields) or "none"
            raise UsageError(f"the pass {name!r} has no option {key!r}", hint=f"its options: {options_of}")
        options[key] = _parse_option(name, key, text, fields[key].default)
    return cls(**options)


def _parse_option(name: str, key: str, text: str, default: Any) -> Any:
    """An option's text as the type of its default."""
    try:
        if isinstance(default, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if isinstance(default, (int, float)):
            return type(default)(text)
    except (KeyError, ValueError) as error:
        raise UsageError(f"{name}{{{key}={text}}}: {text!r} is no {type(default).__name__}") from error
    return text
