"""Which tensors are one, and which overlap."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from capture.ir.memory import identity, overlap, overlapping


@pytest.mark.parametrize("same", [lambda t: t, Tensor.detach, lambda t: t[:], lambda t: t.conj().conj()])
def test_views_of_the_same_form_are_one(same: Callable[[Tensor], Tensor]) -> None:
    tensor = torch.randn(4, 4, dtype=torch.complex64)
    assert identity(tensor) == identity(same(tensor))


@pytest.mark.parametrize(
    "other",
    [
        Tensor.clone,
        Tensor.t,
        Tensor.conj,
        lambda t: t[1:],
        lambda t: t.view(torch.float32),
        lambda t: t.to(torch.device("meta")),
    ],
)
def test_other_memory_or_another_form_is_not(other: Callable[[Tensor], Tensor]) -> None:
    tensor = torch.randn(4, 4, dtype=torch.complex64)
    assert identity(tensor) != identity(other(tensor))


def test_the_neg_bit_tells_tensors_apart() -> None:
    tensor = torch.randn(4, dtype=torch.complex64)
    assert tensor.conj().imag.is_neg()
    assert identity(tensor.imag) != identity(tensor.conj().imag)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tensors_without_memory_are_themselves_only(device: str) -> None:
    one, other = (torch.empty(0 if device == "cpu" else 3, device=device) for _ in range(2))
    assert identity(one) == identity(one)
    assert identity(one) != identity(other)


_views = st.builds(
    lambda sizes, strides, offset: (sizes, strides[: len(sizes)], offset),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.lists(st.integers(0, 6), min_size=3, max_size=3),
    st.integers(0, 12),
)


@given(_views, _views)
def test_overlap_is_a_shared_element(
    one: tuple[list[int], list[int], int], other: tuple[list[int], list[int], int]
) -> None:
    memory = torch.arange(80)
    a, b = (memory.as_strided(*view) for view in (one, other))
    shared = set(a.flatten().tolist()) & set(b.flatten().tolist())
    assert overlap(a, b) == overlap(b, a) == bool(shared)


def test_memory_that_two_storages_share() -> None:
    tensor = torch.zeros(6)
    again = torch.from_dlpack(tensor.numpy())
    assert overlap(tensor[:4], again[3:])
    assert not overlap(tensor[:3], again[3:])


def test_tensors_of_two_dtypes_overlap_as_their_bytes_do() -> None:
    tensor = torch.zeros(6)
    assert overlap(tensor[:4], tensor.view(torch.int8)[15:])
    assert not overlap(tensor[:4], tensor.view(torch.int8)[16:])


def test_fake_tensors_overlap_in_their_storage() -> None:
    with FakeTensorMode():
        tensor = torch.zeros(6)
        assert overlap(tensor[:4], tensor[3:])
        assert not overlap(tensor[:3], tensor[3:])
        assert not overlap(tensor, torch.zeros(6))


def test_all_pairs_are_named_in_order() -> None:
    memory = torch.zeros(8)
    tensors = {"tail": memory[4:], "head": memory[:4], "all": memory, "other": torch.zeros(8)}
    assert set(overlapping(tensors)) == {("head", "all"), ("tail", "all")}
