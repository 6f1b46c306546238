"""Apply the registered rules: wherever a pattern occurs, put its replacement.

    register_rule("silu", lambda x: x * torch.sigmoid(x), F.silu, (torch.randn(2),))

    %0 = aten.sigmoid(%x)               ==>     %0 = aten.silu(%x)
    %1 = aten.mul.Tensor(%0, %x)

Pattern and replacement are PyTorch functions (docs/rules.md). Operands that commute are tried both ways; a
copy, a widening cast or a broadcast between the matched operators is no hindrance. Goes on until no rule
applies, with `simplify` in between; of two rules for one place the larger pattern wins, then a rule of
the user's own, then the one registered first.

Does not fire where an inner value is used outside of the match or returned, where the replacement's type is
another one, where the guard says no, over random or effectful operators, where an operand is computed from a
result, where a caller could notice shared memory, or, with `check`, where the two sides differ on recorded or
random operands.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from capture.errors import CaptureError, UsageError
from capture.ir import Constant, Graph, Node, Value, op_name
from capture.logs import logger
from passes.aliases import Aliases
from passes.base import Pass, PassResult, Setting, register_pass
from passes.ledger import KEPT, REPLACED, Fate
from passes.queries import nested_graphs, packet_name
from passes.rewriting.apply import Refused, apply, replacement_of
from passes.rewriting.match import NO, Match, matches, refusal
from passes.rewriting.replay import Recording, record, replay
from passes.rewriting.rule import Rule, rules
from passes.simplify import Simplify

log = logger("rewrite")

_ROUNDS = 32  # of rules and clean-up in turn; two or three are what it takes
_ALWAYS = 3  # the highest level: without one told, every rule runs


@register_pass
@dataclass(frozen=True)
class Rewrite(Pass):
    name = "rewrite"
    reason = "part of what a rule replaced"
    rules: str = ""  # names joined by `+`; those of the level where empty
    level: int = 0  # the rules of this level and below; 0 for that of the pipeline
    check: bool = False  # run both sides of each application and compare
    inputs: Any = field(default=None, repr=False, compare=False)  # example inputs to check with

    def run(self, graph: Graph) -> PassResult:
        work = _Rewriting(self._chosen(), self.check)
        for _ in range(_ROUNDS):
            if self.check and self.inputs is not None:
                work.recording = record(graph, *self.inputs)
            before = work.applied.total()
            for inner in nested_graphs(graph, fusions=False):
                work.run(inner)
            if before == work.applied.total():
                break
            # Rules are written in the form that clean-up leaves; it may bring together what others are for.
            work.fates = {**Simplify().run(graph).fates, **work.fates}
        else:
            raise work.endless(list(work.applied))
        stats = {**work.applied, "refused": len(work.notes)} if work.notes else dict(work.applied)
        return PassResult(bool(work.applied), stats, work.fates, tuple(work.notes))

    def at(self, setting: Setting) -> Pass:
        self._chosen()  # an unknown name is to be told before anything is done
        check = self.check or setting.check_rewrites
        return replace(
            self, level=self.level or setting.level, check=check, inputs=self.inputs or setting.inputs
        )

    def _chosen(self) -> list[Rule]:
        known = rules()
        if not self.rules:
            return [rule for rule in known.values() if rule.level <= (self.level or _ALWAYS)]
        names = self.rules.split("+")
        for name in names:
            if name not in known:
                raise UsageError(f"there is no rule named {name!r}", hint=", ".join(known) or "register_rule")
        return [known[name] for name in names]


@dataclass
class _Rewriting:
    """The rules at work on one graph and its regions."""

    chosen: list[Rule]
    check: bool
    recording: Recording | None = None
    notes: list[str] = field(default_factory=list)
    differing: set[tuple[Any, ...]] = field(default_factory=set)
    applied: Counter[str] = field(default_factory=Counter)
    fates: dict[int, Fate] = field(default_factory=dict)
    constants: dict[Any, Constant] = field(default_factory=dict)

    def run(self, graph: Graph) -> None:
        """Apply rules until none fires.

        Raises:
            CaptureError: they never end; names the rules that go on.
        """
        occurring = {node.op for node in graph.nodes}
        by_root = self._by_root(occurring)
        if occurring.isdisjoint(by_root):
            return
        aliases = Aliases(graph)
        waiting = deque(reversed(graph.nodes))
        queued = set(waiting)
        limit, last = 4 * len(graph.nodes) + 100, deque[str](maxlen=20)
        while waiting:
            node = waiting.popleft()
            queued.discard(node)
            if node.graph is not graph:
                continue
            changed = next(
                filter(None, (self._try(rule, graph, node, aliases) for rule in by_root.get(node.op, ()))),
                None,
            )
            if changed is None:
                continue
            last.append(changed[0])
            limit -= 1
            if not limit:
                raise self.endless(last)
            if new := {v.producer.op for v in changed[1] if v.producer is not None} - occurring:
                occurring |= new  # for rules that need what a rule has put in
                by_root = self._by_root(occurring)
            depth = max(rule.skeleton.size for found in by_root.values() for rule in found) + 2
            again = _below(changed[1], depth) - queued
            queued |= again
            waiting += sorted(again, key=graph.order().__getitem__, reverse=True)

    def endless(self, names: Iterable[str]) -> CaptureError:
        """The error for rules that never come to an end."""
        named = list(dict.fromkeys(names))
        return CaptureError(
            f"the rules {', '.join(named)} apply again and again",
            where="\n".join(rule.where for rule in self.chosen if rule.name in named),
            why="What a rule puts in is matched anew by it, or by another one.",
            hint="a guard, or a replacement that does not hold its own pattern",
        )

    def _by_root(self, occurring: set[Any]) -> dict[Any, list[Rule]]:
        """The rules by the operator that they begin at. Those that lack an operator stay untraced."""
        packets = {getattr(op, "overloadpacket", None) for op in occurring}
        names = set(map(packet_name, occurring))
        near = [r for r in self.chosen if (occurring | packets).issuperset(r.anchors) and r.needs <= names]
        found: dict[Any, list[Rule]] = {}
        for rule in sorted(near, key=lambda r: (-r.skeleton.size, r.is_ours)):
            for op in rule.roots:
                found.setdefault(op, []).append(rule)
        return found

    def _try(self, rule: Rule, graph: Graph, node: Node, aliases: Aliases) -> tuple[str, list[Value]] | None:
        """Apply one rule at one node: its name and the values to look below anew, or None."""
        if node.graph is not graph:
            return None
        for match in matches(rule, graph, node, _miss):
            try:
                if reason := refusal(match):
                    raise Refused(reason)
                made = replacement_of(match)
                recorded = self._replayed(match, made) if self.check else {}
                origin = match.origin
                mapping = apply(match, made, aliases, self.constants)
            except Refused as error:
                self._refuse(match, str(error))
                continue
            if self.recording is not None:
                self.recording.values.update((mapping[v], tensor) for v, tensor in recorded.items())
            self.applied[rule.name] += 1
            reason = f"by the rule {rule.name} ({rule.where.split('   ')[0]})"
            self.fates.update(dict.fromkeys(origin.ids, Fate(REPLACED, reason=reason, final=True)))
            log.debug("%s: applied at %s", rule.name, origin)
            return rule.name, [*match.leaves, *mapping.values()]
        return None

    def _replayed(self, match: Match, made: Graph) -> dict[Value, Any]:
        """Run both sides; returns the recorded run's values of the replacement.

        Raises:
            Refused: they differ.
        """
        key = (match.rule.name, *match.results)
        if key in self.differing:
            raise Refused("it differs")
        reason, recorded = replay(match, made, self.recording)
        if reason is None:
            return recorded
        self.differing.add(key)
        log.warning("the rule %s is refused at %s: it %s", match.rule.name, match.origin, reason)
        place = f" ({match.rule.where.split('   ')[0]})"
        self.notes.append(
            f"rewrite refused: the rule {match.rule.name}{place} at {match.origin}: it {reason}"
        )
        raise Refused(f"it {reason}")

    def _refuse(self, match: Match, reason: str) -> None:
        log.debug("%s: refused at %s: %s", match.rule.name, match.origin, reason)
        if reason == NO:
            return
        fate = Fate(KEPT, reason=f"the rule {match.rule.name} was refused: {reason}")
        for number in match.origin.ids:
            self.fates.setdefault(number, fate)


def _miss(rule: Rule, node: Node, reason: str) -> None:
    log.debug("%s: no match at %s %s: %s", rule.name, op_name(node.op), node.origin, reason)


def _below(values: list[Value], depth: int) -> set[Node]:
    """Nodes that a pattern of that depth may find changed: users, theirs, and so on."""
    found: set[Node] = set()
    level = dict.fromkeys(values)
    for _ in range(depth):
        users = dict.fromkeys(u for v in level for u in v.users if u not in found)
        found.update(users)
        level = dict.fromkeys(v for node in users for v in node.results)
    return found
