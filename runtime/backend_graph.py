"""One graph of Dynamo's, compiled for inference: its weights are frozen, and watched in every call."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from torch import fx
from torch._guards import tracing
from torch.utils._python_dispatch import _disable_current_modes

from capture import capture
from capture.errors import CaptureError
from capture.ir import Graph
from runtime.backend_options import BackendOptions
from runtime.backend_records import GraphRecord
from runtime.backend_views import plan_results
from runtime.backend_weights import FrozenWeights, Weights, freeze, weights_among
from runtime.compile import compile
from runtime.executables import Executable

__all__ = ["InferenceGraph", "alone", "packing"]

MOST_SETS = 64  # sets of weights that one graph is packed for: the blocks of a deep model share a graph
FEW = 10  # calls: weights that change sooner, OFTEN times in a row, are no longer frozen
OFTEN = 3
packing = threading.RLock()  # passes and code generation: one thread at a time
_Inputs = Sequence[Any]


@dataclass(eq=False)
class _Packed:
    """The graph, packed for one set of weights."""

    weights: FrozenWeights
    executable: Executable
    calls: int = 0


class _Frozen:
    """A captured graph with some inputs as constants, and what it was packed to for each set of these."""

    def __init__(self, captured: Graph, weights: Weights) -> None:
        self.graph, left, taken = freeze(captured, weights)
        self.inputs_of, self.weights_of = _getter(left), _getter(taken)
        self.left, self.taken = left, taken
        self.paths = [weights[position].path for position in taken]
        self.constants = list(self.graph.constants.values())[-len(taken) :] if taken else []
        self.packed: dict[int, _Packed] = {}  # by the identity of the first weight

    def find(self, weights: Sequence[torch.Tensor]) -> _Packed | None:
        return self.packed.get(id(weights[0]) if weights else 0)

    def add(self, weights: Sequence[torch.Tensor], packed: _Packed) -> None:
        self.packed[id(weights[0]) if weights else 0] = packed

    def forget(self, dead: FrozenWeights) -> None:
        """A weight is no more, and with it the model: nobody will call with this set again."""
        for key, packed in list(self.packed.items()):
            if packed.weights is dead:
                self.packed.pop(key, None)

    @contextmanager
    def bound(self, weights: Sequence[torch.Tensor]) -> Iterator[Graph]:
        """The graph with these weights, which it keeps for as long as the block only."""
        for constant, tensor in zip(self.constants, weights, strict=True):
            constant.tensor = tensor.detach()
        try:
            yield self.graph
        finally:
            for constant in self.constants:
                constant.tensor = None


class InferenceGraph:
    """What Dynamo calls in place of a GraphModule.

    What Dynamo guards is not checked again: number, types, shapes and strides of the inputs, grad mode,
    autocast. Watched are the frozen weights, and that what the graph writes to lies apart from the rest.

    Args:
        module, examples: what Dynamo gave to the backend.
        record: told what is done.

    Raises:
        CaptureError: the graph cannot be captured or compiled.
    """

    def __init__(
        self, module: fx.GraphModule, examples: _Inputs, options: BackendOptions, record: GraphRecord
    ) -> None:
        self._module, self._options, self._record = module, options, record
        self._lock = threading.RLock()
        self._changes = 0  # in a row, each after few calls
        start = time.perf_counter()
        self._results = plan_results(module)
        with packing:
            self._captured = capture(self._results.module, examples)
        record.add_seconds({"capture": time.perf_counter() - start})
        record.nodes = len(self._captured.nodes)
        self._written = _getter(
            [i for i, v in enumerate(self._captured.inputs) if v in self._captured.writebacks]
        )
        self._writes = bool(self._captured.writebacks)
        placeholders = module.graph.find_nodes(op="placeholder")
        self._weights = weights_among(placeholders) if options.freeze else {}
        self._frozen = _Frozen(self._captured, self._weights)
        with self._lock:
            self._pack(self._frozen, _real_inputs(placeholders, examples))

    @property
    def backend(self) -> str:
        return self._options.backend

    def __call__(self, *inputs: Any) -> Sequence[Any]:
        frozen = self._frozen
        weights = frozen.weights_of(inputs)
        packed = frozen.find(weights)
        if packed is None or not packed.weights.fit(weights):
            found = self._pack_again(inputs)
            if found is None:
                return self._module(*inputs)
            frozen, packed = found
        packed.calls += 1
        if self._writes and self._overlap(inputs, packed):
            self._record.tell("a call ran in eager: an input that is written to shares memory with another")
            return self._module(*inputs)
        returned = packed.executable(*frozen.inputs_of(inputs))
        return self._results.rebuild(inputs, returned) if self._results.views else returned

    def _pack_again(self, inputs: _Inputs) -> tuple[_Frozen, _Packed] | None:
        """For the weights of another module, or for the same ones after a change; None where that fails."""
        with self._lock:
            weights = self._frozen.weights_of(inputs)
            old = self._frozen.find(weights)
            if old is not None and old.weights.fit(weights):  # another thread was here first
                return self._frozen, old
            if old is None:
                thawed = range(len(weights)) if len(self._frozen.packed) >= MOST_SETS else ()
                why = f"more than {MOST_SETS} modules share the graph"
            else:
                changed = old.weights.changed(weights)
                self._note_change([self._frozen.paths[i] for i in changed])
                self._changes = self._changes + 1 if old.calls < FEW else 0
                thawed = changed if self._changes >= OFTEN else ()
                why = f"{{}} changed {OFTEN} times in a row within {FEW} calls"
            if thawed:
                self._thaw([self._frozen.taken[i] for i in thawed], why)
            try:
                return self._frozen, self._pack(self._frozen, inputs, cache=old is None)
            except CaptureError as error:
                self._record.falls_back(f"its weights changed, and it cannot be packed again: {error.what}")
                return None

    def _pack(self, frozen: _Frozen, inputs: _Inputs, *, cache: bool = True) -> _Packed:
        """Optimise and pack for the weights among these inputs; without `cache` where they change often."""
        weights = frozen.weights_of(inputs)
        watch = FrozenWeights(weights, frozen.forget)  # before they are read: no change meanwhile is missed
        options = self._options
        given = frozen.inputs_of(inputs)
        with packing, alone(), frozen.bound(weights) as graph:
            made = compile(
                graph,
                given if options.backend == "auto" and not _unknown(given) else (),
                level=options.level,
                backend=options.backend,
                disable=options.disable,
                passes=options.passes,
                threads=options.threads,
                cache=cache,
                eager=partial(self._in_eager, frozen, inputs),
            )
        self._options = replace(options, backend=made.backend)  # measured once
        record = self._record
        record.backend, record.frozen = made.backend, len(weights)
        record.optimized_nodes = len(made.graph.nodes)
        record.add_seconds({k: v for k, v in made.seconds.items() if k != "capture"})
        packed = _Packed(watch, made.executable)
        frozen.add(weights, packed)
        return packed

    def _in_eager(self, frozen: _Frozen, inputs: _Inputs, *given: Any) -> Any:
        """The GraphModule, on what the graph is given: what `auto` measures against."""
        full = list(inputs)
        for position, value in zip(frozen.left, given, strict=True):
            full[position] = value
        return self._results.module(*full)

    def _note_change(self, paths: Sequence[str]) -> None:
        more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
        self._record.packed_again += 1
        self._record.tell(f"weights changed, packed again: {', '.join(paths[:3])}{more}")

    def _thaw(self, positions: Sequence[int], why: str) -> None:
        """Take these weights as inputs from now on."""
        self._weights = {i: weight for i, weight in self._weights.items() if i not in positions}
        several = len(positions) > 1
        self._record.tell(
            f"{len(positions)} weight{'s are' if several else ' is'} no longer frozen: "
            f"{why.format('they' if several else 'it')}"
        )
        self._frozen, self._changes = _Frozen(self._captured, self._weights), 0

    def _overlap(self, inputs: _Inputs, packed: _Packed) -> bool:
        """Whether memory that is written to may belong to another input. Whole storages are compared."""
        tensors = [v for v in self._frozen.inputs_of(inputs) if isinstance(v, torch.Tensor)]
        storages = list(map(_storage, tensors))
        written = set(map(_storage, self._written(inputs)))
        alone = sum(storages.count(each) for each in written) == len(self._written(inputs))
        return not (alone and written.isdisjoint(packed.weights.storages))


@contextmanager
def alone() -> Iterator[None]:
    """As if nobody was compiling: passes make fake tensors of their own, and what they fold is plain."""
    with _disable_current_modes(), tracing(None), torch.inference_mode(False), torch.no_grad():
        yield


def _real_inputs(placeholders: Sequence[fx.Node], examples: _Inputs) -> list[Any]:
    """The inputs of the call that Dynamo is compiling for; None where they are not known."""
    found: list[Any] = []
    for node, example in zip(placeholders, examples, strict=True):
        if isinstance(example, torch.SymInt):
            found.append(example.node.hint)
        else:
            real = getattr(node.meta.get("grapharg"), "example", example)
            found.append(None if isinstance(real, torch._subclasses.FakeTensor) else real)
    return found


def _unknown(inputs: _Inputs) -> bool:
    return any(each is None for each in inputs)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _getter(positions: Sequence[int]) -> Callable[[_Inputs], tuple[Any, ...]]:
    """A function that picks items by position; always a tuple."""
    if len(positions) > 1:
        return itemgetter(*positions)
    return lambda items: tuple(items[i] for i in positions)
