"""The op vocabulary: names, one form for equal calls, and traits that passes may rely on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from capture.ir import Fusion, Graph, Trait, has, is_pure, op_name, register_traits, resolve_op, traits
from capture.ir.ops import argument, is_pure_call, is_region_op, normal_form

aten = torch.ops.aten

EXPECTED = {
    "POINTWISE": """add.Tensor sub.Tensor mul.Tensor div.Tensor div.Tensor_mode pow.Tensor_Scalar relu
        gelu silu sigmoid tanh exp log sqrt rsqrt neg abs erf sin cos floor round clamp where.self
        eq.Tensor lt.Scalar logical_and bitwise_not maximum minimum max.other masked_fill.Scalar
        leaky_relu hardswish softplus add.Scalar _to_copy rsub.Scalar reciprocal addcmul lerp.Tensor isnan
        sign positive""",
    "REDUCTION": """sum sum.dim_IntList mean.dim amax argmax max min.dim prod var.correction
        std.correction softmax.int log_softmax.int cumsum sort topk any.dim all linalg_vector_norm
        logsumexp cross_entropy_loss""",
    "MATMUL": "mm addmm bmm baddbmm matmul linear mv dot einsum",
    "CONV": "conv1d conv2d conv2d.padding conv3d convolution conv_transpose2d.input",
    "NORM": """layer_norm native_layer_norm group_norm rms_norm batch_norm
        _native_batch_norm_legit_no_training""",
    "POOL": """max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d max_pool2d_with_indices
        avg_pool1d""",
    "VIEW": """view reshape permute transpose.int t unsqueeze squeeze.dim expand slice.Tensor select.int
        flatten.using_ints split.Tensor chunk unbind.int detach alias as_strided diagonal movedim.int real
        ravel mT swapdims view_as_real unfold narrow""",
    "MOVE": """cat stack index.Tensor gather index_select embedding contiguous constant_pad_nd roll flip
        repeat index_put scatter.src tril triu pixel_shuffle""",
    "NONE": "zeros full arange.start empty.memory_format zeros_like upsample_bilinear2d.vec linalg_inv",
    "MATMUL|RANDOM": "scaled_dot_product_attention lstm.input",
    "POINTWISE|RANDOM": "dropout",
    "POINTWISE|MOVE": "clone",
    "RANDOM": """rand randn randint randperm bernoulli bernoulli.p multinomial normal_functional
        native_dropout rand_like""",
    "EFFECTFUL": """_assert_async.msg sym_constrain_range item _functional_assert_async.msg
        _linalg_check_errors zero_""",
    "EFFECTFUL|POINTWISE": "add_.Tensor relu_ add.out mul_.Tensor clamp_",
}  # fmt: skip
ROWS = [(name, kind) for kind, names in EXPECTED.items() for name in names.split()]


@pytest.mark.parametrize(("name", "kind"), ROWS)
def test_traits_of_common_ops(name: str, kind: str) -> None:
    op = resolve_op(f"aten.{name}")
    expected = Trait.NONE
    for word in kind.split("|"):
        expected |= Trait[word]
    assert traits(op) == expected
    assert is_pure(op) == (not expected & (Trait.RANDOM | Trait.EFFECTFUL))
    assert resolve_op(op_name(op)) is op


def registered(namespace: str) -> Iterator[torch._ops.OpOverload]:
    for name in sorted(torch._C._dispatch_get_all_op_names()):
        if name.startswith(f"{namespace}::"):
            yield resolve_op(name.replace("::", "."))


@pytest.mark.parametrize("namespace", ["aten", "prims", "mkldnn", "quantized_decomposed"])
def test_no_registered_op_is_wrongly_pure(namespace: str) -> None:
    for op in registered(namespace):
        schema = op._schema
        takes_generator = any("Generator" in str(a.type) for a in schema.arguments)
        if schema.is_mutable or not schema.returns:
            assert has(op, Trait.EFFECTFUL), op
        if takes_generator or torch.Tag.nondeterministic_seeded in op.tags:
            assert has(op, Trait.RANDOM), op
        if schema.is_mutable or not schema.returns or takes_generator:
            assert not is_pure(op), op


def test_ops_that_share_memory_are_known_to_do_so() -> None:
    kinds = (
        Trait.VIEW | Trait.MOVE | Trait.POINTWISE
    )  # contiguous and to may copy, and count as what they then do
    for op in registered("aten"):
        if not op._schema.is_mutable and any(r.alias_info is not None for r in op._schema.returns):
            assert has(op, kinds), op


def test_a_custom_op_is_effectful_until_it_says_otherwise() -> None:
    @torch.library.custom_op("capture_test::scale", mutates_args=())
    def scale(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @torch.library.custom_op("capture_test::fill", mutates_args=("x",))
    def fill(x: torch.Tensor) -> None:
        x.fill_(1)

    op, packet = torch.ops.capture_test.scale.default, torch.ops.capture_test.scale
    assert has(op, Trait.EFFECTFUL)
    assert not is_pure(op)
    register_traits(op, Trait.POINTWISE)
    assert traits(op) == Trait.POINTWISE
    assert is_pure(op)
    register_traits(packet, Trait.NONE)
    assert is_pure(op)
    assert op_name(op) == "capture_test.scale"
    assert resolve_op("capture_test.scale") is op
    register_traits(torch.ops.capture_test.fill.default, Trait.NONE)
    assert not is_pure(torch.ops.capture_test.fill.default), "a schema that mutates cannot be talked away"


def test_region_ops() -> None:
    cond = torch.ops.higher_order.cond
    assert is_region_op(cond)
    assert is_region_op(Fusion("conv"))
    assert not is_region_op(aten.relu.default)
    assert has(cond, Trait.EFFECTFUL)
    assert is_pure(Fusion("conv"))
    assert op_name(cond) == "higher_order.cond"
    assert resolve_op("higher_order.cond") is cond
    assert resolve_op("fusion.conv") == Fusion("conv")
    assert op_name(Fusion("conv")) == "fusion.conv"


@pytest.mark.parametrize(
    "name",
    """aten.nope nope.relu aten fusion. aten.add aten.save aten.warn aten.append.t os.system aten.__class__.x
    aten.conv2d.__class__ higher_order.__init__
    higher_order.nope load_library.x aten.relu.default.x aten..relu""".split()
    + ["", "aten.relu ", "fusion.a b"],
)
def test_what_is_no_operator_is_not_found(name: str) -> None:
    with pytest.raises(KeyError):
        resolve_op(name)


@pytest.mark.parametrize(
    ("op", "args", "kwargs", "expected"),
    [
        (aten.conv2d.default, ("x", "w", None, [1, 1], (0, 0)), {}, (("x", "w"), {})),
        (aten.conv2d.default, ("x", "w"), {"stride": 2}, (("x", "w", None, [2, 2]), {})),
        (aten.conv2d.default, ("x",), {"weight": "w", "bias": "b"}, (("x", "w", "b"), {})),
        (aten.conv2d.default, ("x", "w"), {"groups": 4}, (("x", "w", None, [1, 1], [0, 0], [1, 1], 4), {})),
        (aten.add.Tensor, ("x", "y"), {"alpha": 1}, (("x", "y"), {})),
        (aten.add.Tensor, ("x", "y"), {"alpha": 1.0}, (("x", "y"), {"alpha": 1.0})),
        (aten.add.Tensor, ("x", "y"), {"alpha": True}, (("x", "y"), {"alpha": True})),
        (aten.sum.dim_IntList, ("x", (1,)), {}, (("x", [1]), {})),
        (aten.constant_pad_nd.default, ("x", [1, 1], 0), {}, (("x", [1, 1]), {})),
        (aten.elu.default, ("x",), {"alpha": 1}, (("x",), {})),
        (aten.nan_to_num.default, ("x", -0.0), {}, (("x", -0.0), {})),
        (Fusion("conv"), ("x", (1, 2)), {}, (("x", [1, 2]), {})),
    ],
)
def test_equal_calls_have_one_form(op: object, args: tuple, kwargs: dict, expected: tuple) -> None:
    found = normal_form(op, args, kwargs)
    assert repr(found) == repr(expected)
    assert repr(normal_form(op, *found)) == repr(expected), "the form of the form is itself"


def test_a_default_of_minus_zero_is_not_zero() -> None:
    assert normal_form(aten.threshold.default, ("x", 0.0, -0.0), {})[0][2:] == (-0.0,)
    assert normal_form(aten.clone.default, ("x",), {"memory_format": None}) == (("x",), {})
    assert normal_form(aten.std_mean.correction, ("x",), {"correction": 0}) == (("x",), {"correction": 0})
    assert repr(normal_form(aten.full.default, ([2], -0.0), {})) == repr(([[2], -0.0], {})).replace(
        "[[2], -0.0]", "([2], -0.0)"
    )


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, "needs the argument 'self'"),
        (("x", "y", 1, 2), {}, "takes 3 arguments, 4 given"),
        (("x", "y"), {"beta": 1}, "no argument 'beta'"),
        (("x", "y"), {"other": "z"}, "argument 'other' twice"),
    ],
)
def test_calls_that_do_not_fit_the_schema(args: tuple, kwargs: dict, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        normal_form(aten.add.Tensor, args, kwargs)


def test_arguments_are_read_by_name() -> None:
    operands, kwargs = normal_form(aten.conv2d.default, ("x", "w"), {"stride": 2})
    assert argument(aten.conv2d.default, operands, kwargs, "stride") == [2, 2]
    assert argument(aten.conv2d.default, operands, kwargs, "padding") == [0, 0]
    assert argument(aten.conv2d.default, operands, kwargs, "bias") is None
    assert argument(aten.add.Tensor, ("x", "y"), {"alpha": 2}, "alpha") == 2
    assert argument(aten.add.Tensor, ("x", "y"), {}, "alpha") == 1
    with pytest.raises(KeyError, match="no argument 'bogus'"):
        argument(aten.add.Tensor, ("x", "y"), {}, "bogus")


@pytest.mark.parametrize(
    ("op", "args", "kwargs", "pure"),
    [
        (aten.relu.default, ("x",), {}, True),
        (aten.dropout.default, ("x", 0.5, True), {}, False),
        (aten.dropout.default, ("x", 0.5, False), {}, True),
        (aten.dropout.default, ("x", 0.0, True), {}, True),
        (aten.native_dropout.default, ("x", 0.5, False), {}, True),
        (aten.native_dropout.default, ("x", 0.5, None), {}, False),
        (aten.scaled_dot_product_attention.default, ("q", "k", "v"), {}, True),
        (aten.scaled_dot_product_attention.default, ("q", "k", "v", None, 0.1), {}, False),
        (aten.rrelu.default, ("x",), {}, True),
        (aten.rrelu.default, ("x", 0.1, 0.3, True), {}, False),
        (aten.lstm.input, ("x", [], [], True, 1, 0.3, False, False, True), {}, True),
        (aten.lstm.input, ("x", [], [], True, 1, 0.3, True, False, True), {}, False),
        (aten.bernoulli.p, ("x", 0.0), {}, False),
        (aten.rand.default, ([2],), {}, False),
        (aten.add_.Tensor, ("x", "y"), {}, False),
        (torch.ops.higher_order.cond, (), {}, False),
    ],
)
def test_randomness_that_is_switched_off_is_pure(op: object, args: tuple, kwargs: dict, pure: bool) -> None:
    assert is_pure_call(op, args, kwargs) is pure


def test_a_node_is_of_an_overload_or_a_packet() -> None:
    graph = Graph.parse("graph(%x: f32[2])\n  %0: f32[2] = aten.add.Tensor(%x, %x)\n  return %0\n")
    node = graph.nodes[0]
    assert node.is_op(aten.add)
    assert node.is_op(aten.mul, aten.add.Tensor)
    assert not node.is_op(aten.add.Scalar)
    assert not node.is_op(Fusion("add"))
