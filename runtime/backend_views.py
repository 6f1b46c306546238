"""Results that share memory in PyTorch must share it in a compiled graph too.

    def forward(x):                         graph(x) -> (base,)
        base = relu(x)            ==>       then, outside of the graph:
        return base.t(), x[0]               base.as_strided(...), x.as_strided(...)

A graph returns values. What Dynamo compiles is a piece of a program, whose next piece may write to one of
two results and read the other; so each such group is returned once, as the tensor that all of it lies in, and
the views are taken when the call is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import fx

from capture.errors import CaptureError
from capture.frontends.sizes import Sizes, as_expr
from capture.ir import Dim, Graph, dims

__all__ = ["Results", "plan_results"]


@dataclass(frozen=True)
class View:
    """One result: a tensor, or a view of it.

    Attributes:
        source: position of the tensor among the inputs, or among what the graph returns.
        of_input: which of the two.
        shape, stride, offset: of the view, the offset from the tensor's first element; shape is None where it
            is the tensor itself.
    """

    source: int
    of_input: bool = False
    shape: tuple[Dim, ...] | None = None
    stride: tuple[Dim, ...] = ()
    offset: Dim = 0

    def take(self, source: torch.Tensor, env: Mapping[str, int]) -> torch.Tensor:
        """The view of a tensor; `env` gives the sizes that vary."""
        if self.shape is None:
            return source
        offset = source.storage_offset() + _number(self.offset, env)
        shape, stride = ([_number(d, env) for d in each] for each in (self.shape, self.stride))
        return source.as_strided(shape, stride, offset)


@dataclass(frozen=True)
class Results:
    """How to make the results that are wanted from those that a graph returns.

    Attributes:
        module: the GraphModule to capture; its results share no memory.
        views: one for each result that is wanted; empty where they are what the graph returns.
        sizes: name of a size in the views -> position of the input that tells it.
    """

    module: fx.GraphModule
    views: tuple[View, ...] = ()
    sizes: dict[str, int] = field(default_factory=dict)

    def rebuild(self, inputs: Sequence[Any], returned: Sequence[Any]) -> list[Any]:
        """The results that are wanted.

        Args:
            inputs: those of the GraphModule.
            returned: what the graph returned for them.
        """
        env = {name: inputs[i] for name, i in self.sizes.items()}
        return [view.take((inputs if view.of_input else returned)[view.source], env) for view in self.views]


def plan_results(module: fx.GraphModule) -> Results:
    """Find the results of one of Dynamo's GraphModules that share memory with each other or with an input.

    Raises:
        CaptureError: they share it in a way in which no view can be made again.
    """
    wanted = list(module.graph.output_node().args[0])
    inputs = {node: i for i, node in enumerate(module.graph.find_nodes(op="placeholder"))}
    owners = _owners(module)
    stored = [_storage(v) for v in wanted]
    sources = [
        owners[key] if key is not None and (owners[key] in inputs or stored.count(key) > 1) else value
        for key, value in zip(stored, wanted, strict=True)
    ]
    if len({id(s) for s in sources if isinstance(s, fx.Node)} - {id(n) for n in inputs}) == len(wanted):
        return Results(module)
    sizes = Sizes(Graph())
    told = _told_sizes(inputs, sizes)
    returned: list[Any] = []
    views: list[View] = []
    for value, source in zip(wanted, sources, strict=True):
        if source in inputs:
            place, of_input = inputs[source], True
        else:
            if not isinstance(source, fx.Node) or source not in returned:
                returned.append(source)
            place = returned.index(source) if isinstance(source, fx.Node) else len(returned) - 1
            of_input = False
        views.append(View(place, of_input, *(() if source is value else _form(value, source, sizes))))
    unknown = {str(name) for name in sizes.names.values()} - told.keys()
    if unknown:
        raise CaptureError("the size of a result that is a view depends on the data")
    return Results(_returning(module, returned), tuple(views), told)


def _owners(module: fx.GraphModule) -> dict[int, fx.Node]:
    """By storage, the node that made it: an input, a tensor of the module, or a call."""
    owners: dict[int, fx.Node] = {}
    for node in module.graph.nodes:
        key = _storage(node)
        if key is not None:
            owners.setdefault(key, node)
    return owners


def _storage(node: Any) -> int | None:
    value = node.meta.get("example_value") if isinstance(node, fx.Node) else None
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        return None
    in_transform = torch._C._functorch.is_functorch_wrapped_tensor(value)  # inside of vmap or grad: no result
    return None if in_transform else value.untyped_storage()._cdata


def _told_sizes(inputs: Mapping[fx.Node, int], sizes: Sizes) -> dict[str, int]:
    """The sizes that Dynamo passes as inputs of their own; it does so for each one that varies."""
    told: dict[str, int] = {}
    for node, position in inputs.items():
        value = node.meta.get("example_value")
        symbol = as_expr(value) if isinstance(value, torch.SymInt) else None
        if isinstance(symbol, sympy.Symbol) and symbol not in sizes.names:
            sizes.name(symbol, node.name)
            told[str(sizes.names[symbol])] = position
    return told


def _form(node: fx.Node, owner: fx.Node, sizes: Sizes) -> tuple[tuple[Dim, ...], tuple[Dim, ...], Dim]:
    """Shape, stride and offset of a result in its owner's memory."""
    value, base = node.meta["example_value"], owner.meta["example_value"]
    if (value.dtype, value.is_conj(), value.is_neg()) != (base.dtype, base.is_conj(), base.is_neg()):
        raise CaptureError(
            "a result is another reading of the memory of a tensor that is returned too, or is an input",
            why=f"the view has the dtype {value.dtype}, the tensor {base.dtype}",
            hint="return a copy: .clone()",
        )
    shape, stride = (tuple(sizes.size(d) for d in each) for each in (value.shape, value.stride()))
    return shape, stride, sizes.size(value.storage_offset() - base.storage_offset())


def _returning(module: fx.GraphModule, results: Sequence[Any]) -> fx.GraphModule:
    """A copy of the GraphModule that returns something else."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(module.graph, copies)
    graph.output(tuple(copies[v] if isinstance(v, fx.Node) else v for v in results))
    return fx.GraphModule(module, graph)


def _number(size: Dim, env: Mapping[str, int]) -> int:
    return size if isinstance(size, int) else dims.evaluate(size, env)
