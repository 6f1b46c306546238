"""The table of operators that take a destination: each entry measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from capture.ir import Graph, Trait, has, resolve_op
from passes import destinations
from passes.destinations import in_place_form, may_overwrite, out_form, takes_destination

NAMES = [*destinations._SAME, *destinations._OTHER]
ROWS, COLUMNS = 96, 128  # results of 96 * 128 * 4 bytes stand out from scratch numbers


def sample(name: str) -> tuple[Any, ...]:
    """Operands for one op, positional."""
    torch.manual_seed(0)
    x, y, z = (torch.rand(ROWS, COLUMNS) + 0.1 for _ in range(3))
    i, j = (torch.randint(1, ROWS, (ROWS, COLUMNS)) for _ in range(2))
    square = torch.rand(COLUMNS, COLUMNS)
    batch, image = torch.rand(4, ROWS, COLUMNS), torch.rand(1, 8, ROWS, COLUMNS)
    known: dict[str, tuple[Any, ...]] = {
        "acosh": (x + 1,),
        "clamp": (x, 0.2, 0.8),
        "clamp_min": (x, 0.5),
        "clamp_max": (x, 0.5),
        "threshold": (x, 0.5, 0.1),
        "where.self": (x > 0.5, y, z),
        "lerp.Scalar": (x, y, 0.5),
        "lerp.Tensor": (x, y, z),
        "addcmul": (x, y, z),
        "addcdiv": (x, y, z),
        "clamp.Tensor": (x, y, z),
        "pow.Scalar": (2.0, x),
        "mm": (x, square),
        "matmul": (batch, square),
        "bmm": (batch, batch.transpose(1, 2)),
        "addmm": (y, x, square),
        "baddbmm": (torch.rand(4, ROWS, ROWS), batch, batch.transpose(1, 2)),
        "mv": (torch.rand(4096, COLUMNS), square[0]),
        "addmv": (torch.rand(4096), torch.rand(4096, COLUMNS), square[0]),
        "outer": (x[0], y[1]),
        "softmax.int": (x, -1),
        "log_softmax.int": (x, -1),
        "_softmax": (x, -1, False),
        "_log_softmax": (x, -1, False),
        "cat": ([x, y], 1),
        "stack": ([x, y], 0),
        "cumsum": (x, 1),
        "cumprod": (x, 1),
        "index_select": (x, 0, i[0]),
        "gather": (x, 0, i),
        "index.Tensor": (x, [i[0]]),
        "take": (x, i),
        "scatter.src": (x, 0, i, y),
        "scatter.value": (x, 0, i, 0.5),
        "scatter_add": (x, 0, i, y),
        "index_add": (x, 0, torch.arange(ROWS), y),
        "avg_pool2d": (image, [2, 2]),
        "linalg_vector_norm": (batch, 2, [0]),
        "prod.dim_int": (batch, 0),
        "argmax": (batch, 0),
        "argmin": (batch, 0),
        "any.dim": (batch > 0.5, 0),
        "all.dim": (batch > 0.5, 0),
        "masked_fill.Scalar": (x, y > 0.5, 0.5),
        "masked_fill.Tensor": (x, y > 0.5, torch.tensor(0.5)),
    }
    if name in known:
        return known[name]
    reductions = ("mean.dim", "sum.dim_IntList", "amax", "amin", "var.correction", "std.correction")
    if name in reductions:
        return (batch, [0])
    integer = name.startswith("bitwise")
    count = sum(str(a.type) == "Tensor" for a in resolve_op(f"aten.{name}")._schema.arguments)
    operands: tuple[Any, ...] = ((i, j) if integer else (x, y))[:count]
    return (*operands, 3 if integer else 0.5) if name.endswith("Scalar") else operands


def options(name: str) -> dict[str, Any]:
    """Keyword-only operands that an op insists on."""
    return {"rounding_mode": "floor"} if name == "div.Tensor_mode" else {}


def allocated(calls: dict[str, Callable[[], Any]]) -> dict[str, int]:
    """Bytes that each call allocates, by the profiler's memory events."""
    for call in calls.values():
        call()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as run:
        for name, call in calls.items():
            with record_function(f"case {name}"):
                call()
    events = run.profiler.kineto_results.events()
    grown = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]" and e.nbytes() > 0]
    spans = {e.name(): (e.start_ns(), e.end_ns()) for e in events if e.name().startswith("case ")}
    found = {}
    for name in calls:
        start, end = spans[f"case {name}"]
        found[name] = sum(nbytes for at, nbytes in grown if start <= at <= end)
    return found


def equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a.double(), b.double(), rtol=1e-5, atol=1e-6, equal_nan=True)


