"""A timer by table, in place of measurement: what tuning decides must not hang on a clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from capture.ir.cost import flops
from passes.quantize.layers import products
from runtime.engine_times import EngineTime


class Clock:
    """A float layer takes a microsecond for each FLOP, an int8 one `rate` of that; all else is free.

    `rates` gives some layers another rate, `eager` what the module itself takes, in ms.
    """

    def __init__(self, rate: float = 0.25, eager: float = 1e9, **rates: float) -> None:
        self.rate, self.eager, self.rates = rate, eager, rates

    def __call__(self, engines: Mapping[str, Any], args: Sequence[Any]) -> dict[str, EngineTime]:
        return {name: self._time(f) for name, f in engines.items()}

    def _time(self, f: Any) -> EngineTime:
        if not hasattr(f, "graph"):  # the module itself
            return EngineTime(self.eager)
        found: dict[tuple[str, ...], float] = {}
        for node in f.graph.nodes:
            inner = [n for region in node.regions for n in products(region)] or [node]
            if node.origin.modules and any(n in products(f.graph) or n is not node for n in inner):
                rate = self._rate(node) if _is_int8(node) else 1.0
                found[node.origin.modules] = sum(int(flops(n)) for n in inner) * 1e-3 * rate
        return EngineTime(sum(found.values()), found)

    def _rate(self, node: Any) -> float:
        return next((self.rates[m] for m in node.origin.modules if m in self.rates), self.rate)


def _is_int8(node: Any) -> bool:
    names = [str(n.op) for region in node.regions for n in region.nodes]
    return any("dequantize_per_channel" in name for name in names)
