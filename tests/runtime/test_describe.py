"""A model in a line: parameters, dtype, inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from capture import capture
from runtime.describe import count_parameters, describe_inputs, graph_inputs, main_dtype


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2).bfloat16()
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("steps", torch.zeros(100))

    def forward(self, x: Tensor, *more: Tensor, mask: Tensor | None = None, **named: Tensor) -> Tensor:
        return self.linear(x) * self.scale


def test_parameters_are_counted_without_buffers() -> None:
    model = Mixed()
    assert count_parameters(model) == 4 * 2 + 2 + 1
    assert main_dtype(model) == "bfloat16"


def test_a_model_without_parameters_has_the_dtype_of_its_inputs() -> None:
    assert main_dtype(nn.ReLU(), (torch.zeros(2, dtype=torch.float64),)) == "float64"
    assert main_dtype(nn.ReLU(), (torch.zeros(2, dtype=torch.int64),)) == ""


def test_inputs_have_the_names_that_the_model_gives_them() -> None:
    x, y = torch.zeros(1, 4), torch.zeros(3, dtype=torch.int64)
    assert describe_inputs(Mixed(), (x, y, y), {"mask": y, "other": x}) == [
        "x [1, 4]",
        "mask [3] i64",
        "more[0] [3] i64",
        "more[1] [3] i64",
        "other [1, 4]",
    ]


def test_nested_inputs_and_plain_values() -> None:
    def model(pair: tuple[Tensor, Tensor], times: int) -> Tensor:
        return pair[0] * times

    x = torch.zeros(2)
    assert describe_inputs(model, ((x, x), 3), {}) == ["pair[0] [2]", "pair[1] [2]", "times=3"]
    assert describe_inputs(max, (x, x), {}) == ["arg0 [2]", "arg1 [2]"]


def test_graphs_and_exported_programs() -> None:
    model, x = nn.Linear(4, 2).eval(), torch.zeros(3, 4)
    graph = capture(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=8)},))
    assert graph_inputs(graph) == ["input [batch, 4]"]
    assert count_parameters(graph) == 10
    program = torch.export.export(model, (x,))
    assert describe_inputs(program, (x,), {}) == ["input [3, 4]"]
    assert (count_parameters(program), main_dtype(program)) == (10, "float32")
