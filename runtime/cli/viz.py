"""`viz`: pictures of a graph, of its memory, or of the difference of two graphs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from capture.errors import CaptureError, UsageError
from capture.ir import Graph
from runtime.cli.folder import chosen_file, model_and_file
from runtime.cli.steps import chosen_level, load_model, machine_settings, optimize_model
from runtime.cli.terminal import Terminal

GRAPH_FILES = (".txt", ".safetensors")
KINDS = ("svg", "memory", "diff")


def command(terminal: Terminal, options: SimpleNamespace) -> int:
    """Draw one picture."""
    kind, path = wanted(options)
    import viz

    if kind == "diff":
        before, after = (read_graph(name) for name in options.diff)
        terminal.say("drawing")
        viz.diff(before, after, path)
    else:
        graph = graph_of(terminal, options, kind)
        terminal.say("drawing")
        draw: Any = viz.memory if kind == "memory" else viz.svg
        draw(graph, path)
    terminal.written.append(str(path))
    terminal.line(str(path))
    terminal.json({"files": terminal.written})
    return 0


def wanted(options: SimpleNamespace) -> tuple[str, Path]:
    """Which picture, and where: --svg FILE, --svg -o FILE, or -o FILE alone; likewise --memory and --diff.

    Raises:
        UsageError: two pictures, no model, or a place that takes no files.
    """
    kinds = [kind for kind in KINDS if getattr(options, kind) is not None] or ["svg"]
    if len(kinds) > 1:
        raise UsageError("--svg, --memory and --diff exclude each other", hint="one of them at a time")
    kind, file = kinds[0], None
    if kind != "diff":
        options.model, file = model_and_file(options.model, getattr(options, kind), ".svg")
    if (options.model is None) != (kind == "diff"):
        hint = "python -m capture viz --diff A B, or python -m capture viz MODEL --svg [FILE]"
        raise UsageError("--diff takes two graph files and no MODEL, the others a MODEL", hint=hint)
    if not file and not options.output and kind != "diff" and options.model.endswith(GRAPH_FILES):
        file = str(Path(options.model).with_suffix(".memory.svg" if kind == "memory" else ".svg"))
    return kind, chosen_file(options.model, file, options.output, picture_name(options, kind))


def picture_name(options: SimpleNamespace, kind: str) -> str:
    if kind == "svg":
        return "optimized.svg" if chosen_level(options) else "graph.svg"
    return f"{kind}.svg"


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
