"""Dynamic sizes: every way to write them, their names and ranges in the graph, and sizes of one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ShapesCollection

from capture import CaptureError, Graph, capture
from capture.errors import UsageError
from capture.frontends.dynamic import flat_axes, grow
from tests.capture.cases import check_against_eager

FRONTENDS = ["export", "dispatch"]


class Pair(nn.Module):
    """Two inputs with a size in common, one of them in a dict."""

    def forward(self, x: Tensor, other: dict[str, Tensor]) -> Tensor:
        return x + other["y"].sum(1)


class Halves(nn.Module):
    """Takes twice as many rows as it gives."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x.reshape(-1, 2, 4).sum(1) + y


class Free(nn.Module):
    """Takes whatever it is given."""

    def forward(self, *xs: Tensor, **named: Tensor) -> Tensor:
        return sum(x.sum(0) for x in (*xs, *named.values()))  # type: ignore[return-value]


def signature(graph: Graph) -> str:
    return str(graph).splitlines()[0]


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("rows", [1, 4])
def test_a_size_that_inputs_share(frontend: str, rows: int) -> None:
    batch = Dim("batch", min=1, max=32)
    shapes = {"x": {0: batch}, "other": {"y": {0: batch, 1: Dim("width", min=2)}}}
    args = (torch.ones(rows, 4), {"y": torch.ones(rows, 3, 4)})
    graph = capture(Pair(), args, dynamic_shapes=shapes, frontend=frontend)
    assert signature(graph) == (
        "graph(%x: f32[batch, 4], %other_y: f32[batch, width, 4]) where batch in [1, 32], width in [2, inf]"
    )
    for n, m in ((1, 5), (7, 2)):
        check_against_eager(graph, Pair(), (torch.randn(n, 4), {"y": torch.randn(n, m, 4)}))


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("rows", [1, 3])
def test_a_size_derived_from_another(frontend: str, rows: int) -> None:
    half = Dim("half", min=1, max=16)
    args = (torch.ones(2 * rows, 4), torch.ones(rows, 4))
    graph = capture(Halves(), args, dynamic_shapes=({0: 2 * half}, {0: half}), frontend=frontend)
    assert signature(graph) == "graph(%x: f32[2*half, 4], %y: f32[half, 4]) where half in [1, 16]"
    for n in (1, 5):
        check_against_eager(graph, Halves(), (torch.randn(2 * n, 4), torch.randn(n, 4)))


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize(
    "dim", [Dim.DYNAMIC, Dim.AUTO, Dim.DYNAMIC(min=2, max=9)], ids=["dynamic", "auto", "bounds"]
)
def test_hints_get_a_readable_name(frontend: str, dim: Any) -> None:
    graph = capture(
        nn.ReLU(), (torch.ones(3, 4),), dynamic_shapes=({0: dim, 1: Dim.STATIC},), frontend=frontend
    )
    upper = "9" if getattr(dim, "max", None) else "inf"
    assert signature(graph) == f"graph(%input: f32[input_dim0, 4]) where input_dim0 in [2, {upper}]"
    check_against_eager(graph, nn.ReLU(), (torch.randn(8, 4),))


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_every_axis_of_a_list_and_a_collection(frontend: str) -> None:
    rows, x = Dim("rows", min=2, max=9), torch.ones(3, 4)
    collection = ShapesCollection()
    collection[x] = {0: rows}
    for shapes in (
        ([rows, None],),
        ((rows, None),),
        {"input": (rows, None)},
        {"input": {-2: rows}},
        collection,
    ):
        graph = capture(nn.ReLU(), (x,), dynamic_shapes=shapes, frontend=frontend)
        assert signature(graph) == "graph(%input: f32[rows, 4]) where rows in [2, 9]"


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_inputs_in_a_row(frontend: str) -> None:
    shapes = {"xs": ({0: Dim("rows", min=1, max=9)}, None)}
    args = (torch.ones(1, 4), torch.ones(2, 4))
    graph = capture(Free(), args, dynamic_shapes=shapes, frontend=frontend)
    assert [v.name for v in graph.inputs] == ["xs_0", "xs_1"]
    check_against_eager(graph, Free(), (torch.randn(6, 4), torch.randn(2, 4)))


