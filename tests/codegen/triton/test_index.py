"""Index expressions against PyTorch's own strides and views, element by element."""

from __future__ import annotations

import itertools
import math

import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.ir import dims
from codegen.triton import index
from codegen.triton.index import View, coordinate

SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=4)


def elements(view: View) -> torch.Tensor:
    """What the view reads of a source that holds 0, 1, 2, ...; -1 where there is nothing to read."""
    place = view.offset(index.contiguous_strides(view.source))
    found = []
    for at in itertools.product(*(range(int(size)) for size in view.shape)):
        env = {f"i{axis}": c for axis, c in enumerate(at)}
        there = all(0 <= dims.evaluate(e, env) < size for e, size in view.inside)
        found.append(dims.evaluate(place, env) if there else -1)
    return torch.tensor(found, dtype=torch.int64).reshape([int(size) for size in view.shape])


def factors(count: int, pick: st.DataObject) -> list[int]:
    """A random shape with that many elements."""
    shape = []
    while count > 1:
        size = pick.draw(st.sampled_from([d for d in range(2, count + 1) if count % d == 0]))
        shape.append(size)
        count //= size
    return shape or [1]


@settings(deadline=None, max_examples=60)
@given(SIZES, st.data())
def test_chains_of_views_read_what_torch_reads(shape: list[int], pick: st.DataObject) -> None:
    x, view = torch.arange(math.prod(shape)).reshape(shape), View.of(shape)
    for _ in range(pick.draw(st.integers(1, 4))):
        rank = x.dim()
        kind = pick.draw(st.sampled_from(["permute", "slice", "expand", "select", "reshape", "pad"]))
        if kind == "permute":
            order = pick.draw(st.permutations(range(rank)))
            x, view = x.permute(order), view.permute(order)
        elif kind == "reshape" and x.numel():
            new = factors(x.numel(), pick)
            x, view = x.reshape(new), view.reshape(new)
        elif kind == "expand" and x.numel() < 200:
            new = [pick.draw(st.integers(1, 3)), *(3 if size == 1 else size for size in x.shape)]
            x, view = x.expand(new), view.expand(new)
        elif rank and x.shape[0] and kind in ("slice", "select", "pad"):
            axis = pick.draw(st.sampled_from([a for a in range(rank) if x.shape[a]] or [0]))
            size = x.shape[axis]
            start = pick.draw(st.integers(0, max(size - 1, 0)))
            if kind == "select" and rank > 1 and size:
                x, view = x.select(axis, start), view.select(axis, start)
            elif kind == "pad":
                amounts = [0, 0] * (rank - 1 - axis) + [1, 2]
                x, view = torch.nn.functional.pad(x, amounts, value=-1), view.pad(axis, 1, 2)
            else:
                step = pick.draw(st.integers(1, 2))
                index_ = [slice(None)] * axis + [slice(start, size, step)]
                x, view = x[tuple(index_)], view.slice(axis, start, size, step)
    assert torch.equal(elements(view), x)


@settings(deadline=None, max_examples=60)
@given(SIZES, st.data())
def test_offset_of_a_flat_number_is_that_of_as_strided(shape: list[int], pick: st.DataObject) -> None:
    strides = [pick.draw(st.sampled_from([0, 1, s, 7])) for s in index.contiguous_strides(shape)]
    memory = torch.arange(index.extent(shape, strides))
    flat = sympy.Symbol("index", integer=True, nonnegative=True)
    place = index.offset(flat, shape, strides)
    got = [dims.evaluate(place, {"index": n}) for n in range(math.prod(shape))]
    assert got == memory.as_strided(shape, strides).flatten().tolist()


@settings(deadline=None, max_examples=60)
@given(SIZES, st.data())
def test_coalesced_axes_step_through_the_same_elements(shape: list[int], pick: st.DataObject) -> None:
    dense = index.contiguous_strides(shape)
    operands = [[pick.draw(st.sampled_from([0, s])) for s in dense] for _ in range(2)]
    groups = index.coalesce(shape, operands)
    sizes = [math.prod(shape[axis] for axis in group) for group in groups]
    for strides in operands:
        memory = torch.arange(index.extent(shape, strides))
        merged = memory.as_strided(sizes, [strides[group[-1]] for group in groups])
        assert torch.equal(merged.flatten(), memory.as_strided(shape, strides).flatten())


def test_contiguous_operands_need_no_division() -> None:
    N, C, H, W = map(dims.symbol, "NCHW")
    flat = sympy.Symbol("index", integer=True, nonnegative=True)
    shape = (N, C, H, W)
    assert index.offset(flat, shape, index.contiguous_strides(shape)) == flat
    assert index.coalesce(shape, [index.contiguous_strides(shape)]) == [(0, 1, 2, 3)]
    bias = (0, 1, 0, 0)
    assert index.coalesce(shape, [index.contiguous_strides(shape), bias]) == [(0,), (1,), (2, 3)]
    assert dims.format_dim(index.offset(flat, (N, C, H * W), (0, 1, 0))) == "(index//(H*W)) % C"


def test_symbolic_reshape_there_and_back_is_nothing() -> None:
    N, T = map(dims.symbol, "NT")
    view = View.of((N, T, 12 * 64)).reshape((N, T, 12, 64)).permute((0, 2, 1, 3))
    assert view.coords == (coordinate(0), coordinate(2), 64 * coordinate(1) + coordinate(3))
    again = view.permute((0, 2, 1, 3)).reshape((N, T, 768))
    assert again.offset(index.contiguous_strides((N, T, 768))) == sympy.expand(
        coordinate(0) * T * 768 + coordinate(1) * 768 + coordinate(2)
    )


def test_offsets_are_wide_where_the_last_element_is_far() -> None:
    assert not index.needs_int64([index.extent((2**15, 2**15), (2**15, 1))])
    assert index.needs_int64([index.extent((2**16, 2**15), (2**15, 1)), index.extent((2, 2), (2**31, 1))])
    assert index.extent((0, 5), (5, 1)) == 0
