"""How long the passes take: the whole pipeline by number of nodes, and on the model workloads.

    python -m benchmarks.compile_time               written to benchmarks/results/compile_time.md and .svg
    python -m benchmarks.compile_time --nodes 500 5000 --no-models

Two synthetic graphs, written as text and given weights: a Transformer encoder and a residual network, as long
as it takes. Each layer has weights of its own, so that no two are merged. Seconds are wall time of one run
after a first on the smallest graph, which loads what PyTorch loads late; verification is off, as it is for
users.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jinja2
import torch

from benchmarks.tables import Table, parser
from capture import Graph, capture
from capture.ir.serialize import write_aside
from passes import optimize

NODES = (500, 1000, 2000, 3500, 5000)
MODELS = {"ResNet-50": "resnet:resnet50", "BERT-base": "bert:build"}
COLUMNS = ("graph", "nodes", "seconds", "ms a node", "slowest passes, seconds")


class Text:
    """A graph's text in the making: nodes are numbered, constants noted with their sizes."""

    def __init__(self, inputs: str) -> None:
        self.inputs = inputs
        self.constants: list[str] = []
        self.nodes: list[str] = []

    def constant(self, name: str, *shape: int) -> str:
        self.constants.append(f"  @{name}: f32{list(shape)}")
        return f"@{name}"

    def node(self, shape: str, call: str, memory: str = "") -> str:
        self.nodes.append(f"  %{len(self.nodes)}: f32[{shape}]{memory} = aten.{call}")
        return f"%{len(self.nodes) - 1}"

    def graph(self, result: str) -> Graph:
        lines = [f"graph({self.inputs})", *self.constants, *self.nodes, f"  return {result}", ""]
        graph = Graph.parse("\n".join(lines))
        generator = torch.Generator().manual_seed(0)
        state = {
            name: torch.randn(c.tensor_type.concrete({}), generator=generator) / 8
            for name, c in graph.constants.items()
        }
        for name, tensor in state.items():
            if name.endswith("running_var"):
                tensor.abs_().add_(0.5)
        return graph.bind(state)


def encoder(count: int, width: int = 32, tokens: int = 8) -> Graph:
    """Transformer layers, 21 nodes each: attention with views, residuals, norms, GELU."""
    text = Text(f"%x: f32[1, {tokens}, {width}]")
    heads, shape = 4, f"1, {tokens}, {width}"
    split, turned = f"1, {tokens}, {heads}, {width // heads}", f"1, {heads}, {tokens}, {width // heads}"
    x = "%x"
    for layer in range(max(1, round(count / 21))):

        def linear(x: str, name: str, to: int, of: int, layer: int = layer) -> str:
            weight = text.constant(f"layer.{layer}.{name}.weight", to, of)
            bias = text.constant(f"layer.{layer}.{name}.bias", to)
            return text.node(f"1, {tokens}, {to}", f"linear({x}, {weight}, {bias})")

        parts = []
        for name in ("query", "key", "value"):
            part = text.node(split, f"reshape({linear(x, name, width, width)}, [{split}])")
            parts.append(text.node(turned, f"transpose.int({part}, 1, 2)", " strided"))
        mixed = text.node(turned, f"scaled_dot_product_attention({', '.join(parts)})", " strided")
        back = text.node(split, f"transpose.int({mixed}, 1, 2)")
        out = linear(text.node(shape, f"reshape({back}, [{shape}])"), "output", width, width)
        x = text.node(shape, f"add.Tensor({out}, {x})")
        x = text.node(
            shape, f"layer_norm({x}, [{width}], {text.constant(f'layer.{layer}.norm.weight', width)})"
        )
        wide = text.node(f"1, {tokens}, {2 * width}", f"gelu({linear(x, 'up', 2 * width, width)})")
        x = text.node(shape, f"add.Tensor({linear(wide, 'down', width, 2 * width)}, {x})")
        scale = text.constant(f"layer.{layer}.last.weight", width)
        x = text.node(shape, f"layer_norm({x}, [{width}], {scale})")
    return text.graph(x)


def residual_network(count: int, channels: int = 8, size: int = 8) -> Graph:
    """Bottleneck blocks, 10 nodes each: convolution, norm and activation three times, and the residual."""
    text = Text(f"%x: f32[1, {channels}, {size}, {size}]")
    shape, x = f"1, {channels}, {size}, {size}", "%x"
    for block in range(max(1, round(count / 10))):
        start = x
        for part in range(3):
            stem = f"block.{block}.{part}"
            edge = 1 if part != 1 else 3
            weight = text.constant(f"{stem}.conv.weight", channels, channels, edge, edge)
            x = text.node(shape, f"conv2d({x}, {weight}, None, [1, 1], [{edge // 2}, {edge // 2}])")
            names = ("weight", "bias", "running_mean", "running_var")
            norm = ", ".join(text.constant(f"{stem}.norm.{name}", channels) for name in names)
            x = text.node(shape, f"batch_norm({x}, {norm}, False, 0.1, 1e-05, False)")
            if part < 2:
                x = text.node(shape, f"relu({x})")
        x = text.node(shape, f"relu({text.node(shape, f'add.Tensor({x}, {start})')})")
    return text.graph(x)


