"""The files of the output folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from capture.errors import CaptureError
from capture.ir import Graph
from capture.ir.serialize import write_aside
from capture.wording import human_size
from runtime.cli.folder import OutputFolder
from runtime.cli.terminal import Terminal
from runtime.compare import Parity
from runtime.compile import Compiled
from runtime.profile import Profile, chrome_trace
from runtime.report import Report

__all__ = ["Files"]

NOT_RIGHT = "not right: "  # how `auto` begins the reason of a backend whose results it has refused
MOST_ONNX_BYTES = 100_000_000  # of weights: more of them are written only where asked for


class Files:
    """Writes what applies, and notes what could not be written and why.

    Attributes:
        report: the report, with the names of the files and the warnings in it.
        warnings: a line for each file that was left out.
        refused: the error of a file that was asked for and cannot be made.
    """

    def __init__(
        self,
        terminal: Terminal,
        folder: OutputFolder,
        compiled: Compiled,
        profiles: Mapping[str, Profile],
        parity: Parity,
    ) -> None:
        self._terminal, self._folder = terminal, folder
        self._compiled, self._profiles, self._parity = compiled, profiles, parity
        self.warnings: list[str] = []
        self.refused: CaptureError | None = None

    def write(self, report: Report, wanted: Sequence[str], *, asked: bool) -> None:
        """Write everything; what was `asked` for by name, and not only by default, must succeed."""
        captured, graph = self._compiled.captured, self._compiled.graph
        optimized = bool(graph.history)
        self._text("graph.txt", str(captured))
        if optimized:
            self._text("optimized.txt", str(graph))
        self._folder.write("trace.json", lambda path: chrome_trace(path, self._profiles))
        if "python" in wanted:
            self._try("model.py", self._python, asked)
            if self._compiled.backend == "triton":
                self._kernels()
        if "onnx" in wanted and (asked or self._is_small("model.onnx")):
            self._try("model.onnx", self._onnx, asked)
        if "svg" in wanted:
            self._pictures(captured, graph if optimized else None, asked)
        names = [*self._terminal.written, *(["report.html"] if "html" in wanted else []), "report.json"]
        self.report = report.with_(files=names, warnings=self.warnings)
        if "html" in wanted:
            self._folder.write("report.html", lambda path: self._html(path, captured, graph))
        self._folder.write("report.json", self.report.save)

    def _text(self, name: str, text: str) -> None:
        self._folder.write(name, lambda path: write_aside(path, text))

    def _try(self, name: str, writer: Callable[[Path], Any], asked: bool) -> None:
        """Write a file that not every graph has a form for."""
        try:
            self._folder.write(name, writer)
        except CaptureError as error:
            self.warnings.append(f"{name} left out: {str(error).splitlines()[0]}")
            if asked:
                self.refused = error

    def _is_small(self, name: str) -> bool:
        tensors = [c.tensor for c in self._compiled.graph.constants.values() if c.tensor is not None]
        weights = sum(t.numel() * t.element_size() for t in tensors)
        if weights > MOST_ONNX_BYTES:
            self.warnings.append(f"{name} left out: {human_size(weights)} of weights (--emit onnx writes it)")
        return weights <= MOST_ONNX_BYTES

    def _problem(self, backend: str, name: str) -> str:
        """Why what a backend's code computes is not right, as far as it was judged; also a warning."""
        reasons = [c.reason for c in self._compiled.candidates if c.backend == backend]
        wrong = next((r.removeprefix(NOT_RIGHT) for r in reasons if r.startswith(NOT_RIGHT)), "")
        problem = wrong or ("" if self._parity.ok else self._parity.reason)
        if problem:
            self.warnings.append(f"{name} is marked as not right")
        return problem

    def _python(self, path: Path) -> None:
        from codegen import python

        source = self._compiled.source
        text = python.emit(self._compiled.graph) if source is None else source
        problem = self._problem("aten", path.name)
        write_aside(path, f"# WARNING: its results are not right: {problem}\n{text}" if problem else text)

    def _kernels(self) -> None:
        """What model.py imports."""
        from codegen.triton.writing import files

        (self._folder.path / "kernels").mkdir(exist_ok=True)
        for name, file in sorted(files(self._compiled.graph).items()):
            self._text(f"kernels/{name}.py", file.source)

    def _onnx(self, path: Path) -> None:
        from codegen import onnx

        problem = self._problem("onnx", path.name)
        onnx.export(self._compiled.graph, path)
        if problem:
            mark_onnx(path, f"WARNING: its results are not right: {problem}")

    def _pictures(self, captured: Graph, optimized: Graph | None, asked: bool) -> None:
        import viz

        self._try("graph.svg", lambda path: viz.svg(captured, path), asked)
        if optimized is None:
            return
        self._try("optimized.svg", lambda path: viz.svg(optimized, path), asked)
        if optimized.memory_plan is not None:
            self._try("memory.svg", lambda path: viz.memory(optimized, path), asked)

    def _html(self, path: Path, captured: Graph, graph: Graph) -> None:
        import viz

        viz.report(
            self.report, path, graphs={"captured": captured, "optimized": graph}, plan=graph.memory_plan
        )


def mark_onnx(path: Path, warning: str) -> None:
    """Write a warning into a model's documentation and metadata, where viewers show it."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    model.doc_string = "\n".join(filter(None, (warning, model.doc_string)))
    model.metadata_props.add(key="warning", value=warning)
    write_aside(path, model.SerializeToString())
