"""`export`: the model as ONNX or as a Python module."""

from __future__ import annotations

from types import SimpleNamespace

import click

from capture.errors import UsageError
from capture.ir.serialize import write_aside
from runtime.cli.folder import writable_file
from runtime.cli.options import MODEL, OPTIMIZE, make_command
from runtime.cli.steps import chosen_level, load_model, machine_settings, optimize_model, title_of
from runtime.cli.terminal import Terminal

FILES = (
    click.option("--onnx", "onnx_file", metavar="FILE", help="write an ONNX model"),
    click.option(
        "--opset",
        metavar="N",
        type=click.IntRange(min=1),
        default=23,
        show_default=True,
        help="of the ONNX model",
    ),
    click.option(
        "--python", "python_file", metavar="FILE", help="write a Python module that needs PyTorch alone"
    ),
)


@make_command("export", (MODEL, OPTIMIZE, FILES))
def command(terminal: Terminal, options: SimpleNamespace) -> int:
    """Write MODEL as ONNX or as a Python module: as captured, or with --optimize as optimised."""
    if not (options.onnx_file or options.python_file):
        raise UsageError("nothing to write", hint="--onnx FILE or --python FILE")
    paths = {kind: writable_file(name) for kind, name in wanted(options).items()}
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
    terminal.line(made.captured.frontend, f"{len(made.captured.nodes)} -> {len(made.graph.nodes)} nodes")
    terminal.line(*terminal.written)
    terminal.json({"model": options.model, "nodes": len(made.graph.nodes), "files": terminal.written})
    return 0


def wanted(options: SimpleNamespace) -> dict[str, str]:
    given = {"onnx": options.onnx_file, "python": options.python_file}
    return {kind: name for kind, name in given.items() if name}
