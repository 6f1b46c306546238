"""fold-batch-norm: each layer that takes a norm, and each guard."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from capture import capture
from capture.ir import Graph
from passes import optimize
from tests.passes.golden import check, parse
from tests.random_graphs import Case, assert_same_results

NAME = "fold-batch-norm"
aten = torch.ops.aten

CONSTANTS = """
  @conv1.weight: f32[4, 3, 3, 3]
  @conv1.bias: f32[4]
  @bn1.weight: f32[4]
  @bn1.bias: f32[4]
  @bn1.running_mean: f32[4]
  @bn1.running_var: f32[4]
""".strip("\n")
CONV = "%0: f32[2, 4, 6, 6] = aten.conv2d(%x, @conv1.weight, @conv1.bias, [1, 1], [1, 1])"
NORM = (
    "%1: f32[2, 4, 6, 6], %2: f32[0], %3: f32[0] = aten._native_batch_norm_legit_no_training"
    "(%0, @bn1.weight, @bn1.bias, @bn1.running_mean, @bn1.running_var, 0.1, 1e-05)"
)


def graph(
    *lines: str, constants: str = CONSTANTS, returns: str = "%4", signature: str = "%x: f32[2, 3, 6, 6]"
) -> str:
    return "\n".join(
        [f"graph({signature})", constants, *(f"  {line}" for line in lines), f"  return {returns}"]
    )


def test_the_golden_text() -> None:
    check(
        graph(CONV, NORM, "%4: f32[2, 4, 6, 6] = aten.relu(%1)"),
        NAME,
        graph(
            "%0: f32[2, 4, 6, 6] = aten.conv2d(%x, @conv1.weight.folded, @bn1.folded_bias, [1, 1], [1, 1])",
            "%1: f32[2, 4, 6, 6] = aten.relu(%0)",
            constants=CONSTANTS + "\n  @conv1.weight.folded: f32[4, 3, 3, 3]\n  @bn1.folded_bias: f32[4]",
            returns="%1",
        ),
        exact=False,
        folds=torch.float32,
    )


def test_the_other_form_of_the_norm() -> None:
    text = graph(
        CONV.replace(", @conv1.bias, [1, 1], [1, 1]", ""),
        "%1: f32[2, 4, 4, 4] = aten.batch_norm"
        "(%0, None, None, @bn1.running_mean, @bn1.running_var, False, 0.1, 1e-05, True)",
        returns="%1",
    ).replace("%0: f32[2, 4, 6, 6]", "%0: f32[2, 4, 4, 4]")
    made = optimize(parse(text), passes=[NAME], verify=True)
    assert [n.op for n in made.nodes] == [aten.conv2d.default]
    assert_same_results(Case(parse(text), seed=1), made, folds=torch.float32)


LAYERS = {
    "conv1d": (nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), (2, 4, 7)),
    "conv1d, no bias": (nn.Conv1d(4, 6, 3, bias=False), nn.BatchNorm1d(6), (2, 4, 7)),
    "conv2d, groups, stride": (nn.Conv2d(4, 6, 3, stride=2, groups=2), nn.BatchNorm2d(6), (2, 4, 7, 9)),
    "conv2d, depthwise": (nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8), (2, 4, 7, 7)),
    "conv2d, padding same": (nn.Conv2d(4, 6, 3, padding="same"), nn.BatchNorm2d(6), (2, 4, 5, 7)),
    "conv2d, norm without weights": (nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6, affine=False), (2, 4, 5, 5)),
    "conv3d": (nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3), (1, 2, 3, 4, 5)),
    "conv_transpose1d": (nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d(6), (2, 4, 7)),
    "conv_transpose2d, groups": (
        nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, output_padding=1), nn.BatchNorm2d(6), (2, 4, 5, 5)),
    "conv_transpose3d": (nn.ConvTranspose3d(2, 3, 2), nn.BatchNorm3d(3), (1, 2, 3, 4, 5)),
    "linear": (nn.Linear(4, 6), nn.BatchNorm1d(6), (5, 4)),
}  # fmt: skip


def captured(*modules: nn.Module, shape: tuple[int, ...]) -> Graph:
    """The graph of the modules in a row, with norms as if trained."""
    for module in modules:
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.2, 2)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return capture(nn.Sequential(*modules).eval(), (torch.randn(shape),))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_layer(name: str, dtype: torch.dtype) -> None:
    layer, norm, shape = LAYERS[name]
    model = nn.Sequential(layer, norm).to(dtype)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.2, 2)
    x = torch.randn(shape, dtype=dtype)
    before = capture(model.eval(), (x,))
    after = optimize(before, passes=[NAME], verify=True)
    assert len(after.nodes) == len(before.nodes) - 1
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 4e-2}[dtype]
    torch.testing.assert_close(after.run(x), model(x), rtol=tolerance, atol=tolerance)


def test_a_wider_norm_folds_into_the_layers_dtype() -> None:
    norm = NORM.replace("%1: f32[2", "%1: bf16[2").replace("f32[0]", "bf16[0]")
    text = graph(CONV.replace("f32", "bf16"), norm, returns="%1", signature="%x: bf16[2, 3, 6, 6]")
    text = text.replace("conv1.weight: f32", "conv1.weight: bf16").replace(
        "conv1.bias: f32", "conv1.bias: bf16"
    )
    made = optimize(parse(text), passes=[NAME], verify=True)
    assert len(made.nodes) == 1
    assert made.constants["bn1.folded_bias"].tensor_type.dtype is torch.bfloat16
    assert_same_results(Case(parse(text), seed=1), made, folds=torch.bfloat16)


def test_the_convolution_op_of_decomposed_graphs() -> None:
    for transposed, weight in ((False, "f32[6, 2, 3]"), (True, "f32[4, 3, 3]")):
        length = 9 if transposed else 5
        text = graph(
            f"%0: f32[2, 6, {length}] = aten.convolution(%x, @w, None, [1], [0], [1], {transposed}, [0], 2)",
            f"%1: f32[2, 6, {length}], %2: f32[0], %3: f32[0] = aten._native_batch_norm_legit_no_training"
            "(%0, @bn.weight, @bn.bias, @bn.running_mean, @bn.running_var, 0.1, 1e-05)",
            constants=f"  @w: {weight}\n"
            + "\n".join(
                f"  @bn.{name}: f32[6]" for name in ("weight", "bias", "running_mean", "running_var")
            ),
            signature="%x: f32[2, 4, 7]",
            returns="%1",
        )
        made = optimize(parse(text), passes=[NAME], verify=True)
        assert len(made.nodes) == 1
        assert_same_results(Case(parse(text), seed=1), made, folds=torch.float32)


def test_one_after_another_and_a_shared_weight() -> None:
    """Both uses of a weight are folded, each with its own norm."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(3))
            for norm in self.norms:
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, b, c = self.norms
            return c(b(self.conv(a(self.conv(x)))))

    model, x = Shared().eval(), torch.randn(2, 3, 5, 5)
    after = optimize(capture(model, (x,)), passes=[NAME, "eliminate-dead-code"], verify=True)
    assert [n.op for n in after.nodes] == [aten.conv2d.default] * 2
    assert list(after.constants) == [
        "conv.weight.folded",
        "norms.0.folded_bias",
        "conv.weight.folded.1.folded",
        "norms.2.folded_bias",
    ]
    torch.testing.assert_close(after.run(x), model(x))


