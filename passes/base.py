"""What a pass is: a frozen dataclass with a name, options as fields, and `run`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch
from torch._ops import OpOverload

from capture.errors import UsageError
from capture.ir import Constant, Fusion, Graph, Node, is_pure, op_name
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
    """

    changed: bool
    stats: Mapping[str, Any] = field(default_factory=dict)
    fates: Mapping[int, Fate] = field(default_factory=dict)


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


@dataclass(frozen=True)
class PassRecord:
    """A row of `Graph.history`: what one pass did. `seconds` is wall time, verification excluded."""

    name: str
    seconds: float
    changed: bool
    nodes_before: int
    nodes_after: int
    stats: Mapping[str, Any]


_REGISTRY: dict[str, type[Pass]] = {}
P = TypeVar("P", bound=type[Pass])


def register_pass(cls: P) -> P:
    """Class decorator: make a pass known by its name, so that pipelines and `--passes` find it.

    Raises:
        ValueError: the class has no name, or the name is taken by another class.
    """
    if not cls.name:
        raise ValueError(f"{cls.__name__} needs a `name`")
    taken = _REGISTRY.get(cls.name)
    if taken is not None and taken.__qualname__ != cls.__qualname__:
        raise ValueError(
            f"a pass named {cls.name!r} is registered already: {taken.__module__}.{taken.__qualname__}"
        )
    _REGISTRY[cls.name] = cls
    return cls


def registered() -> dict[str, type[Pass]]:
    """Every known pass by name."""
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
    if name not in _REGISTRY:
        raise UsageError(f"there is no pass named {name!r}", hint="one of " + ", ".join(sorted(_REGISTRY)))
    if brace and not rest.endswith("}"):
        raise UsageError(f"cannot read the pass {spec!r}", hint=f"{name}{{option=value}}")
    cls = _REGISTRY[name]
    fields = {f.name: f for f in dataclasses.fields(cls)}
    options: dict[str, Any] = {}
    for item in filter(None, rest.removesuffix("}").split(",")):
        key, _, text = (part.strip() for part in item.partition("="))
        if key not in fields:
            known = ", ".join(fields) or "none"
            raise UsageError(f"the pass {name!r} has no option {key!r}", hint=f"its options: {known}")
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


# -- what several passes ask of a graph -------------------------------------------------------------------

_PURE_WITH_PURE_REGIONS = {"higher_order.cond", "higher_order.map_impl", "higher_order.while_loop"}


def packet_name(op: Any) -> str:
    """``aten.zeros``, whatever the overload; "" for what is no operator but has a region."""
    return f"{op.namespace}.{op._schema.name.partition('::')[2]}" if isinstance(op, OpOverload) else ""


def is_pure_node(node: Node) -> bool:
    """Whether a node may be dropped, repeated or merged with an equal one; its regions count."""
    if isinstance(node.op, Fusion) or (node.regions and op_name(node.op) in _PURE_WITH_PURE_REGIONS):
        return all(is_pure_node(inner) for region in node.regions for inner in region.nodes)
    return is_pure(node.op)


def fixed_tensor(graph: Graph, value: Any) -> torch.Tensor | None:
    """What a constant holds at every call: None where it is unbound, written back, fake, or of a subclass."""
    if not isinstance(value, Constant) or value in graph.writebacks:
        return None
    plain = type(value.tensor) in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
    return value.tensor if plain and not value.tensor.is_meta else None


def nested_graphs(graph: Graph, *, fusions: bool) -> Iterator[Graph]:
    """The graph's regions, innermost first, then the graph; `fusions` says whether theirs are among them."""
    for node in graph.nodes:
        for region in node.regions:
            if fusions or not isinstance(node.op, Fusion):
                yield from nested_graphs(region, fusions=fusions)
    yield graph
