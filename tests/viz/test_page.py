"""report.html: one file that asks for nothing from outside, and shows everything it was given."""

from __future__ import annotations

import base64
import re
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import viz
from capture import CaptureError, Graph
from capture.wording import human_size
from passes import ledger
from tests.viz.svgs import Picture

VOID = {"meta", "input"}
EVIL = '</script></title><script>alert("x" & 1)</script>\x00'


class Page(HTMLParser):
    """A parsed page: its tags, its text outside of scripts, and whether each tag that opens is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.html = text
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.words.append(data)

    def find(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        names = {key.replace("_", "-"): value for key, value in wanted.items()}
        return [a for t, a in self.tags if t == tag and all(a.get(k) == v for k, v in names.items())]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def data(small_resnet: tuple[Graph, Graph]) -> dict[str, Any]:
    captured, optimized = small_resnet
    plan = optimized.memory_plan
    rows = ledger(optimized)
    return {
        "model": "models.resnet:small",
        "title": "ResNet",
        "versions": {"python": "3.11", "torch": "2.13", "triton": None},
        "device": "cpu",
        "machine": {"cpu": "a processor", "cores": 2},
        "threads": 2,
        "dtype": "float32",
        "parameters": 100_000,
        "inputs": ["x [1, 3, 64, 64]"],
        "frontend": "torch.export (non-strict)",
        "frontend_attempts": [["torch.export (non-strict)", "captured"]],
        "nodes": {"captured": len(captured.nodes), "optimized": len(optimized.nodes)},
        "passes": [
            {"name": h.name, "seconds": h.seconds, "changed": h.changed, "nodes_before": h.nodes_before,
             "nodes_after": h.nodes_after, "stats": dict(h.stats), "notes": [f"{h.name} left <one> out"]}
            for h in optimized.history
        ],
        "memory": {"arena_bytes": plan.arena_bytes, "lower_bound_bytes": plan.lower_bound_bytes,
                   "naive_bytes": plan.naive_bytes, "measured_peak_bytes": 123_456, "timeline": None},
        "parity": {"ok": True, "error_vs_fp64": 3.1e-7, "eager_error_vs_fp64": 3.4e-7, "reason": ""},
        "latency_ms": {
            "eager": {"median": 31.2, "min": 30.0, "samples": [30.0, 31.2, 33.0]},
            "optimized": {"median": 19.0, "min": 18.5, "samples": [18.5, 19.0, 90.0]},
        },
        "speedup": 1.64,
        "speedup_interval": [1.58, 1.69],
        "breakeven_calls": 190,
        "backend": "aten",
        "candidates": [{"backend": "onnx", "milliseconds": None, "reason": "no such lowering"}],
        "seconds": {"capture": 1.9, "optimize": 0.4, "compile": 0.2},
        "captured_ops": [
            {"id": r.id, "op": r.op, "module": r.module, "file": r.file, "line": r.line, "fate": r.kind,
             "pass": r.pass_name, "reason": r.reason, "node": r.node}
            for r in rows
        ],
        "ops": [
            {"side": side, "name": "x", "op": op, "module": "conv1, bn1", "file": rows[0].file,
             "line": rows[0].line, "calls": 1, "microseconds": spent, "share": spent / 100}
            for side, op, spent in (("eager", "aten.conv2d", 40.0), ("optimized", "fusion.conv", 12.5))
        ],
        "files": ["report.json"],
        "warnings": ["model.onnx left out"],
    }  # fmt: skip


@pytest.fixture(scope="module")
def page(
    data: dict[str, Any], small_resnet: tuple[Graph, Graph], tmp_path_factory: pytest.TempPathFactory
) -> Page:
    path = tmp_path_factory.mktemp("page") / "report.html"
    text = viz.report(data, path, graphs=dict(zip(("captured", "optimized"), small_resnet, strict=True)))
    assert path.read_text() == text
    return Page(text)


def test_nothing_is_asked_for_from_outside(page: Page) -> None:
    assert not re.search(
        r"https?:|url\(|@import|\bimport\s*\(|fetch\(|XMLHttpRequest|<link|<iframe|<img", page.html
    )
    for _, attributes in page.tags:
        assert not {"src", "srcset", "action", "xlink:href"} & set(attributes)
        assert (attributes.get("href") or "#").startswith("#")


def test_numbers_at_the_head(page: Page, data: dict[str, Any]) -> None:
    nodes = f"{data['nodes']['captured']} → {data['nodes']['optimized']}"
    for words in (
        "ResNet", "models.resnet:small", "100.0 k parameters", "x [1, 3, 64, 64]", "a processor", "2 threads",
        "torch 2.13", "1.64 ×", "95% interval 1.58 to 1.69; pays for itself after 190 calls",
        "31.2 ms → 19 ms", "error against fp64: ours 3.1e-07, eager 3.4e-07", "agrees", "measured 123.5 kB",
        nodes, "capture 1.90 s, optimize 0.40 s, compile 0.20 s", "Note", "model.onnx left out",
        "no such lowering", "report.json",
    ):  # fmt: skip
        assert words in page.text
    assert "triton" not in page.text


def test_every_drawing_is_in_the_page(page: Page) -> None:
    (canvas,) = page.find("div", id="canvas")
    shown = {(canvas["data-which"], canvas["data-folding"])}
    shown |= {(t["data-which"], t["data-folding"]) for t in page.find("template")}
    assert shown == {(w, f) for w in ("captured", "optimized", "changes") for f in ("folded", "unfolded")}
    buttons = {b["data-value"] for b in page.find("button") if "data-value" in b}
    assert {"captured", "optimized", "changes", "folded", "unfolded"} <= buttons


def test_large_drawings_are_compressed_and_whole(resnet50: tuple[Graph, Graph], tmp_path: Path) -> None:
    graphs = dict(zip(("captured", "optimized"), resnet50, strict=True))
    page = Page(viz.report({"model": "m"}, tmp_path / "r.html", graphs=graphs))
    packed = {t["data-which"]: t["data-packed"] for t in page.find("template", data_folding="unfolded")}
    assert set(packed) == {"captured", "optimized", "changes"}
    text = zlib.decompress(base64.b64decode(packed["captured"] or "")).decode()
    assert text == viz.svg(resnet50[0], fold=False, title="ResNet, captured").replace(
        ' xmlns="http://www.w3.org/2000/svg"', ""
    )
    assert len(page.html) < 1_000_000


def test_every_captured_op_has_a_row_with_its_source(page: Page, data: dict[str, Any]) -> None:
    rows = [a["data-fate"] for a in page.find("tr") if "data-fate" in a]
    assert rows == [row["fate"] for row in data["captured_ops"]]
    assert "x = self.conv1(x)" in page.text
    fates = {b["data-value"] for b in page.find("button") if "data-value" in b}
    assert {row["fate"] for row in data["captured_ops"]} <= fates


def test_ops_of_both_sides_link_to_source_and_graph(page: Page) -> None:
    assert [a["data-side"] for a in page.find("tr") if "data-side" in a] == ["eager", "optimized"]
    assert {b["data-find"] for b in page.find("button", **{"class": "go"})} >= {"conv1"}
    assert "12.5" in page.text
    assert "40.0%" in page.text


def test_every_pass_has_a_row(page: Page, data: dict[str, Any]) -> None:
    for row in data["passes"]:
        assert row["name"] in page.text
        assert f"{row['name']} left <one> out" in page.text
    memory = data["passes"][-1]["stats"]
    assert f"arena {human_size(memory['arena_bytes'])}" in page.text


def test_hostile_text_is_text(tmp_path: Path) -> None:
    op = dict.fromkeys(("op", "module", "file", "name", "pass", "reason", "node"), EVIL) | {"line": 1}
    step = {
        "name": EVIL,
        "seconds": 1,
        "changed": True,
        "nodes_before": 1,
        "nodes_after": 1,
        "stats": {EVIL: EVIL},
        "notes": [EVIL],
    }
    report = dict.fromkeys(("model", "title", "backend", "dtype", "device"), EVIL) | {
        "frontend_attempts": [[EVIL, EVIL]],
        "warnings": [EVIL],
        "files": [EVIL],
        "inputs": [EVIL],
        "versions": {EVIL: EVIL},
        "captured_ops": [op | {"id": 0, "fate": "kept"}],
        "ops": [op | {"side": "eager", "calls": 1, "microseconds": 1.0, "share": 1.0}],
        "passes": [step],
        "parity": {"ok": False, "reason": EVIL},
        "candidates": [{"backend": EVIL, "milliseconds": 1.0, "reason": EVIL}],
    }
    page = Page(viz.report(report, tmp_path / "r.html", graphs={"captured": Graph(EVIL)}))
    assert len(page.find("script")) == 1
    assert page.text.count('<script>alert("x" & 1)</script>') > 10
    assert page.open == []


def test_a_report_with_nothing_but_a_name(tmp_path: Path) -> None:
    page = Page(viz.report({"model": "models.mlp"}, tmp_path / "r.html"))
    assert page.find("section", id="about")
    assert not page.find("section", id="graph")
    assert not page.find("section", id="memory")
    assert page.open == []


def test_null_stands_for_what_is_not_known(data: dict[str, Any], tmp_path: Path) -> None:
    empty = dict.fromkeys(data) | {"model": "m", "nodes": {"captured": 3, "optimized": 2}}
    page = Page(viz.report(empty, tmp_path / "r.html"))
    assert "3 → 2" in page.text


def test_the_plan_given_the_graphs_or_the_reports_own_is_drawn(
    small_resnet: tuple[Graph, Graph], tmp_path: Path
) -> None:
    optimized = small_resnet[1]
    given = viz.report({"model": "m"}, tmp_path / "a.html", plan=optimized.memory_plan)
    of_graph = viz.report({"model": "m"}, tmp_path / "b.html", graphs={"optimized": optimized})
    for text in (given, of_graph):
        section = re.search(r'<section id="memory">.*?(<svg.*?</svg>)', text, re.DOTALL)
        assert section
        assert (
            "Memory plan"
            in Picture(section[1].replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)).texts
        )


def test_the_same_bytes_each_time(
    data: dict[str, Any], page: Page, small_resnet: tuple[Graph, Graph], tmp_path: Path
) -> None:
    graphs = dict(zip(("captured", "optimized"), small_resnet, strict=True))
    assert viz.report(data, tmp_path / "r.html", graphs=graphs) == page.html


def test_jinja_missing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(CaptureError, match="needs jinja2"):
        viz.report({"model": "m"}, tmp_path / "r.html")
    assert not list(tmp_path.iterdir())


def test_a_busy_machine_shows_no_speedup(data: dict[str, Any], tmp_path: Path) -> None:
    busy = {**data, "speedup": None, "noisy": True, "noisy_reason": "machine busy: it differed by 25%"}
    page = Page(viz.report(busy, tmp_path / "report.html"))
    assert "too noisy to tell" in page.text
    assert "machine busy: it differed by 25%; minima 30 ms → 18.5 ms" in page.text
    assert "1.64 ×" not in page.text


def test_eager_that_is_kept_shows_once(data: dict[str, Any], tmp_path: Path) -> None:
    page = Page(viz.report({**data, "backend": "eager"}, tmp_path / "report.html"))
    assert "run by eager itself: speed-up 1.00 ×" in page.text
    assert "1.64 ×" not in page.text
