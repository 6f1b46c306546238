"""What to quantise and how: explicit, editable, and complete, so that one configuration means one graph."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from capture.errors import UsageError

SCHEMES = ("int8",)
OBSERVERS = ("minmax", "moving-average", "percentile", "mse", "kl")
FLOAT = "float"


@dataclass(frozen=True)
class QuantConfig:
    """How `passes.quantize` quantises.

    Attributes:
        observer: how a range is chosen from what calibration saw: "minmax"; "moving-average" of each sample's
            extremes; "percentile"; "mse" or "kl", the range whose rounding loses least of the histogram.
        percentile: the share of values, in percent, that "percentile" keeps.
        momentum: the weight of each new sample in "moving-average".
        smooth: the migration strength of SmoothQuant (Xiao et al., 2022), in (0, 1); None: not done.
        bias_correction: whether biases make up for what rounding the weights adds on average (Nagel et al.,
            "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019).
        layers: module path, or a pattern with * and ?, -> "int8" or "float"; the last one that fits decides.
            A layer that none fits is quantised.
    """

    observer: str = "minmax"
    percentile: float = 99.99
    momentum: float = 0.1
    smooth: float | None = None
    bias_correction: bool = False
    layers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _one_of("observer", self.observer, OBSERVERS)
        _within("percentile", self.percentile, 50, 100, "above 50, at most 100")
        _within("momentum", self.momentum, 0, 1, "above 0, at most 1")
        if self.smooth is not None:
            _within("smooth", self.smooth, 0, 1, "above 0, at most 1")
        if not isinstance(self.bias_correction, bool):
            raise UsageError(f"bias_correction is {self.bias_correction!r}", hint="true or false")
        if not isinstance(self.layers, Mapping):
            raise UsageError("layers is no table", hint='[layers]\n"encoder.*" = "float"')
        for name, scheme in self.layers.items():
            _one_of(f"the scheme of the layer {name}", scheme, (*SCHEMES, FLOAT))

    @staticmethod
    def from_toml(path: str | Path) -> QuantConfig:
        """Read a configuration: its attributes as keys, `layers` as a table.

        Raises:
            UsageError: the file cannot be read, a key is unknown, or a value is not one of those allowed.
        """
        try:
            given: dict[str, Any] = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"cannot read {path}", why=error.strerror) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is no TOML", why=str(error)) from error
        known = [f.name for f in fields(QuantConfig)]
        unknown = next((key for key in given if key not in known), None)
        if unknown is not None:
            raise UsageError(f"{path}: there is no setting {unknown!r}", hint="one of " + ", ".join(known))
        return QuantConfig(**given)

    def to_toml(self) -> str:
        """The text that `from_toml` reads back as this configuration."""
        lines = [f'observer = "{self.observer}"', f"percentile = {float(self.percentile)}"]
        lines += [f"momentum = {float(self.momentum)}"]
        lines += [] if self.smooth is None else [f"smooth = {float(self.smooth)}"]
        lines += [f"bias_correction = {str(self.bias_correction).lower()}", "", "[layers]"]
        return "\n".join([*lines, *(f'"{name}" = "{s}"' for name, s in self.layers.items())]) + "\n"

    def scheme_of(self, names: Iterable[str], default: str) -> str:
        """The scheme of a layer that goes by these module paths."""
        paths = tuple(names)
        found = [s for pattern, s in self.layers.items() if any(fnmatchcase(n, pattern) for n in paths)]
        return found[-1] if found else default

    def check_names(self, names: Iterable[str]) -> None:
        """Refuse a pattern that fits none of the graph's layers.

        Raises:
            UsageError: naming the pattern, and the nearest layers.
        """
        known = sorted(set(names))
        for pattern in self.layers:
            if not any(fnmatchcase(name, pattern) for name in known):
                near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.5) or known[:3]
                raise UsageError(
                    f"the quantisation configuration names an unknown layer {pattern!r}",
                    why=f"the graph has {len(known)} layers that can be named",
                    hint=", ".join(near) or None,
                )


def _one_of(what: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{what} is {value!r}", hint="one of " + ", ".join(allowed))


def _within(what: str, value: Any, above: float, most: float, words: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < value <= most:
        raise UsageError(f"{what} is {value!r}", hint=f"a number {words}")


__all__ = ["FLOAT", "OBSERVERS", "SCHEMES", "QuantConfig"]
