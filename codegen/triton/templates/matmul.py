"""Matrix products with holes: linear, mm, addmm, bmm and what runs after them on the result.

Three schedules share the kernel's inner loop (one tile a program, persistent programs, the sum split over
programs); the file carries the configurations that the cost model leaves.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from codegen.triton.configs import TileConfig, matmul_configs
from codegen.triton.file import KernelFile
from codegen.triton.templates.text import fill

_FORMS = {  # form: shapes of both operands, as [batch, M, K] and [batch, K, N],
    "linear": (
        "(*lead, k)",
        "(n, k)",
        "{a}.reshape(1, {a}.shape[:-1].numel(), {a}.shape[-1])",
        "{b}.t()[None]",
    ),
    "mm": ("(*lead, k)", "(k, n)", "{a}[None]", "{b}[None]"),
    "flat": (
        "(*lead, k)",
        "(k, n)",
        "{a}.reshape(1, {a}.shape[:-1].numel(), {a}.shape[-1])",
        "{b}[None]",
    ),
    "bmm": ("(*lead, k)", "(*lead[:-1], k, n)", "{a}.flatten(0, -3)", "{b}.flatten(0, -3)"),
}
_SHAPES = {
    "linear": "(*{a}.shape[:-1], {b}.shape[0])",
    "mm": "({a}.shape[0], {b}.shape[1])",
    "flat": "(*{a}.shape[:-1], {b}.shape[1])",
    "bmm": "(*{a}.shape[:-1], {b}.shape[-1])",
}


@dataclass(frozen=True)
class Extra:
    """A tensor that the epilogue reads, for each element of the result or broadcast.

    `over` names the dimensions of the result that it varies over: "bmn" in full, "n" like a bias, "" scalar.
    """

    name: str
    over: str
    dtype: torch.dtype

    @property
    def parameters(self) -> str:
        return ", ".join([self.name, *(f"{self.name}_{d}" for d in self.over)])

    @property
    def load(self) -> str:
        at = {
            "b": f"batch * {self.name}_b",
            "m": f"rows[:, None] * {self.name}_m",
            "n": f"n[None, :] * {self.name}_n",
        }
        terms = [self.name, *(at[d] for d in self.over)]
        where = {"n": "(n < N)[None, :]", "": "None"}.get(self.over, "inside")
        other = "" if where == "None" else f", mask={where}, other=0"
        text = f"tl.load({' + '.join(terms)}{other})"
        return f"{text}.to(tl.float32)" if self.dtype in (torch.float16, torch.bfloat16) else text

    @property
    def shape(self) -> str:
        return {"bmn": "(*lead, n)", "n": "(n,)", "": "()"}[self.over]

    @property
    def view(self) -> str:
        """In launch: with as many strides as it is loaded by."""
        to = {"bmn": ".expand(shape).reshape(batch, M, N)", "n": ".reshape(-1)", "": ""}[self.over]
        return f"{self.name} = {self.name}{to}" if to else ""

    @property
    def passed(self) -> str:
        return f"{self.name}, *{self.name}.stride()" if self.over else self.name


@dataclass(frozen=True)
class Matmul:
    """A product and what runs after it.

    Attributes:
        form: "linear" (x[..., K], weight[N, K]), "flat" (x[..., K], b[K, N]), "mm" or "bmm".
        operands: names of the two operands among `parameters`.
        parameters: launch's, in order.
        lead, n, k: the captured result is (*lead, n), the sum runs over k.
        epilogue: lines of Triton that make `value` of `acc` and of `<extra>_tile`, all in float32.
        reference: the function of that name, in PyTorch.
        helpers: device functions that the epilogue calls.
        prologue: lines that change the tiles `x` and `y` after they are loaded.
    """

    form: str
    operands: tuple[str, str]
    parameters: tuple[str, ...]
    dtype: torch.dtype
    lead: tuple[int, ...]
    n: int
    k: int
    reference: str
    operand_dtypes: tuple[torch.dtype, torch.dtype] | None = None
    result_dtype: torch.dtype | None = None
    extras: tuple[Extra, ...] = ()
    epilogue: tuple[str, ...] = ()
    value: str = "acc"
    title: str = "Matrix product"
    prologue: tuple[str, ...] = ()
    helpers: tuple[str, ...] = ()
    stands_for: tuple[str, ...] = ()
    configs: tuple[TileConfig, ...] = field(default=())

    def file(self) -> KernelFile:
        """The kernel file."""
        return _file(self)


def _file(spec: Matmul) -> KernelFile:
    a, b = spec.operands
    shape_a, shape_b, view_a, view_b = _FORMS[spec.form]
    batch, rows = _flat(spec)
    aligned = all(
        side * spec.dtype.itemsize % 16 == 0 for side in (spec.k, spec.n if spec.form != "linear" else spec.k)
    )
    exact = spec.dtype == torch.float32
    configs = spec.configs or matmul_configs(
        batch, rows, spec.n, spec.k, spec.dtype.itemsize, exact=exact, aligned=aligned
    )
    shapes = {a: shape_a, b: shape_b} | {e.name: e.shape for e in spec.extras}
    dtypes = dict(zip((a, b), spec.operand_dtypes or (spec.dtype, spec.dtype), strict=True))
    dtypes |= {e.name: e.dtype for e in spec.extras}
    result = spec.result_dtype or spec.dtype
    flat = spec.form in ("linear", "flat")
    ones = 0 if flat else len(spec.lead) - 1
    sizes = [((1,) * ones + (m,), n, k) for m, n, k in _SIZES]
    columns = f"{b}.shape[0]" if spec.form == "linear" else f"{b}.shape[-1]"
    return fill(
        "matmul",
        kind=spec.form if spec.form == "linear" else "matmul",
        title=spec.title,
        notes=_NOTES,
        parameters=", ".join(spec.parameters),
        first=a,
        configs=[repr(config.options()) for config in configs],
        launch_title=f"{spec.title}.",
        integer=False,
        helpers=spec.helpers,
        prologue=spec.prologue,
        extras=spec.extras,
        epilogue=spec.epilogue,
        epilogue_title=spec.title[0].lower() + spec.title[1:],
        value=f"{spec.value}.to(out.dtype.element_ty)",
        shape=_SHAPES[spec.form].format(a=a, b=b),
        a=view_a.format(a=a),
        b=view_b.format(b=b),
        result_dtype=str(result),
        reference=spec.reference,
        inputs=[
            f"{name} = torch.randn({shapes[name]}, device=device).to({dtypes[name]})"
            for name in spec.parameters
        ],
        sizes=sizes,
        small=(2, 33) if flat else (*(2,) * ones, 33),
        captured_lead=spec.lead,
        captured_n=spec.n,
        captured_k=spec.k,
        lead=f"{a}.shape[:-1], {columns}, {a}.shape[-1]",
        result_size=result.itemsize,
    ).for_more(spec.stands_for)


_SIZES = ((1, 1, 1), (7, 129, 33), (128, 127, 64), (129, 16, 1000), (0, 5, 3), (5, 3, 0))
_NOTES = """\
One program a tile of the result, tiles grouped so that neighbours share columns of b in the cache; or
persistent programs; or the sum split over programs whose parts are added in order. Sums are in float32;
float32 operands go through tensor cores where torch.set_float32_matmul_precision allows TF32."""


def _flat(spec: Matmul) -> tuple[int, int]:
    if spec.form in ("linear", "flat"):
        return 1, torch.Size(spec.lead).numel()
    return torch.Size(spec.lead[:-1]).numel(), spec.lead[-1]


__all__ = ["Extra", "Matmul"]
