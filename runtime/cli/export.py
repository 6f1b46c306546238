"""`export`: the model as ONNX, as a Python module, or its Triton kernels."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from capture.errors import UsageError
from capture.files import write_aside
from capture.ir import Graph
from passes import optimize
from runtime.cli.folder import OutputFolder, chosen_file, default_folder, model_and_file
from runtime.cli.steps import (
    chosen_level,
    disabled,
    load_model,
    machine_settings,
    optimize_model,
    title_of,
)
from runtime.cli.terminal import Terminal

DEFAULTS = {"onnx": "model.onnx", "python": "model.py"}


def command(terminal: Terminal, options: SimpleNamespace) -> int:
    """Capture, optimise if asked to, and write."""
    paths = wanted(options)
    with machine_settings(options):
        loaded = load_model(terminal, options)
        made = optimize_model(terminal, options, loaded, chosen_level(options))
        for kind, path in paths.items():
            terminal.say(f"writing {path}")
            if kind == "onnx":
                from codegen import onnx

                onnx.export(made.graph, path, opset=options.opset)
            else:
                from codegen import python

                write_aside(path, python.emit(made.graph, title=title_of(loaded, options.model)))
            terminal.written.append(str(path))
        if options.triton_folder is not None:
            write_kernels(terminal, made.captured, Path(options.triton_folder), options)
    terminal.line(made.captured.frontend, f"{len(made.captured.nodes)} -> {len(made.graph.nodes)} nodes")
    terminal.line(*terminal.written)
    terminal.json({"model": options.model, "nodes": len(made.graph.nodes), "files": terminal.written})
    return 0


def write_kernels(terminal: Terminal, captured: Graph, folder: Path, options: SimpleNamespace) -> None:
    """The kernels of the graph as it is optimised for a GPU."""
    from codegen import triton

    terminal.say(f"writing kernels to {folder}")
    passes = options.passes or triton.pipeline(chosen_level(options, default=2))
    graph = optimize(captured, passes=passes, disable=disabled(options))
    terminal.written += [str(path) for path in triton.emit(graph, OutputFolder(folder, terminal).path)]


def wanted(options: SimpleNamespace) -> dict[str, Path]:
    """What to write, and where: --onnx FILE, --onnx -o FILE, or -o FILE.onnx alone.

    Raises:
        UsageError: nothing is asked for, or -o names one file for two, or a place takes no files.
    """
    given = {kind: getattr(options, f"{kind}_file") for kind in DEFAULTS}
    asked = [kind for kind, file in given.items() if file is not None]
    if not asked and options.output:
        asked = [kind for kind, name in DEFAULTS.items() if options.output.endswith(Path(name).suffix)]
    if options.triton_folder is not None:
        if options.model is None and options.triton_folder:  # it has swallowed the MODEL
            options.model, options.triton_folder = options.triton_folder, ""
        if options.model is not None and not options.triton_folder:
            options.triton_folder = str(_kernels_folder(options, asked))
    elif not asked:
        what = f"-o {options.output} does not say what to write" if options.output else "nothing to write"
        raise UsageError(
            what, hint="--onnx [FILE], --python [FILE] or --triton [DIR], or -o FILE.onnx or FILE.py"
        )
    for kind in asked:
        options.model, given[kind] = model_and_file(options.model, given[kind], Path(DEFAULTS[kind]).suffix)
    if options.model is None:
        raise UsageError("missing argument 'MODEL'", hint="python -m capture export MODEL --onnx FILE")
    homeless = [kind for kind in asked if not given[kind]]
    if options.output and len(homeless) > 1 and Path(options.output).suffix:
        raise UsageError(
            f"-o {options.output} names one file for two", hint="--onnx FILE --python FILE, or -o DIR"
        )
    return {kind: chosen_file(options.model, given[kind], options.output, DEFAULTS[kind]) for kind in asked}


def _kernels_folder(options: SimpleNamespace, asked: list[str]) -> Path:
    """Where --triton without a DIR writes: the folder that -o names, beside other files in one of its own."""
    output = Path(options.output or "")
    if not options.output or output.suffix in {Path(name).suffix for name in DEFAULTS.values()}:
        return default_folder(options.model) / "kernels"
    return output / "kernels" if asked else output