FAMILIES: Mapping[str, Callable[[int], Graph]] = {
    "Transformer encoder": encoder,
    "residual network": residual_network,
}


def measure(graph: Graph, level: int) -> tuple[float, dict[str, float]]:
    """(seconds of the whole pipeline, seconds by pass; a pass that runs twice counts twice)."""
    start = time.perf_counter()
    made = optimize(graph, level)
    whole = time.perf_counter() - start
    by_pass: dict[str, float] = {}
    for record in made.history:
        by_pass[record.name] = by_pass.get(record.name, 0.0) + record.seconds
    return whole, by_pass


Row = tuple[str, int, float, dict[str, float]]


def rows(sizes: list[int], level: int, models: bool) -> Iterator[Row]:
    """(graph, nodes, seconds, seconds by pass) of each measurement, as it is done."""
    for name, make in FAMILIES.items():
        measure(make(min(sizes)), level)
        for size in sizes:
            graph = make(size)
            yield name, len(graph.nodes), *measure(graph, level)
    for name, place in MODELS.items() if models else ():
        module_name, _, factory = place.partition(":")
        module = importlib.import_module(f"models.{module_name}")
        graph = capture(getattr(module, factory)(), module.example_inputs(1, factory))
        yield name, len(graph.nodes), *measure(graph, level)


def cells(row: Row) -> tuple[str, ...]:
    name, nodes, seconds, by_pass = row
    slowest = sorted(by_pass.items(), key=lambda item: -item[1])[:4]
    told = ", ".join(f"{key} {value:.2f}" for key, value in slowest)
    return name, str(nodes), f"{seconds:.2f}", f"{1e3 * seconds / nodes:.2f}", told


def growth(points: list[tuple[int, float]]) -> float:
    """Slope of log seconds over log nodes, by least squares."""
    xs, ys = [math.log(n) for n, _ in points], [math.log(s) for _, s in points]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)


PLOT = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 360" font-family="sans-serif" font-size="12"
 fill="#777">
<polyline points="56,24 56,316 616,316" fill="none" stroke="#888"/>
<text x="56" y="16">seconds</text><text x="336" y="352" text-anchor="middle">nodes</text>
{% for x, label in columns %}<text x="{{ x }}" y="334" text-anchor="middle">{{ label }}</text>
{% endfor %}{% for y, label in lines %}<text x="50" y="{{ y }}" text-anchor="end">{{ label }}</text>
{% endfor %}{% for name, colour, points in curves %}<g fill="{{ colour }}">
<polyline points="{% for x, y in points %}{{ x }},{{ y }} {% endfor %}" fill="none" stroke="{{ colour }}"/>
{% for x, y in points %}<circle cx="{{ x }}" cy="{{ y }}" r="3"/>{% endfor %}
<text x="72" y="{{ 24 + 18 * loop.index }}">{{ name }}</text>
</g>
{% endfor %}</svg>
"""
COLOURS = ("#2a6fdb", "#d9622b")


def plot(found: list[Row]) -> str:
    """Seconds over nodes as SVG, a curve a family."""
    most = max(nodes for _, nodes, _, _ in found)
    longest = max(1.0, *(seconds for _, _, seconds, _ in found))

    def x(nodes: float) -> float:
        return round(56 + 560 * nodes / most, 1)

    def y(seconds: float) -> float:
        return round(316 - 292 * seconds / longest, 1)

    curves = [
        (name, colour, [(x(nodes), y(seconds)) for family, nodes, seconds, _ in found if family == name])
        for name, colour in zip(FAMILIES, COLOURS, strict=True)
    ]
    columns = [(x(most * i / 5), most * i // 5) for i in range(6)]
    lines = [(y(longest * i / 4), f"{longest * i / 4:.1f}") for i in range(1, 5)]
    return jinja2.Template(PLOT).render(columns=columns, lines=lines, curves=curves) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print each row as it is done, write the table and the plot."""
    made = parser("compile_time", __doc__)
    made.add_argument(
        "--nodes", type=int, nargs="+", default=list(NODES), metavar="N", help="of synthetic graphs"
    )
    made.add_argument("--level", type=int, default=2, metavar="N", help="of optimisation")
    made.add_argument("--no-models", action="store_true", help="synthetic graphs only")
    options = made.parse_args(arguments)
    about = f"Wall time of the pipeline of level {options.level}; [the plot](compile_time.svg)."
    table = Table("compile_time", "Compile time", about, COLUMNS)
    found = []
    for row in rows(sorted(options.nodes), options.level, not options.no_models):
        table.row(*cells(row))
        found.append(row)
    table.not_asked(list(MODELS), [] if options.no_models else list(MODELS))
    for name in FAMILIES:
        points = [(nodes, seconds) for family, nodes, seconds, _ in found if family == name]
        if len(points) > 1:
            table.note(f"{name}: seconds grow as nodes to the power of {growth(points):.2f}.")
    table.write(options.output)
    write_aside(options.output / "compile_time.svg", plot(found))


if __name__ == "__main__":
    main()