def test_the_ledger_says_where_the_norm_went() -> None:
    after = optimize(captured(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), shape=(1, 3, 5, 5)), passes=[NAME])
    (node,) = after.nodes
    assert node.origin.modules == ("0", "1")
    assert [(f.kind, f.pass_name) for f in after.fates.values()] == [("folded", NAME)]


# -- guards -----------------------------------------------------------------------------------------------


def test_not_when_the_convolution_has_another_use() -> None:
    check(graph(CONV, NORM, "%4: f32[2, 4, 6, 6] = aten.add.Tensor(%0, %1)"), NAME)


def test_not_when_the_convolution_is_returned() -> None:
    check(graph(CONV, NORM, returns="%0, %1"), NAME)


def test_not_when_a_statistic_is_computed() -> None:
    norm = NORM.replace("@bn1.running_mean", "%m")
    text = graph("%m: f32[4] = aten.neg(@bn1.running_mean)", CONV, norm, returns="%1")
    numbered = str(Graph.parse(text))
    assert "@bn1.bias, %0, " in numbered
    check(numbered, NAME)


def test_not_when_constants_are_unbound() -> None:
    check(Graph.parse(graph(CONV, NORM, returns="%1") + "\n"), NAME, runs=False)


def test_not_when_statistics_are_written_back() -> None:
    text = graph(CONV, NORM, "%4: f32[4] = aten.mul.Tensor(@bn1.running_mean, 1.0)", returns="%1")
    check(parse(text + "\n  write @bn1.running_mean = %4"), NAME)


def test_not_in_training() -> None:
    norm = "%1: f32[2, 4, 6, 6] = aten.batch_norm"
    norm += "(%0, @bn1.weight, @bn1.bias, @bn1.running_mean, @bn1.running_var, True, 0.1, 1e-05, True)"
    check(graph(CONV, norm, returns="%1"), NAME, runs=False)


def test_not_where_linear_has_more_axes() -> None:
    """The norm's channels are the second axis, the layer's outputs are the last."""
    constants = "\n".join(
        f"  @bn.{name}: f32[4]" for name in ("weight", "bias", "running_mean", "running_var")
    )
    text = graph(
        "%0: f32[2, 4, 4] = aten.linear(%x, @w)",
        "%1: f32[2, 4, 4], %2: f32[0], %3: f32[0] = aten._native_batch_norm_legit_no_training"
        "(%0, @bn.weight, @bn.bias, @bn.running_mean, @bn.running_var, 0.1, 1e-05)",
        constants="  @w: f32[4, 5]\n" + constants,
        signature="%x: f32[2, 4, 5]",
        returns="%1",
    )
    check(text, NAME)


def test_not_for_a_convolution_without_batch() -> None:
    text = graph(CONV, NORM, returns="%1", signature="%x: f32[3, 6, 4]")
    text = text.replace("f32[2, 4, 6, 6]", "f32[4, 6, 4]")
    constants = {
        f"bn1.{name}": torch.rand(6) + 0.5 for name in ("weight", "bias", "running_mean", "running_var")
    }
    for name in constants:
        text = text.replace(f"@{name}: f32[4]", f"@{name}: f32[6]")
    check(text, NAME)


def test_not_when_a_folded_weight_overflows() -> None:
    text = graph(CONV, NORM, returns="%1").replace("f32", "f16")
    graph_ = parse(text, bn1__running_var=torch.zeros(4, dtype=torch.float16))
    graph_.constants["conv1.weight"].tensor = torch.full((4, 3, 3, 3), 3e3, dtype=torch.float16)
    check(graph_, NAME, runs=False)


def test_not_without_a_layer_before_it() -> None:
    text = graph(NORM.replace("(%0", "(%x"), signature="%x: f32[2, 4, 6, 6]", returns="%1")
    check(str(Graph.parse(text)), NAME)
