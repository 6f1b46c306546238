"""What tuning found: the configuration that repeats it, each candidate it looked at, and the result."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capture.errors import UsageError
from passes.pruning.prune import Prune, PruneConfig
from passes.quantize import QuantConfig
from runtime.compile import Compiled
from runtime.sensitivity import LayerRow

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Configuration", "Trial", "TuneResult", "Undone", "pareto", "trial_table"]


@dataclass(frozen=True)
class Configuration:
    """What is done to a float model; nothing where both are None.

    Attributes:
        quantize: int8, and which layers stay float.
        prune: what is removed first.
    """

    quantize: QuantConfig | None = None
    prune: Prune | None = None

    def to_toml(self) -> str:
        """The text that `from_toml` reads back: the keys of `QuantConfig`, then a table [prune]."""
        text = "" if self.quantize is None else self.quantize.to_toml()
        if self.prune is None:
            return text
        made, config = self.prune, self.prune.config
        lines = ["[prune]", f'method = "{made.method}"', f"sparsity = {float(made.sparsity)}"]
        if config.exclude:
            lines.append("exclude = [" + ", ".join(f'"{name}"' for name in config.exclude) + "]")
        lines += ["", "[prune.ratios]"] if config.ratios else []
        lines += [f'"{name}" = {float(ratio)}' for name, ratio in config.ratios.items()]
        return "\n".join([*([text] if text else []), *lines]) + "\n"

    @staticmethod
    def from_toml(path: str | Path) -> Configuration:
        """Read what `to_toml` wrote, perhaps edited since. A file without [prune] is a `QuantConfig`'s.

        Raises:
            UsageError: the file cannot be read, a key is unknown, or a value is not one of those allowed.
        """
        try:
            given = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"cannot read {path}", why=error.strerror) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is no TOML", why=str(error)) from error
        table = given.pop("prune", None)
        known = [f.name for f in fields(QuantConfig)]
        unknown = next((key for key in given if key not in known), None)
        if unknown is not None:
            hint = "one of " + ", ".join([*known, "prune"])
            raise UsageError(f"{path}: there is no setting {unknown!r}", hint=hint)
        prune = None if table is None else _prune_from(path, table)
        return Configuration(QuantConfig(**given) if given else None, prune)


def _prune_from(path: str | Path, table: Any) -> Prune:
    known = {"method": str, "sparsity": (int, float), "exclude": list, "ratios": Mapping}
    if not isinstance(table, Mapping):
        raise UsageError(f"{path}: prune is no table", hint='[prune]\nmethod = "channels"\nsparsity = 0.3')
    for key, value in table.items():
        if key not in known:
            raise UsageError(f"{path}: [prune] has no setting {key!r}", hint="one of " + ", ".join(known))
        if not isinstance(value, known[key]) or isinstance(value, bool):  # type: ignore[arg-type]
            raise UsageError(f"{path}: [prune] {key} is {value!r}")
    ratios = table.get("ratios", {})
    for name, ratio in ratios.items():
        if not isinstance(ratio, int | float) or isinstance(ratio, bool):
            raise UsageError(f"{path}: [prune.ratios] {name} is {ratio!r}", hint="0.3 removes 30%")
    config = PruneConfig(exclude=tuple(table.get("exclude", ())), ratios=ratios)
    return Prune(table.get("method", "channels"), table.get("sparsity", 0.0), config)


@dataclass(frozen=True)
class Undone:
    """Something that was tried and taken back: a layer, or a whole candidate."""

    what: str
    reason: str


@dataclass(frozen=True)
class Trial:
    """One candidate that was looked at.

    Attributes:
        score, drop: by the metric or its stand-in, and what is lost against the float model.
        ms: the median call.
        parameters, flops: of the graph; flops is None where a size is not known.
        met: it keeps the budget.
        kept: it is the one chosen.
        reason: why it is not.
        undone: layers of it that were taken back.
    """

    name: str
    configuration: Configuration
    score: float
    drop: float
    met: bool
    parameters: int = 0
    flops: int | None = None
    ms: float = math.nan
    kept: bool = False
    reason: str = ""
    undone: tuple[Undone, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For JSON: what is not finite is None."""
        row = {k: v for k, v in vars(self).items() if k not in ("configuration", "undone")}
        finite = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in row.items()}
        return {**finite, "undone": [asdict(u) for u in self.undone]}


