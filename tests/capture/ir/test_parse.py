"""Text that is no graph: an error that names the line, and nothing else ever happens."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.errors import CaptureError
from capture.ir import Graph
from capture.ir.parse import parse_type
from capture.ir.scan import Scanner, split

VALID = """\
graph(%x: f32[N, 3] channels_last, %"a b": i64[] @cuda:1, %flag: =True) where N in [1, 64], M in [2, inf]
  @w.weight: f32[3, 3]
  %0: f32[N, 3] = aten.linear(%x, @w.weight) via mkldnn.linear(packed=True, post=["relu", 1.0])   # fc  m.py:1,2
  %1: f32[N, 3] = fusion.pointwise(%0, %x) {  # "b c", d  "b c.py":3
    ^(%a: f32[N, 3], %b: f32[N, 3])
    %c: f32[N, 3] = aten.add.Tensor(%a, %b, alpha=2)
    return %c
  }
  %2: f32[N], %3: i64[N] = aten.max.dim(%1, -1)
  aten._assert_async.msg(%3, "not \\"this\\"  # nor that")
  %4: f32[N//2, M*max(4, N), N % 3] = aten.full([N//2, M*max(4, N), N % 3], -0.0, dtype=torch.float32, device=device("cpu"))
  return %4, None, 3, [N, 1], complex(1.0, nan)
  write %x = %1
"""  # noqa: E501


def test_the_valid_text_is_valid() -> None:
    assert len(Graph.parse(VALID).nodes) == 5


@pytest.mark.parametrize(
    ("old", "new", "line", "why"),
    [
        ("graph(", "grap(", 1, "expected `graph\\(`"),
        ("%x: f32[N, 3] channels_last, ", '%"a b": f32[], ', 1, "defined twice"),
        ("f32[N, 3] channels_last", "f33[N, 3]", 1, "no type f33"),
        ("f32[N, 3] channels_last", "f32", 1, "no type f32"),
        ("f32[N, 3] channels_last", "f32[N 3]", 1, "expected `]`"),
        ("channels_last", "channels_first", 1, "no memory format channels_first"),
        ("@cuda:1", "@quantum", 1, "no device 'quantum'"),
        ("=True", "=true(1)", 1, "expected `\\)`"),
        ("N in [1, 64]", "N in [64, 1]", 1, "range of N is empty"),
        ("N in [1, 64]", "M in [1, 64]", 1, "defined twice"),
        ("N in [1, 64]", "nan in [1, 64]", 1, "means something else"),
        ("N in [1, 64]", "N in [1; 64]", 1, "expected `,`"),
        ("M in [2, inf]", "M in [2, inf] or so", 1, "expected nothing more"),
        ("@w.weight: f32[3, 3]", "@w.weight: int", 2, "is no tensor"),
        ("@w.weight: f32[3, 3]", "@w.weight: f32[3, 3]\n  @w.weight: f32[3, 3]", 3, "defined twice"),
        ("aten.linear(", "aten.lineal(", 3, "no operator named 'aten.lineal'"),
        ("aten.linear(", "aten.save(", 3, "no operator named 'aten.save'"),
        ("aten.linear(%x, @w.weight)", "aten.linear(%x)", 3, "needs the argument 'weight'"),
        ("aten.linear(%x, @w.weight)", "aten.linear(%x, @v)", 3, "@v is used before it is defined"),
        ("aten.linear(%x, @w.weight)", "aten.linear(%x, @w.weight", 3, "expected `\\)`"),
        ("aten.linear(%x, @w.weight)", "aten.linear(%x, @w.weight, 1, 1)", 3, "takes 3 arguments"),
        ("via mkldnn.linear(packed=True", "via mkldnn.linear(True", 3, "options as `name=value`"),
        ("via mkldnn", "by mkldnn", 3, "expected nothing more"),
        ("# fc  m.py:1,2", "# fc  m.py", 3, "file name"),
        ("%0: f32[N, 3] = aten.linear", "%x: f32[N, 3] = aten.linear", 3, "%x is defined twice"),
        ("%0: f32[N, 3] = aten.linear", "f32[N, 3] = aten.linear", 3, "not an operator's name|expected"),
        ("fusion.pointwise(%0, %x) {", "fusion.pointwise(%0, %x)", 4, "needs a region"),
        ("fusion.pointwise(%0, %x) {", "aten.mul.Tensor(%0, %x) {", 4, "has no region"),
        ("^(%a", "(%a", 5, "expected `\\^\\(`"),
        ("%a, %b, alpha=2", "%a, %x, alpha=2", 6, "%x is used before it is defined"),
        ("alpha=2", "alpha=2, alpha=3", 6, "each keyword once"),
        ("alpha=2", "alpha=2, %a", 6, "each keyword once"),
        ("alpha=2", "beta=2", 6, "no argument 'beta'"),
        ("    return %c\n", "", 7, "expected an operator"),
        ("    return %c\n", "    return %c\n    write %a = %c\n", 9, "no write-backs"),
        ("  }\n", "  } {\n", 9, "expected `\\^\\(`"),
        ("%1, -1)", "%1, -1) also", 9, "expected nothing more"),
        ('that")', 'that)', 10, "expected"),
        ("N % 3] =", "N % 3 =", 11, "expected"),
        ("dtype=torch.float32", "dtype=torch.load", 11, "torch.load is not a dtype"),
        ('device("cpu")', 'device("qpu")', 11, "no device 'qpu'"),
        ("N//2,", "N//0,", 11, "no divisor"),
        ("N//2,", "__import__('os'),", 11, "expected"),
        ("[N, 1]", "[N, 1", 12, "expected `,`"),
        ("complex(1.0, nan)", "complex(1.0)", 12, "expected `,`"),
        ("write %x = %1", "write 3 = %1", 13, "each target once"),
        ("write %x = %1", "write %x = %1\n  write %x = %0", 14, "each target once"),
        ("write %x = %1", "write %x = %1\n  print(1)", 14, "after the end"),
        ("  return %4", "  retort %4", 12, "not an operator"),
    ],
)  # fmt: skip
def test_errors_name_the_line(old: str, new: str, line: int, why: str) -> None:
    assert old in VALID
    with pytest.raises(CaptureError, match=f"(?s)cannot read the graph's text.*line {line}:.*({why})"):
        Graph.parse(VALID.replace(old, new, 1))


@pytest.mark.parametrize("text", ["", "\n\n", "graph()", "graph()\n", "graph(%x: f32[2])\n  aten.relu(%x)\n"])
def test_text_that_ends_too_soon(text: str) -> None:
    with pytest.raises(CaptureError, match="end"):
        Graph.parse(text)


@pytest.mark.parametrize("opening", ["[", "(", "max(", "-"])
def test_deep_nesting_is_refused(opening: str) -> None:
    with pytest.raises(CaptureError, match="too deeply"):
        Graph.parse(f"graph()\n  return {opening * 100_000}\n")


def test_deep_regions_are_refused() -> None:
    lines = ["graph()", *["fusion.a() {", "^()"] * 5000]
    with pytest.raises(CaptureError, match="too deeply"):
        Graph.parse("\n".join(lines))


ALPHABET = '%@^(){}[]=:,.#"\\-+*/0aN \n_\x00é'


def mutated(text: str, rng: random.Random) -> str:
    """The text with a few pieces dropped, doubled, swapped, or replaced."""
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(text) + 1), rng.randint(0, 6)
        other = rng.randrange(len(text) + 1)
        piece = rng.choice(
            [
                "",
                text[at : at + length] * 2,
                text[other : other + length],
                "".join(rng.choices(ALPHABET, k=length)),
            ]
        )
        text = text[:at] + piece + text[at + length :]
    return text


def refusal(text: str) -> CaptureError | None:
    """What reading the text says, or None where it is a graph; any other exception is the test's failure."""
    try:
        graph = Graph.parse(text)
    except CaptureError as error:
        return error
    assert str(Graph.parse(str(graph))) == str(graph)
    return None


@given(st.integers(0, 2**32))
@settings(max_examples=400)
def test_broken_text_raises_a_capture_error_and_nothing_else(seed: int) -> None:
    error = refusal(mutated(VALID, random.Random(seed)))
    if error is not None:
        assert str(error.where).startswith("line ")
        assert error.why


def test_reading_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("an operator was called")

    monkeypatch.setattr(torch._ops.OpOverload, "__call__", forbidden)
    assert len(Graph.parse(VALID).nodes) == 5


@pytest.mark.parametrize(
    "text", ["f32[N, 3]", "bool", "bool[1]", "int(u0 + 1)", '=[1, "a"]', "f8e4m3[] strided @meta"]
)
def test_types_read_back(text: str) -> None:
    assert str(parse_type(text)) == text


@pytest.mark.parametrize(
    "text", ["", "f32", "f32[N", "f32[N] extra", "int(", "list[2]", "f32[2] @", "f32[1.5]"]
)
def test_what_is_no_type(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|no type|no memory format"):
        parse_type(text)


def test_splitting_outside_brackets_and_strings() -> None:
    assert split('a, f(b, [c, d]), "x, y", {e: 1, g: 2}') == ["a", "f(b, [c, d])", '"x, y"', "{e: 1, g: 2}"]
    assert split("") == []
    assert split("a,") == ["a", ""]
    assert split(",a") == ["", "a"]
    assert split("a = b", " = ") == ["a", "b"]
    assert split('"a \\" , b", c') == ['"a \\" , b"', "c"]


def test_a_scanner_says_where_it_stopped() -> None:
    scanner = Scanner("one two, and a long rest that is cut off somewhere")
    scanner.expect("one")
    with pytest.raises(
        ValueError, match=r"column 5: expected `three`, found `two, and a long rest tha\.\.\.`"
    ):
        scanner.expect("three")
    with pytest.raises(ValueError, match="column 1: expected `x`, found the end"):
        Scanner("").expect("x")
