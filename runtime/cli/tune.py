"""`tune`: search int8 and pruning within an accuracy budget; say what was kept, what not, and why."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from types import SimpleNamespace

from rich.text import Text

import viz
from capture import capture
from capture.errors import UsageError
from capture.ir.serialize import write_aside
from passes.quantize import QuantConfig
from runtime.cli.account import milliseconds
from runtime.cli.folder import OutputFolder, default_folder
from runtime.cli.quantizing import samples
from runtime.cli.steps import dynamic_shapes, load_model, machine_settings, title_of
from runtime.cli.terminal import Terminal
from runtime.sensitivity import table
from runtime.tune import tune
from runtime.tuned import TuneResult, trial_table

__all__ = ["command"]


def command(terminal: Terminal, options: SimpleNamespace) -> int:
    """Search, tell, write the configuration; 1 where nothing keeps the budget."""
    with machine_settings(options):
        loaded = load_model(terminal, options)
        if not options.calibration and loaded.calibration_data is None:
            hint = "--calibration FILE.npz, or a function calibration_data() beside the factory"
            raise UsageError("tune needs calibration data", hint=hint)
        if loaded.kwargs:
            raise UsageError("tune takes models whose inputs are given by position")
        data = samples(options, loaded)
        config = QuantConfig.from_toml(options.quant_config) if options.quant_config else None
        folder = OutputFolder(options.output or default_folder(options.model), terminal)
        try:
            model = loaded.module
            if options.dynamic or options.frontend != "auto":
                terminal.say("capturing")
                model = capture(
                    model, loaded.args, dynamic_shapes=dynamic_shapes(options), frontend=options.frontend
                )
            result = tune(
                model,
                data,
                max_drop=options.max_drop,
                metric=loaded.evaluate,
                args=loaded.args,
                ratios=options.ratios,
                config=config,
                say=lambda phase, done, total: terminal.say(phase, done, total or None),
            )
        except BaseException:
            folder.withdraw()
            raise
    terminal.line(Text(options.model, style="bold"), title_of(loaded, options.model))
    terminal.print()
    tell(terminal, result)
    write(folder, result, options.model)
    terminal.print()
    terminal.files(f"{folder.path}/", terminal.written)
    terminal.json({"model": options.model, **result.to_dict(), "files": terminal.written})
    return 0 if result.met or result.closest is None else 1


def tell(terminal: Terminal, result: TuneResult) -> None:
    """Layers, candidates, what was taken back, and the verdict."""
    if result.layers:
        terminal.table(table(result.layers))
        terminal.print()
    terminal.table(trial_table(result))
    terminal.print()
    for undone in result.chosen.undone:
        terminal.line(undone.what, Text(undone.reason, style="dim"), label="undone")
    score = f"{result.score_name} {result.score_before:.4f} -> {result.score_after:.4f}"
    proxy = "a proxy: the module has no evaluate(fn) -> float" if result.proxy else ""
    terminal.line(score, Text(proxy, style="yellow"), label="score")
    chosen, baseline = result.chosen, result.baseline
    speed = Text("", style="green") if result.doubt else Text(f"{result.speedup:.2f}x", style="green")
    spent = f"{baseline.name} {milliseconds(baseline.ms)}", f"{chosen.name} {milliseconds(chosen.ms)}"
    terminal.line(*spent[: 1 + (chosen is not baseline)], speed, label="latency")
    if result.doubt:
        terminal.line(Text(result.doubt, style="yellow"), indent=11)
    closest = result.closest
    if closest is None:
        terminal.line(Text("nothing to quantise or to prune", style="yellow"), label="kept")
    elif not result.met:
        lost = f"{closest.name} loses {closest.drop:.2%}"
        told = f"nothing loses at most {result.max_drop:.2%}: the float model is kept; the closest, {lost}"
        terminal.line(Text(told, style="red"), label="kept")


def write(folder: OutputFolder, result: TuneResult, model: str) -> None:
    """The configuration to edit, the picture, and everything as JSON."""
    told = result.to_dict()
    folder.write("tuned.toml", lambda path: write_aside(path, configuration_text(path, result, model)))
    folder.write("tune.svg", lambda path: viz.tradeoff(told, path))
    folder.write("tune.json", lambda path: write_aside(path, json.dumps(told, indent=2) + "\n"))


def configuration_text(path: Path, result: TuneResult, model: str) -> str:
    """What was chosen, under the command that does it again."""
    made = result.configuration
    if made.quantize is None and made.prune is None:
        return "# the float model was kept: there is nothing to configure\n"
    flags = "" if made.quantize is None else f" --quantize int8 --quant-config {shlex.quote(str(path))}"
    flags += "" if made.prune is None else f" --prune {made.prune.method}:{made.prune.sparsity:g}"
    return f"# {result.chosen.name}; to do it again: python -m capture {model}{flags}\n\n{made.to_toml()}"