def pareto(trials: Sequence[Trial]) -> list[Trial]:
    """Those that no other beats in both latency and drop, the fastest first."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.ms, t.drop, t.name)):
        if not front or trial.drop < front[-1].drop:
            front.append(trial)
    return front


@dataclass(frozen=True)
class TuneResult:
    """What `runtime.tune` found. Call it as the model was called.

    Attributes:
        compiled: the candidate chosen, compiled; the float model where none is worth it.
        configuration: what was done to get there.
        trials: all candidates: "eager" (where a module was given), "float", and the others as they were made.
        layers: what int8 costs and brings, layer by layer, in the float model.
        score_name, proxy: what scores are, and whether they only stand in for a metric of the task.
        score_before, score_after: of the float model and of `compiled`.
        met: some candidate keeps the budget; False means that the float model was returned for want of one.
        doubt: why the machine was too busy for the latencies to be a verdict; empty where it was not.
    """

    compiled: Compiled
    configuration: Configuration
    trials: tuple[Trial, ...]
    layers: tuple[LayerRow, ...]
    score_name: str
    proxy: bool
    score_before: float
    score_after: float
    max_drop: float
    met: bool
    doubt: str = ""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.compiled(*args, **kwargs)

    @property
    def chosen(self) -> Trial:
        return next(trial for trial in self.trials if trial.kept)

    @property
    def baseline(self) -> Trial:
        """Eager, or the float graph where no module was given."""
        return self.trials[0]

    @property
    def speedup(self) -> float:
        return self.baseline.ms / self.chosen.ms

    @property
    def closest(self) -> Trial | None:
        """The candidate that loses least, of those that are not float."""
        others = [t for t in self.trials if t.configuration != Configuration()]
        return min(others, key=lambda t: (t.drop, t.ms), default=None)

    @property
    def front(self) -> list[Trial]:
        """The Pareto front of latency and drop."""
        return pareto(self.trials)

    @property
    def undone(self) -> list[Undone]:
        """What was tried and taken back: layers of the candidate chosen, and the other candidates."""
        others = [Undone(t.name, t.reason) for t in self.trials if t.reason]
        return [*self.chosen.undone, *others]

    def to_dict(self) -> dict[str, Any]:
        return {
            "score": {
                "name": self.score_name, "proxy": self.proxy,
                "before": self.score_before, "after": self.score_after,
            },
            "max_drop": self.max_drop,
            "met": self.met,
            "chosen": self.chosen.name,
            "speedup": None if self.doubt else self.speedup,
            "noisy_reason": self.doubt or None,
            "baseline": self.baseline.name,
            "trials": [trial.to_dict() for trial in self.trials],
            "front": [trial.name for trial in self.front],
            "undone": [asdict(u) for u in self.undone],
            "layers": [row.to_dict() for row in self.layers],
            "configuration": self.configuration.to_toml(),
        }  # fmt: skip


def trial_table(result: TuneResult) -> Table:
    """All candidates as a table for rich; * marks the Pareto front."""
    from rich.table import Table

    made, front = Table(box=None, pad_edge=False, header_style="dim"), result.front
    made.add_column("candidate", overflow="fold")
    for name in ("latency", "speed", "score", "drop", "weights"):
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column("")
    for trial in result.trials:
        made.add_row(
            trial.name + " *" * (trial in front),
            f"{trial.ms:.3g} ms",
            f"{result.baseline.ms / trial.ms:.2f}x",
            f"{trial.score:.4f}",
            f"{trial.drop:.2%}",
            f"{trial.parameters:,}",
            "chosen" if trial.kept else trial.reason,
            style="bold" if trial.kept else None,
        )
    return made
