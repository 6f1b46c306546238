"""`runtime.tune`: as fast as measurement shows, within what accuracy may be lost.

    float --> channels 10% .. 50%, fine-tuned where a hook is given --> the most that keeps the budget
      |          |
      v          v
    int8       int8      each layer: error alone, time saved; greedy by gain per error, then refined

Candidates are scored as they run, and timed against each other. A layer that int8 makes no faster goes
back to float, and so does a candidate that does not beat the float model; both are listed with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from capture import capture
from capture.errors import UsageError
from capture.ir import Graph
from capture.ir.cost import flops
from passes.base import Pass
from passes.pipelines import PIPELINES
from passes.pruning.prune import Prune
from passes.pruning.prune import prune as prune_graph
from passes.quantize import QuantConfig, pipeline
from passes.quantize.calibration import Samples
from runtime.compile import Compiled, compile
from runtime.engine_times import Timer, measure_engines
from runtime.scoring import Metric, Scorer
from runtime.sensitivity import LayerRow, Sensitivity, configured, quantized, sensitivity
from runtime.tuned import Configuration, Trial, TuneResult, Undone

__all__ = ["tune"]

RATIOS = (0.1, 0.2, 0.3, 0.5)  # of channels that pruning is tried at
REFINEMENTS = 16  # layers that are tried one by one after the greedy search, at most
WORTH_IT = 1.02  # a candidate must beat the float model by this much: below it is noise
EAGER, FLOAT = "eager", "float"
Say = Callable[[str, int, int], None]


def tune(
    model_or_graph: Any,
    data: Iterable[Any],
    *,
    max_drop: float = 0.01,
    metric: Metric | None = None,
    args: Sequence[Any] | None = None,
    ratios: Sequence[float] = RATIOS,
    finetune: Callable[[Graph], Graph] | None = None,
    config: QuantConfig | None = None,
    backend: str = "aten",
    timer: Timer = measure_engines,
    say: Say = lambda phase, done, total: None,
) -> TuneResult:
    """Search int8 by layer and pruning of channels for the fastest model that loses at most `max_drop`.

    Args:
        model_or_graph: a module, or a captured graph.
        data: calibration samples, each a tuple of arguments (or one tensor).
        max_drop: how much lower the score may be, absolute: 0.01 of an accuracy of 0.98 leaves 0.97.
        metric: called with a function that takes the model's inputs in any batch size; higher is better.
            Without one, agreement with the float model on the data stands in (see `runtime.scoring`).
        args: the inputs to capture and time with; the first sample unless given.
        ratios: shares of channels to try pruning; none for no pruning.
        finetune: trains a pruned graph for a while: ``lambda g: runtime.finetune(g, batches, loss)``.
        config: how to quantise; layers that it keeps float stay so.
        backend: what runs the candidates.
        timer: what measures engines (see `runtime.engine_times`). The same times give the same answer.

    Returns:
        The fastest that keeps the budget, compiled from the captured graph. Pruned weights are a copy: they
        do not follow the module's.

    Raises:
        UsageError: the budget is no number from 0, a ratio is out of range, or the data cannot be used.
        CaptureError: the model cannot be captured, or the metric gives no number.
    """
    if not (isinstance(max_drop, int | float) and math.isfinite(max_drop) and max_drop >= 0):
        raise UsageError(f"max_drop is {max_drop!r}", hint="0.01 lets the score fall by 0.01")
    samples = [tuple(s) if isinstance(s, tuple | list) else (s,) for s in data]
    if not samples:
        raise UsageError("the calibration data is empty", hint="at least one sample: a tuple of arguments")
    given = samples[0] if args is None else tuple(args)
    graph = model_or_graph if isinstance(model_or_graph, Graph) else capture(model_or_graph, given)
    Samples.of(graph, samples)
    plans = [Prune("channels", ratio) for ratio in dict.fromkeys(ratios)]
    scorer = Scorer.of(graph.run, samples, given, metric)
    search = _Search(graph, samples, given, float(max_drop), scorer, config, backend, timer, say)
    with torch.random.fork_rng(devices=[]):
        search.consider_float(model_or_graph)
        pruned = search.prune(plans, finetune)
        layers = search.quantize(graph, Configuration())
        if pruned is not None:
            search.quantize(*pruned)
        return search.choose(layers)


def select(order: Sequence[str], fits: Callable[[Sequence[str]], bool]) -> list[str]:
    """The longest head of `order` that fits, by bisection; then what was left out, tried one by one."""
    if not order or fits(order):
        return list(order)
    low, high = 0, len(order)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(order[:middle]) else (low, middle)
    chosen = list(order[:low])
    for layer in order[high : high + REFINEMENTS]:
        if fits([*chosen, layer]):
            chosen.append(layer)
    return chosen


@dataclass
class _Search:
    graph: Graph
    samples: list[tuple[Any, ...]]
    args: tuple[Any, ...]
    max_drop: float
    scorer: Scorer
    config: QuantConfig | None
    backend: str
    timer: Timer
    say: Say
    trials: list[Trial] = field(default_factory=list)
    engines: dict[str, Any] = field(default_factory=dict)
    before: float = 0.0

    # -- candidates ---------------------------------------------------------------------------------------

    def consider_float(self, model: Any) -> None:
        self.say("compiling the float model", 0, 0)
        if isinstance(model, torch.nn.Module):
            self._consider(EAGER, Configuration(), model)
        self._consider(
            FLOAT, Configuration(), compile(self.graph, (), level=2, backend=self.backend, cache=False)
        )

    def prune(
        self, plans: Sequence[Prune], finetune: Callable[[Graph], Graph] | None
    ) -> tuple[Graph, Configuration] | None:
        """Try each ratio; the most that keeps the budget."""
        best = None
        for number, plan in enumerate(plans):
            self.say("pruning channels", number, len(plans))
            graph = prune_graph(self.graph, method=plan.method, sparsity=plan.sparsity, config=plan.config)
            if not graph.history[-1].changed:
                continue
            graph = graph if finetune is None else finetune(graph)
            configuration = Configuration(prune=plan)
            made = compile(graph, (), level=2, backend=self.backend, cache=False)
            if self._consider(_name(configuration), configuration, made).met:
                best = graph, configuration
        return best

    def quantize(self, graph: Graph, base: Configuration) -> tuple[LayerRow, ...]:
        """Try int8 on a graph: the layers that the budget allows, then those of them that get faster."""
        found = sensitivity(
            graph, self.samples, config=self.config, args=self.args,
            backend=self.backend, timer=self.timer, say=self.say,
        )  # fmt: skip
        order = [
            r.layer for r in sorted(found.rows, key=lambda r: (-r.gain_per_error, r.layer)) if not r.reason
        ]
        if not order:
            return found.rows
        self.say("searching layers within the budget", 0, len(order))
        chosen = select(order, lambda layers: self._fits(found, layers))
        over = [
            Undone(name, "int8 loses more than the budget allows") for name in order if name not in chosen
        ]
        first = self._consider_int8(graph, base, found, chosen or order, over if chosen else [])
        if chosen:
            self._take_back(graph, base, found, chosen, first)
        return found.rows

    def _take_back(
        self, graph: Graph, base: Configuration, found: Sensitivity, chosen: Sequence[str], first: Trial
    ) -> None:
        """Time the layers chosen as they run together; try it without those that are no faster."""
        self.say("timing layers", 0, 0)
        names = _name(base), first.name
        times = self.timer({name: self.engines[name] for name in names}, self.args)
        float_ms, int8_ms = (found.milliseconds(times[name]) for name in names)
        slower = [name for name in chosen if int8_ms.get(name, 0.0) > float_ms.get(name, math.inf)]
        left = [name for name in chosen if name not in slower]
        if slower and left:
            told = [
                Undone(n, f"no faster: {int8_ms[n]:.3g} ms in int8, {float_ms[n]:.3g} ms in float")
                for n in slower
            ]
            self._consider_int8(graph, base, found, left, [*first.undone, *told])

    def _fits(self, found: Sensitivity, layers: Sequence[str]) -> bool:
        made = quantized(found.prepared, self.samples, configured(found.config, found.layers, layers))
        return self.before - self.scorer(made.run) <= self.max_drop

    def _consider_int8(
        self,
        graph: Graph,
        base: Configuration,
        found: Sensitivity,
        chosen: Sequence[str],
        undone: Sequence[Undone],
    ) -> Trial:
        configuration = replace(base, quantize=configured(found.config, found.layers, chosen))
        name = f"int8, {len(chosen)} of {len(found.rows)} layers"
        name = name if base.prune is None else f"{_name(base)} + {name}"
        kept = [Undone(row.layer, f"stays float: {row.reason}") for row in found.rows if row.reason]
        passes = self._passes(configuration)
        made = compile(graph, (), level=2, backend=self.backend, cache=False, passes=passes)
        return self._consider(name, configuration, made, (*kept, *undone))

    def _passes(self, configuration: Configuration) -> Sequence[str | Pass]:
        """What is run on a graph that is pruned already."""
        if configuration.quantize is None:
            return PIPELINES[2]
        return pipeline(self.samples, config=configuration.quantize, level=2)

    def _consider(
        self, name: str, configuration: Configuration, made: Any, undone: Sequence[Undone] = ()
    ) -> Trial:
        score = self.scorer(made)
        if not self.trials:
            self.before = score
        drop, graph = self.before - score, getattr(made, "captured", self.graph)
        trial = Trial(
            name, configuration, score, drop, drop <= self.max_drop,
            _parameters(graph), _flops(graph), undone=tuple(undone),
        )  # fmt: skip
        self.trials.append(trial)
        self.engines[name] = made
        return trial

    # -- the choice ---------------------------------------------------------------------------------------

    def choose(self, layers: tuple[LayerRow, ...]) -> TuneResult:
        """Time all candidates against each other; the fastest that keeps the budget and beats float."""
        self.say("timing all candidates", 0, 0)
        times = self.timer(self.engines, self.args)
        timed = [replace(trial, ms=times[trial.name].ms) for trial in self.trials]
        floats = [trial for trial in timed if trial.configuration == Configuration()]
        plain = min(floats, key=lambda trial: trial.ms)
        worth = [t for t in timed if t not in floats and t.met and t.ms * WORTH_IT < plain.ms]
        fastest = min((t.ms for t in worth), default=0.0)
        alike = [t for t in worth if t.ms < fastest * WORTH_IT]  # a smaller difference is noise
        best = min(alike, key=lambda t: (t.drop, t.ms), default=plain)
        told = tuple(replace(t, kept=t is best, reason=_reason(t, plain, best, self.max_drop)) for t in timed)
        return TuneResult(
            compiled=self._compiled(best.name),
            configuration=best.configuration,
            trials=told,
            layers=layers,
            score_name=self.scorer.name,
            proxy=self.scorer.is_proxy,
            score_before=self.before,
            score_after=best.score,
            max_drop=self.max_drop,
            met=any(t.met for t in timed if t not in floats),
            doubt=next((t.doubt for t in times.values() if t.doubt), ""),
        )

    def _compiled(self, name: str) -> Compiled:
        made = self.engines[name]
        return made if isinstance(made, Compiled) else compile(made, self.args, backend=EAGER)


def _name(configuration: Configuration) -> str:
    return FLOAT if configuration.prune is None else f"channels {configuration.prune.sparsity:.0%}"


def _reason(trial: Trial, plain: Trial, best: Trial, max_drop: float) -> str:
    """Why a candidate is not the one."""
    if trial is best or trial.configuration == Configuration():
        return ""
    if not trial.met:
        return f"loses {trial.drop:.2%}, more than {max_drop:.2%}"
    if trial.ms * WORTH_IT >= plain.ms:
        return f"no faster than {plain.name}"
    if trial.ms < best.ms:
        return f"loses more than {best.name}, which is as fast"
    return f"slower than {best.name}"


def _parameters(graph: Graph) -> int:
    used = {v for node in graph.nodes for v in node.operand_values if v.is_constant}
    return sum(int(v.tensor_type.numel) for v in used)


def _flops(graph: Graph) -> int | None:
    total: Any = sum((flops(node) for node in graph.nodes), 0)
    return total if isinstance(total, int) else None
