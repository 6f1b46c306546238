"""How much memory one call takes at most, from the profiler's memory events."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from runtime.reference import clone_inputs, runnable, undone

__all__ = ["measured_peak"]


def measured_peak(
    f: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None, *, include_results: bool = False
) -> int:
    """Most bytes of torch's CPU memory that a call of `f` holds at once, beyond what was there before it.

    Inputs and weights are there before. The memory of what the call returns is left out unless asked for, so
    that the figure is that of the transients: what a memory plan plans. A compiled model's arena counts,
    although it outlives the call. The first call, which may pack weights, is not the one measured.
    """
    function = runnable(f)
    given, given_kw = clone_inputs((tuple(args), dict(kwargs or {})))
    with torch.no_grad(), undone(f):
        function(*given, **given_kw)
        release_arenas(f)
        with undone(f):  # holds buffers that the call replaces: the profiler did not see where they began
            events, returned = _allocations(lambda: function(*given, **given_kw))
    kept = set() if include_results else _still_held(events, returned)
    live = peak = 0
    for number, (_, size) in enumerate(events):
        if number not in kept:
            live += size
            peak = max(peak, live)
    return peak


def release_arenas(f: Any) -> None:
    """Let a compiled model's next call allocate its arena anew."""
    arenas = getattr(getattr(getattr(f, "executable", None), "module", None), "arenas", None)
    if arenas:
        arenas.clear()


def _allocations(call: Callable[[], Any]) -> tuple[list[tuple[int, int]], Any]:
    """(address, bytes; freed: negative) of each memory event in order of time, and what the call returned."""
    from torch._C._profiler import _EventType

    profiler = torch.autograd.profiler.profile(profile_memory=True)
    with _without_profiler_chatter():
        profiler.__enter__()
    try:
        returned = call()
    finally:
        with _without_profiler_chatter():
            profiler.__exit__(*sys.exc_info())
    found: list[tuple[int, int, int]] = []
    waiting = list(profiler.kineto_results.experimental_event_tree())
    while waiting:
        event = waiting.pop()
        waiting.extend(event.children)
        if event.tag == _EventType.Allocation and event.extra_fields.device.type == "cpu":
            found.append((event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size))
    found.sort(key=lambda row: (row[0], row[2] < 0))
    return [(pointer, size) for _, pointer, size in found], returned


def _still_held(events: Sequence[tuple[int, int]], returned: Any) -> set[int]:
    """Numbers of the events that allocated the memory which the returned tensors lie in."""
    storages = {t.untyped_storage().data_ptr() for t in pytree.tree_leaves(returned) if isinstance(t, Tensor)}
    open_: dict[int, int] = {}
    for number, (pointer, size) in enumerate(events):
        if size > 0:
            open_[pointer] = number
        else:
            open_.pop(pointer, None)
    return {number for pointer, number in open_.items() if pointer in storages}


@contextlib.contextmanager
def _without_profiler_chatter() -> Iterator[None]:
    """Starting and stopping the profiler prints a line of its own to stderr; anything else is passed on."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            held.seek(0)
            for line in held.read().splitlines(keepends=True):
                if not line.startswith(b"USDT:"):
                    os.write(2, line)
