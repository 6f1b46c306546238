"""Structures of arguments and results: what is saved, what is left out, and that none runs code."""

from __future__ import annotations

import collections
import enum
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from capture.ir import Graph
from capture.ir.specs import dump_spec, load_spec


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "graph.ctg"


class Config(enum.Enum):
    A = 1


class Box:
    def __init__(self, *inner: Any) -> None:
        self.inner = inner


pytree.register_pytree_node(Box, lambda b: (list(b.inner), None), lambda values, _: Box(*values))
Point = collections.namedtuple("Point", "x y")


@pytest.mark.parametrize(
    "tree",
    [
        Box(1, 2),
        {Config.A: 1, "b": 2},
        {(1, 2): 1, "b": 2},
        collections.defaultdict(lambda: 0, a=1, b=2),
        Point(1, 2),
        [Box(1), 2],
    ],
)
def test_structures_that_cannot_be_read_back_safely_are_left_out(tree: Any, path: Path) -> None:
    graph = Graph.parse("graph(%x: f32[2], %y: f32[2])\n  return %x, %y\n")
    _, graph.out_spec = pytree.tree_flatten(tree)
    _, graph.in_spec = pytree.tree_flatten(((1, 2), {}))
    graph.save(path)
    loaded = Graph.load(path)
    assert loaded.out_spec is None
    assert loaded.in_spec == graph.in_spec
    assert len(loaded.run(torch.ones(2), torch.ones(2))) == 2


@pytest.mark.parametrize(
    "tree",
    [
        None,
        (1, [2, {"a": 3, 4: (5, None)}], ()),
        collections.OrderedDict(a=1, b=[2]),
        collections.defaultdict(list, a=1),
        collections.deque([1, 2], maxlen=3),
        torch.Size([1, 2]),
    ],
)
def test_common_structures_round_trip(tree: Any) -> None:
    _, spec = pytree.tree_flatten(tree)
    assert load_spec(dump_spec(spec)) == spec
    assert dump_spec(None) == ""
    assert load_spec("") is None


LEAF = {"type": None, "context": None, "children_spec": []}
EVIL_ENUM = json.dumps({"__enum__": True, "fqn": "evil:Thing", "name": "A"})
EVIL = [
    [1, {"type": "builtins.dict", "context": json.dumps([json.loads(EVIL_ENUM)]), "children_spec": [LEAF]}],
    [1, {"type": "builtins.dict", "context": '[{"\\u005f_enum__": 1, "fqn": "evil:T", "name": "A"}]',
         "children_spec": [LEAF]}],
    [1, {"type": "collections.defaultdict", "children_spec": [LEAF], "context": {
        "default_factory_module": "evil", "default_factory_name": "f", "dict_context": ["a"]}}],
    [1, {"type": "collections.defaultdict", "children_spec": [LEAF], "context": {
        "default_factory_module": "builtins", "default_factory_name": "exec", "dict_context": ["a"]}}],
    [1, {"type": "builtins.tuple", "context": "null", "children_spec": [
        {"type": "builtins.dict", "context": json.dumps([json.loads(EVIL_ENUM)]), "children_spec": [LEAF]}]}],
]  # fmt: skip


@pytest.mark.parametrize("spec", EVIL)
def test_no_structure_imports_a_module(spec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="is not loaded"):
        load_spec(json.dumps(spec))


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[1]",
        "[1, 2]",
        '[9, {"type": null, "context": null, "children_spec": []}]',
        "nonsense",
        "[1, {}]",
    ]
    + ['[1, {"type": "no.Such", "context": "null", "children_spec": []}]']
    + ['[1, {"children_spec": [3]}]', '[1, {"children_spec": []}]'],
)
def test_what_is_no_structure(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        load_spec(text)
