"""What int8 costs and brings, layer by layer: the error that it makes alone, and the time that it saves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from capture.ir import Graph
from passes import PIPELINES, optimize
from passes.quantize import QuantConfig
from passes.quantize.layers import names_of, products, refusal
from passes.quantize.static import StaticInt8
from runtime.compile import compile
from runtime.engine_times import EngineTime, Timer, measure_engines
from runtime.scoring import Scorer

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["LayerRow", "Sensitivity", "configured", "quantized", "sensitivity", "table"]

TOO_SHORT = 0.02  # ms: a layer that takes less than this in float is not timed by itself
MOST_SAMPLES = 32  # that errors of single layers are measured on
Sample = tuple[Any, ...]


@dataclass(frozen=True)
class LayerRow:
    """A layer that int8 may be chosen for, or why it may not.

    Attributes:
        layer: the module path.
        error: relative L2 error of the outputs on (32 of) the samples with this layer alone in int8.
        float_ms, int8_ms: what it takes in the float model, and in the one with all layers in int8.
        measured: "layer"; or "whole", where it is too short to time: its share of what the model gains.
        reason: why it stays float whatever is asked; the numbers are None then.
    """

    layer: str
    error: float | None = None
    float_ms: float | None = None
    int8_ms: float | None = None
    measured: str = ""
    reason: str = ""

    @property
    def gain_ms(self) -> float:
        """Milliseconds that int8 saves; negative where it loses."""
        return 0.0 if self.float_ms is None or self.int8_ms is None else self.float_ms - self.int8_ms

    @property
    def gain_per_error(self) -> float:
        """What a greedy search goes by; infinite for a gain that costs nothing."""
        return self.gain_ms / self.error if self.error else math.copysign(math.inf, self.gain_ms)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "gain_ms": self.gain_ms}


@dataclass(frozen=True)
class Sensitivity:
    """The rows in the graph's order, and the graph that layers were named and prepared in.

    Attributes:
        times: of the whole in float ("float") and with all layers in int8 ("int8").
        modules: the layer of each module path.
    """

    rows: tuple[LayerRow, ...]
    prepared: Graph
    config: QuantConfig
    times: Mapping[str, EngineTime]
    modules: Mapping[str, str]

    @property
    def layers(self) -> list[str]:
        """Those that can be quantised."""
        return [row.layer for row in self.rows if not row.reason]

    def milliseconds(self, time: EngineTime) -> dict[str, float]:
        """What each layer took, as far as it was profiled."""
        found: dict[str, float] = {}
        for paths, ms in time.modules.items():
            layer = next((self.modules[path] for path in paths if path in self.modules), None)
            if layer is not None:
                found[layer] = found.get(layer, 0.0) + ms
        return found


def sensitivity(
    graph: Graph,
    samples: Sequence[Sample],
    *,
    config: QuantConfig | None = None,
    args: Sequence[Any] | None = None,
    backend: str = "aten",
    timer: Timer = measure_engines,
    say: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> Sensitivity:
    """Quantise each layer alone and measure the error; time the float model against all layers in int8.

    Args:
        samples: calibration data, tuples of arguments.
        config: how to quantise; layers that it keeps float are left out.
        args: the inputs to time with; the first sample unless given.
        timer: what measures; see `runtime.engine_times`.
        say: called with what is done, and how many layers of how many are.

    Raises:
        UsageError: the calibration data cannot be used (see `passes.quantize`).
    """
    base = config or QuantConfig()
    prepared = optimize(graph, passes=[*PIPELINES[1], "merge-linear"])
    base.check_names(name for node in products(prepared) for name in names_of(node))
    known, modules = _layers(prepared, base)
    layers = [name for name, reason in known.items() if not reason]
    rows = {name: LayerRow(name, reason=reason) for name, reason in known.items()}
    if not layers:
        return Sensitivity(tuple(rows.values()), prepared, base, {}, modules)
    few = list(samples[:MOST_SAMPLES])
    scorer = Scorer.of(graph.run, few, few[0], None)
    for number, name in enumerate(layers):
        say("measuring the error of each layer", number, len(layers))
        alone = quantized(prepared, few, configured(base, layers, [name]))
        rows[name] = replace(rows[name], error=scorer.noise(alone.run).relative_l2)
    say("timing each layer", len(layers), len(layers))
    times = timer(
        {
            "float": compile(graph, (), level=2, backend=backend, cache=False),
            "int8": compile(
                quantized(prepared, samples, configured(base, layers, layers)),
                (),
                level=2,
                backend=backend,
                cache=False,
            ),
        },
        tuple(samples[0] if args is None else args),
    )
    found = Sensitivity(tuple(rows.values()), prepared, base, times, modules)
    return replace(found, rows=tuple(_timed(row, found) for row in found.rows))


def configured(base: QuantConfig, layers: Sequence[str], chosen: Sequence[str]) -> QuantConfig:
    """A configuration that quantises `chosen` of the layers that can be, and nothing else with a name."""
    named = {name: "int8" if name in chosen else "float" for name in layers}
    kept = {pattern: scheme for pattern, scheme in base.layers.items() if scheme == "float"}
    return replace(base, layers={**kept, **named})


def quantized(prepared: Graph, samples: Sequence[Sample], config: QuantConfig) -> Graph:
    """A prepared graph (level 1, layers merged) with the layers of the configuration in int8."""
    return optimize(prepared, passes=[StaticInt8(tuple(samples), config), "eliminate-dead-code"])


def table(rows: Sequence[LayerRow]) -> Table:
    """The rows as a table for rich, those that lose most accuracy first."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="dim")
    made.add_column("layer", overflow="fold")
    for name in ("error", "float", "int8", "gain"):
        made.add_column(name, justify="right")
    made.add_column("")
    for row in sorted(rows, key=lambda row: (bool(row.reason), -(row.error or 0.0), row.layer)):
        if row.reason or row.error is None or row.float_ms is None or row.int8_ms is None:
            made.add_row(row.layer, "", "", "", "", row.reason)
            continue
        note = "share of the whole's gain: too short to time" if row.measured == "whole" else ""
        times = (f"{ms * 1e3:.0f} us" for ms in (row.float_ms, row.int8_ms, row.gain_ms))
        made.add_row(row.layer, f"{row.error:.2g}", *times, note)
    return made


def _layers(prepared: Graph, config: QuantConfig) -> tuple[dict[str, str], dict[str, str]]:
    """Layers by name, each with why it stays float ("" where it need not); the layer of each module path."""
    known: dict[str, str] = {}
    modules: dict[str, str] = {}
    for node in products(prepared):
        names = names_of(node)
        if not names:  # made by the model itself: no configuration can name it
            continue
        reason = refusal(prepared, node) or ""
        if config.scheme_of(names, "int8") == "float":
            reason = "the configuration says so"
        known[names[0]] = known.get(names[0]) or reason
        for path in names:
            modules.setdefault(path, names[0])
    return known, modules


def _timed(row: LayerRow, found: Sensitivity) -> LayerRow:
    if row.reason:
        return row
    before, after = (found.milliseconds(found.times[name]).get(row.layer) for name in ("float", "int8"))
    if before is not None and after is not None and before >= TOO_SHORT:
        return replace(row, float_ms=before, int8_ms=after, measured="layer")
    start = before or 0.0
    whole = found.times["int8"].ms / found.times["float"].ms
    return replace(row, float_ms=start, int8_ms=start * whole, measured="whole")
