"""`viz`: pictures of a graph, of its memory, or of the difference of two graphs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from capture.errors import CaptureError, UsageError
from capture.ir import Graph
from runtime.cli.folder import default_folder, writable_file
from runtime.cli.options import MODEL, OPTIMIZE, make_command
from runtime.cli.steps import chosen_level, load_model, machine_settings, optimize_model
from runtime.cli.terminal import Terminal

GRAPH_FILES = (".txt", ".safetensors")
PICTURES = (
    click.option(
        "--svg", is_flag=True, help="the graph (the default): as captured, or with --optimize optimised"
    ),
    click.option("--memory", is_flag=True, help="the memory timeline of the optimised graph"),
    click.option(
        "--diff", nargs=2, metavar="A B", help="what differs between two graph files; takes no MODEL"
    ),
    click.option("-o", "--output", metavar="FILE", help="the picture  [default: in capture-out/<model>]"),
)
OPTIONAL_MODEL = (click.argument("model", metavar="[MODEL]", required=False), *MODEL[1:])


@make_command("viz", (OPTIONAL_MODEL, OPTIMIZE, PICTURES))
def command(terminal: Terminal, options: SimpleNamespace) -> int:
    """Draw MODEL's graph, its memory, or the difference of two graphs, as SVG.

    MODEL may also be a graph that was saved: a graph.txt or a .safetensors file. So are A and B of --diff.
    """
    kinds = [kind for kind in ("svg", "memory", "diff") if getattr(options, kind)] or ["svg"]
    if len(kinds) > 1:
        raise UsageError("--svg, --memory and --diff exclude each other", hint="one of them at a time")
    if (options.model is None) != (kinds == ["diff"]):
        raise UsageError("--diff takes two graph files and no MODEL, the others a MODEL", hint="viz --help")
    path = writable_file(options.output or default_picture(options, kinds[0]))
    import viz

    if kinds == ["diff"]:
        before, after = (read_graph(name) for name in options.diff)
        terminal.say("drawing")
        viz.diff(before, after, path)
    else:
        graph = graph_of(terminal, options, kinds[0])
        terminal.say("drawing")
        draw: Any = viz.memory if kinds == ["memory"] else viz.svg
        draw(graph, path)
    terminal.written.append(str(path))
    terminal.line(str(path))
    terminal.json({"files": terminal.written})
    return 0


def default_picture(options: SimpleNamespace, kind: str) -> Path:
    if kind == "diff":
        return Path("diff.svg")
    if options.model.endswith(GRAPH_FILES):
        return Path(options.model).with_suffix(".memory.svg" if kind == "memory" else ".svg")
    name = "memory.svg" if kind == "memory" else "optimized.svg" if chosen_level(options) else "graph.svg"
    return default_folder(options.model) / name


def graph_of(terminal: Terminal, options: SimpleNamespace, kind: str) -> Graph:
    """MODEL's graph, from a file or by capture; the memory picture needs the plan of level 2."""
    if options.model.endswith(GRAPH_FILES):
        graph = read_graph(options.model)
        if kind == "memory":
            from passes import optimize

            graph = optimize(graph, passes=["memory"])
        return graph
    with machine_settings(options):
        level = chosen_level(options, default=2 if kind == "memory" else 0)
        return optimize_model(terminal, options, load_model(terminal, options), level).graph


def read_graph(name: str) -> Graph:
    """A graph from its text or from what `graph.save` wrote.

    Raises:
        UsageError: there is no such file.
        CaptureError: the file is corrupt, or no graph.
    """
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"there is no file {name}", hint="capture-out/<model>/graph.txt, which a run writes")
    if path.suffix == ".safetensors":
        return Graph.load(path)
    try:
        return Graph.parse(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise CaptureError(f"{name} is not the text of a graph", why=str(error)) from error
    except CaptureError as error:
        raise CaptureError(
            f"{name} is not the text of a graph: {error.what}",
            where=error.where,
            why=error.why,
            hint=error.hint,
        ) from error
