"""A torch.compile backend by hand: capture what Dynamo hands over, optimise it, run it.

    python examples/dynamo_backend.py

The graphs compute no gradients, so the compiled model is for inference.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

import passes
from capture import capture

graphs = []


def backend(module: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """What `torch.compile(model, backend=backend)` calls for each piece that Dynamo has cut out."""
    graph = passes.optimize(capture(module, example_inputs))
    graphs.append(graph)
    return graph.run


class Router(torch.nn.Module):
    """Two layers with a Python `if` on the data between them: Dynamo breaks the graph there."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, 8)
        self.second = torch.nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        if x.sum() > 0:
            x = x * 2
        return self.second(x)


def main() -> None:
    model = Router().eval()
    compiled = torch.compile(model, backend=backend, dynamic=True)
    with torch.no_grad():
        for batch in (2, 3, 5):
            x = torch.randn(batch, 8)
            torch.testing.assert_close(compiled(x), model(x))
    print(f"{len(graphs)} graphs; the first:\n\n{graphs[0]}")


if __name__ == "__main__":
    main()
