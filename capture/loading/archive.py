"""Exported programs from .pt2 files, without running anything that the file holds.

torch.export.load unpickles parts of an archive, and evaluates the text of its size expressions. So the
archive is looked through first: only plain tensors, operators by name, and arithmetic pass.
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
import warnings
import zipfile
from collections.abc import Iterator
from typing import Any

import torch
from torch.export import ExportedProgram

from capture.errors import CaptureError, UsageError
from capture.frontends.quiet import silence

__all__ = ["load_program"]

_OPERATOR = re.compile(r"torch\.ops\.(?!load_library|import_module)[a-zA-Z]\w*(\.(?!__)\w+){1,2}")
_PYTHON = re.compile(
    r"_operator\.(add|sub|mul|floordiv|truediv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
    r"|math\.(ceil|floor|trunc|sqrt|pow|log|log2|exp)"
    r"|torch\.(sym_max|sym_min|sym_not|sym_sum|sym_float|sym_int|sym_ite|_sym_sqrt|_sym_\w+)"
)
_FUNCTIONS = re.compile(
    r"FloorDiv|ModularIndexing|Where|PythonMod|Mod|CleanDiv|CeilToInt|FloorToInt|CeilDiv|LShift|RShift"
    r"|PowByNatural|FloatPow|FloatTrueDiv|IntTrueDiv|IsNonOverlappingAndDenseIndicator|TruncToFloat|TruncToInt"
    r"|RoundToInt|RoundDecimal|ToFloat|Identity|Max|Min|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|OpaqueUnaryFn_\w+"
    r"|BitwiseFn_\w+|Integer|Rational|Add|Mul|Pow|floor|ceiling|Equality|Unequality|GreaterThan|LessThan"
    r"|StrictGreaterThan|StrictLessThan"
)


def load_program(path: str | os.PathLike[str], *, allow_pickle: bool = False) -> ExportedProgram:
    """Read what `torch.export.save` wrote.

    Raises:
        UsageError: there is no such file.
        CaptureError: the file is damaged, or needs unpickling, which runs code, and may not.
    """
    name = os.fspath(path)
    if not os.path.isfile(name):
        raise UsageError(f"there is no file {name}")
    try:
        if not allow_pickle:
            with zipfile.ZipFile(name) as archive:
                _check(name, archive)
        with silence(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's, about its own way to read
            program = torch.export.load(name)
    except CaptureError:
        raise
    except Exception as error:  # whatever a damaged file makes zipfile, json or torch raise
        raise _damage(name, error) from error
    return program


def _damage(name: str, error: Exception) -> CaptureError:
    """What is wrong with a file that is no whole archive, or whose archive torch cannot read."""
    size = os.path.getsize(name)
    with open(name, "rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04"
    if size == 0:
        why = "the file is empty"
    elif not is_archive:
        why = "it is not an archive, as torch.export.save writes them"
    elif isinstance(error, zipfile.BadZipFile):
        why = f"its end is missing, or it is damaged ({size} bytes): perhaps a copy that was cut short"
    else:
        why = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return CaptureError(
        f"cannot load the program {name}",
        why=why,
        hint="copy it again, or write it anew: torch.export.save(torch.export.export(model, args), path)",
    )


def _check(name: str, archive: zipfile.ZipFile) -> None:
    """Refuse an archive of which more than text and plain tensors would have to be read."""
    names = archive.namelist()
    if not any("/models/" in n and n.endswith(".json") for n in names):
        raise _refusal(name, "it is in an old format, or holds compiled code")
    for file in names:
        inner = file.partition("/")[2]
        if inner.startswith("data/aotinductor/"):
            raise _refusal(name, "it holds compiled code")
        if re.match(r"data/(weights|constants)/.*\.pt$", inner):
            raise _refusal(name, f"{inner} is pickled")
        if inner.endswith("_config.json"):
            _check_payload(name, json.loads(archive.read(file)))
        elif inner.startswith("data/sample_inputs/"):
            _check_pickle(name, inner, archive.read(file))
        elif inner.startswith("models/"):
            _check_graph(name, json.loads(archive.read(file)))


def _check_payload(name: str, table: Any) -> None:
    for key, row in table["config"].items():
        if row["use_pickle"] or not re.fullmatch(r"(weight|tensor)_\d+", row["path_name"]):
            raise _refusal(name, f"{key} is pickled")


def _check_pickle(name: str, file: str, data: bytes) -> None:
    """torch.save writes tensors as a pickle too, but one that torch reads by a short white list."""
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except Exception as error:  # UnpicklingError, or whatever a damaged pickle raises
        raise _refusal(name, f"{file} holds more than tensors") from error


def _check_graph(name: str, document: Any) -> None:
    for row in _dicts(document):
        if "expr_str" in row and not _is_arithmetic(row["expr_str"]):
            raise _refusal(name, f"the size {row['expr_str']!r} is not plain arithmetic")
        if {"target", "inputs", "outputs"} <= row.keys():
            target = str(row["target"])
            if not (_OPERATOR.fullmatch(target) or _PYTHON.fullmatch(target)):
                raise _refusal(name, f"it calls {target!r}, which is not an operator")
        for spec in ("in_spec", "out_spec"):
            if "__enum__" in str(row.get(spec, "")):
                raise _refusal(name, "its inputs or outputs hold an enum, which would be imported")


def _dicts(document: Any) -> Iterator[dict[str, Any]]:
    stack = [document]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            yield item
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)


def _is_arithmetic(text: str) -> bool:
    """Whether an expression is made of numbers, names, operators and known functions only."""
    try:
        return _is_plain(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _is_plain(node: ast.expr) -> bool:
    match node:
        case ast.Constant(value=int() | float()):
            return True
        case ast.Name(id=name):
            return not name.startswith("__")
        case ast.UnaryOp(operand=inner):
            return _is_plain(inner)
        case ast.BinOp(left=left, right=right):
            return _is_plain(left) and _is_plain(right)
        case ast.Compare(left=left, comparators=others):
            return all(map(_is_plain, [left, *others]))
        case ast.Call(
            func=ast.Name(id="Symbol" | "Float"), args=[ast.Constant(value=str() as word)], keywords=flags
        ):
            # Text is parsed again by every other function, so only these may have any.
            return bool(re.fullmatch(r"[\w.+-]+", word)) and all(
                isinstance(k.value, ast.Constant) for k in flags
            )
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            return bool(_FUNCTIONS.fullmatch(name)) and all(map(_is_plain, args))
    return False


def _refusal(name: str, why: str) -> CaptureError:
    return CaptureError(
        f"{name} cannot be loaded without running code that it holds",
        why=f"{why}.",
        hint="--allow-pickle (allow_pickle=True), if you trust where the file comes from",
    )