@pytest.mark.parametrize("key", ["named", "flat"])
def test_inputs_by_any_name(key: str) -> None:
    """torch.export has no place for their shapes; the ladder goes on to a front end that has."""
    varying = {"z": {0: Dim("more", min=2)}}
    shapes = {"xs": (None,)} | ({"named": varying} if key == "named" else varying)
    graph = capture(Free(), (torch.ones(1, 4),), {"z": torch.ones(5, 4)}, dynamic_shapes=shapes)
    assert graph.frontend == "dispatch tracing"
    assert [name for name, _ in graph.attempts] == [
        "torch.export (non-strict)", "torch.export (strict)", "torch.fx", "dispatch tracing"
    ]  # fmt: skip
    check_against_eager(graph, Free(), (torch.randn(1, 4),), {"z": torch.randn(3, 4)})


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize(("name", "shown"), [("lambda_", "lambda_"), ("u0", "u0_"), ("min", "dim_min")])
def test_names_that_mean_something_else_in_the_text(frontend: str, name: str, shown: str) -> None:
    graph = capture(
        nn.ReLU(), (torch.ones(3, 4),), dynamic_shapes=({0: Dim(name, min=2)},), frontend=frontend
    )
    assert list(graph.dims) == [shown]
    check_against_eager(graph, nn.ReLU(), (torch.randn(8, 4),))


def test_inputs_left_out_do_not_vary() -> None:
    args = (torch.ones(3, 4), {"y": torch.ones(3, 2, 4)})
    with pytest.raises(CaptureError, match="batch"):  # the other input fixes it
        capture(Pair(), args, dynamic_shapes={"x": {0: Dim("batch", min=2, max=9)}})


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_a_size_that_the_code_fixes(frontend: str) -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.ones(3, 1)

    with pytest.raises(CaptureError) as caught:
        capture(
            Fixed(), (torch.ones(3, 4),), dynamic_shapes=({0: Dim("rows", min=2, max=9)},), frontend=frontend
        )
    text = str(caught.value)
    assert "rows" in text
    if frontend == "dispatch":
        assert "return x + torch.ones(3, 1)" in text
        assert "the size rows cannot vary as asked" in text


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_channels_that_a_convolution_fixes(frontend: str) -> None:
    shapes = ({1: Dim("channels", min=2, max=9)},)
    with pytest.raises(CaptureError, match="channels"):
        capture(nn.Conv2d(3, 4, 3), (torch.ones(2, 3, 8, 8),), dynamic_shapes=shapes, frontend=frontend)


def test_sizes_of_one_are_repeated_not_invented() -> None:
    batch = Dim("batch", min=1, max=8)
    x, ids = torch.tensor([[5.0, 6.0]]), torch.tensor([7])
    axes = flat_axes(Free(), (x, ids), {}, {"xs": ({0: batch}, {0: batch})})
    (grown_x, grown_ids), _ = grow((x, ids), {}, axes)
    assert grown_x.tolist() == [[5.0, 6.0], [5.0, 6.0]]
    assert grown_ids.tolist() == [7, 7]
    (same, _), _ = grow((x, ids), {}, [{}, {}])
    assert same is x


@pytest.mark.parametrize(
    "shapes",
    [
        {"other": {0: Dim("n")}, "x": {9: Dim("n")}},
        {"x": {0: 3.5}},
        {"z": None, "x": None},
        {"other": [None, None]},
    ],
)
def test_malformed_shapes_are_usage_errors(shapes: Any) -> None:
    with pytest.raises(UsageError):
        capture(Pair(), (torch.ones(3, 4), {"y": torch.ones(3, 2, 4)}), dynamic_shapes=shapes)