def into(name: str, args: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor:
    form = out_form(resolve_op(f"aten.{name}"))
    assert form is not None
    made: torch.Tensor = form.overload(*args, *form.extra, **options(name), **{form.out: out})
    return made


@pytest.mark.parametrize("overload", [None, "no_such_operator.out"])
def test_an_overload_that_this_torch_does_not_have_is_no_destination(
    monkeypatch: pytest.MonkeyPatch, overload: str | None
) -> None:
    """Other versions of PyTorch have other overloads; reshape has none with out= in any."""
    monkeypatch.setattr(destinations, "_SAME", ["reshape"])
    monkeypatch.setattr(destinations, "_OTHER", {} if overload is None else {"reshape": (overload, ())})
    monkeypatch.setattr(destinations, "_FIRST", ["reshape"])
    out_form.cache_clear()
    in_place_form.cache_clear()
    try:
        graph = Graph.parse("graph(%x: f32[4])\n  %0: f32[2, 2] = aten.reshape(%x, [2, 2])\n  return %0")
        (node,) = graph.nodes
        assert not takes_destination(node)
        assert in_place_form(node.op) is None
    finally:
        out_form.cache_clear()
        in_place_form.cache_clear()


def test_out_forms_write_into_the_given_memory_and_allocate_none_of_its_size() -> None:
    calls, outs, wanted = {}, {}, {}
    for name in NAMES:
        args = sample(name)
        wanted[name] = resolve_op(f"aten.{name}")(*args, **options(name))
        outs[name] = torch.empty_like(wanted[name])
        calls[name] = lambda name=name, args=args: into(name, args, outs[name])
    measured = allocated(calls)
    assert {n: b for n, b in measured.items() if 4 * b >= outs[n].nbytes} == {}
    assert [n for n in NAMES if not equal(outs[n], wanted[n])] == []


def flipped(value: Any) -> Any:
    """The same numbers in column-major memory."""
    if isinstance(value, list):
        return [flipped(v) for v in value]
    if not isinstance(value, torch.Tensor) or value.dim() < 2:
        return value
    return value.transpose(-1, -2).contiguous().transpose(-1, -2)


def test_a_contiguous_buffer_serves_operands_of_any_strides() -> None:
    """A caller may pass inputs of other strides than the captured ones."""
    wrong = []
    for name in NAMES:
        args = sample(name)
        wanted = resolve_op(f"aten.{name}")(*args, **options(name))
        buffer = torch.empty(wanted.shape, dtype=wanted.dtype)
        given = tuple(map(flipped, args))
        if into(name, given, buffer) is not buffer or not equal(buffer, wanted) or not buffer.is_contiguous():
            wrong.append(name)
    assert wrong == []


def test_other_buffers_serve_all_but_those_that_are_listed() -> None:
    wrong = set()
    for name in NAMES:
        args = sample(name)
        wanted = resolve_op(f"aten.{name}")(*args, **options(name))
        for given in (args, tuple(map(flipped, args))):
            buffer = flipped(torch.empty(wanted.shape, dtype=wanted.dtype))
            strides = buffer.stride()
            try:
                into(name, given, buffer)
            except RuntimeError:
                wrong.add(name)
            if not equal(buffer, wanted) or buffer.stride() != strides:
                wrong.add(name)
    assert wrong <= destinations._CONTIGUOUS_ONLY


def test_the_measurement_sees_a_copy() -> None:
    x = torch.rand(ROWS, COLUMNS)
    out = torch.empty_like(x)
    calls = {"copies": lambda: torch.ops.aten.relu.out(x, out=out), "honest": lambda: into("relu", (x,), out)}
    assert allocated(calls) == {"copies": x.nbytes, "honest": 0}


def elementwise() -> list[tuple[str, int]]:
    """(op, position) of each tensor operand that has the result's dtype and shape."""
    found = []
    for name in [*NAMES, *destinations._FIRST]:
        op, args = resolve_op(f"aten.{name}"), sample(name)
        if not has(op, Trait.POINTWISE):
            continue
        result = op(*args, **options(name))
        for position, operand in enumerate(args):
            if isinstance(operand, torch.Tensor) and (operand.dtype, operand.shape) == (
                result.dtype,
                result.shape,
            ):
                found.append((name, position))
    return found


def test_elementwise_ops_may_be_written_over_each_operand() -> None:
    wrong, calls = [], {}
    for name, position in elementwise():
        op, args = resolve_op(f"aten.{name}"), sample(name)
        if in_place_form(op) is not None and position > 0:
            continue
        wanted = op(*args, **options(name))
        target = args[position]
        if in_place_form(op) is not None:
            in_place_form(op)(*args)
            calls[name] = lambda op=op, args=args: in_place_form(op)(*args)
        else:
            into(name, args, target)
        if not equal(target, wanted):
            wrong.append((name, position))
    assert wrong == []
    assert {n: b for n, b in allocated(calls).items() if 4 * b >= ROWS * COLUMNS * 4} == {}


def test_the_table_covers_what_models_are_made_of() -> None:
    covered = {name for name, _ in elementwise()}
    assert {"relu", "gelu", "silu", "add.Tensor", "mul.Tensor", "mul.Scalar", "where.self", "tanh"} <= covered


@pytest.mark.parametrize(
    "op",
    [
        "conv2d",
        "layer_norm",
        "native_layer_norm",
        "scaled_dot_product_attention",
        "embedding",
        "clone",
        "dropout",
    ]
    + ["constant_pad_nd", "rsub.Scalar", "reshape", "convolution"],
)
def test_what_only_copies_or_has_no_out_is_not_listed(op: str) -> None:
    assert out_form(resolve_op(f"aten.{op}")) is None
    assert in_place_form(resolve_op(f"aten.{op}")) is None


def test_a_node_with_a_kernel_of_its_own_takes_no_destination() -> None:
    graph = Graph.parse("""graph(%x: f32[4, 4], %y: f32[4, 4])
  %0: f32[4, 4] = aten.mm(%x, %y)
  %1: f32[4, 4] = aten.mm(%x, %y) via vendor.mm()
  %2: f32[4, 2], %3: i64[4, 2] = aten.topk(%0, 2)
  return %0, %1, %2
""")
    assert [takes_destination(n) for n in graph.nodes] == [True, False, False]


@pytest.mark.parametrize("option", ["", "inplace=7", "inplace=True", "inplace=1"])
def test_a_recipe_names_the_operand_that_its_kernel_updates(option: str) -> None:
    graph = Graph.parse(f"""graph(%x: f32[4], %y: f32[4])
  %0: f32[4] = aten.add.Tensor(%x, %y) via vendor.add({option})
  return %0
""")
    (node,) = graph.nodes
    assert may_overwrite(node) == ((graph.inputs[1],) if option == "inplace=1" else ())
