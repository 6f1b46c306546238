"""A kernel file: the form that every generated kernel has, whether printed from a region or from a template.

    docstring                     what it computes, which captured ops it stands for, bytes moved
    @triton.jit def NAME          the kernel, and the device functions that it calls
    launch(*tensors, out=None)    allocates the result unless `out` is given, picks grid and constants
    reference(*tensors)           the same in plain PyTorch
    examples(device="cpu")        [(name, inputs)]: odd sizes, layouts that launch copes with, empty tensors
    captured(device="cpu")        inputs of the sizes that were captured
    work(*tensors)                (bytes moved at least, floating-point operations)
    python FILE.py --check    launch against reference in float64; --bench: rate and share of the ceiling

A file needs torch and triton only. Its name tells its kind and a hash of its text without the "Stands for"
lines, so that equal layers of a model share one file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from capture._lazy import needed
from codegen.python.spelling import docstring

if TYPE_CHECKING:
    import jinja2

NAME = "KERNEL"  # stands for the kernel's name in the pieces of a file
_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class KernelFile:
    """The pieces of one kernel file, as text; in them ``KERNEL`` stands for the file's name.

    Attributes:
        kind: first part of the name: pointwise, softmax, matmul.
        title: first line of the docstring, "softmax over the last axis, fused with ...".
        notes: more lines of the docstring: bytes moved, how programs map to the data.
        kernels: the ``@triton.jit`` functions.
        launch, reference, examples, captured, work: one function each, of that name, with its docstring.
        stands_for: lines such as "encoder.0 (models/bert.py:71): mul, add, softmax"; not part of the hash.
    """

    kind: str
    title: str
    notes: str
    kernels: str
    launch: str
    reference: str
    examples: str
    captured: str
    work: str
    stands_for: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """``<kind>_<hash8>``."""
        pieces = replace(self, stands_for=())
        return f"{self.kind}_{hashlib.sha256(pieces._render(NAME).encode()).hexdigest()[:8]}"

    @property
    def source(self) -> str:
        """The text of the file."""
        return self._render(self.name)

    def for_more(self, lines: Iterable[str]) -> KernelFile:
        """The same kernel, standing for these captured ops too."""
        return replace(self, stands_for=tuple(dict.fromkeys((*self.stands_for, *lines))))

    def _render(self, name: str) -> str:
        shown = [docstring(line) for line in self.stands_for]
        text = _template().render(file=self, stands_for=shown).replace(NAME, name)
        return text.rstrip("\n") + "\n"


@cache
def _template() -> jinja2.Template:
    jinja2 = needed("jinja2", "writing kernels")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template("file.py.jinja")


__all__ = ["NAME", "KernelFile"]
