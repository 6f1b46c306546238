"""`passes.quantize`: a float graph and calibration data in, a quantised graph out.

config.py says what can be chosen, layers.py which layers have an integer kernel, placement.py where integers
flow, calibration.py and observers.py find the ranges, static.py rewrites the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from capture.errors import UsageError
from capture.ir import Graph
from passes.base import Pass
from passes.manager import optimize
from passes.pipelines import PIPELINES
from passes.quantize.config import SCHEMES, QuantConfig
from passes.quantize.static import StaticInt8


def quantize(
    graph: Graph,
    calibration: Iterable[Any],
    *,
    scheme: str = "int8",
    config: QuantConfig | Mapping[str, Any] | None = None,
) -> Graph:
    """Quantise a graph: int8 weights by output channel, uint8 activations by tensor, ranges from calibration.

    The graph is cleaned up and its BatchNorms are folded first (level 1), and layers that read one value are
    merged. Layers without an integer kernel stay float; `passes.ledger` says which, and why. Optimise the
    result as any other graph: its regions between integers become oneDNN's int8 kernels.

    Args:
        calibration: samples, each a tuple of the arguments that the graph takes (or one tensor).
        scheme: "int8".
        config: see `passes.quantize.config.QuantConfig`; a mapping gives its attributes.

    Returns:
        A new graph with quantise and dequantise nodes of PyTorch's `quantized_decomposed` vocabulary. The
        same arguments give the same graph.

    Raises:
        UsageError: unknown scheme or setting; calibration data that is empty, constant, not finite, or does
            not fit the inputs; a configuration that names an unknown layer, or one never reached.
    """
    return optimize(graph, passes=pipeline(calibration, scheme=scheme, config=config))


def pipeline(
    calibration: Iterable[Any],
    *,
    scheme: str = "int8",
    config: QuantConfig | Mapping[str, Any] | None = None,
    level: int = 0,
) -> list[str | Pass]:
    """The passes of `quantize`, and after them those of a level: for ``optimize(graph, passes=...)``.

    Raises:
        UsageError: unknown scheme or setting.
    """
    check_scheme(scheme)
    chosen = config if isinstance(config, QuantConfig) else make_config(config or {})
    step = StaticInt8(tuple(calibration), chosen)
    return [*PIPELINES[1], "merge-linear", step, "eliminate-dead-code", *PIPELINES[level]]


def check_scheme(scheme: str) -> None:
    """Refuse a scheme that there is not.

    Raises:
        UsageError: unknown scheme.
    """
    if scheme not in SCHEMES:
        raise UsageError(f"there is no quantisation scheme {scheme!r}", hint="one of " + ", ".join(SCHEMES))


def make_config(settings: Mapping[str, Any]) -> QuantConfig:
    """A configuration from its attributes.

    Raises:
        UsageError: an attribute is unknown.
    """
    try:
        return QuantConfig(**settings)
    except TypeError as error:
        raise UsageError("the quantisation configuration cannot be read", why=str(error)) from error


__all__ = ["QuantConfig", "check_scheme", "make_config", "pipeline", "quantize"]
