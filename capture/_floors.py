"""Which folder answers which import.

Our top-level packages have common names, and a user's folder may hold its own `models/` or `runtime/`. So
the command line binds our floors by the place where `capture` lies, before the user's folder may answer. A
model is looked up in the user's folder first, then in ours. An import in the user's code that means their
module, and would get ours of the same name, is reported.

Light on purpose: it runs before anything else is imported.
"""

from __future__ import annotations

import builtins
import contextlib
import difflib
import importlib
import linecache
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from capture.errors import CaptureError, ModelError, UsageError

__all__ = ["FLOORS", "ROOT", "bind", "import_model_module", "user_imports", "user_line"]

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("passes", "codegen", "viz", "runtime")
NAMES = ("capture", *FLOORS)


class _Homes(MetaPathFinder):
    """Answers for the top-level names that have been given a home folder, and for nothing else.

    What lies below a package needs no help: its `__path__` leads there.
    """

    def __init__(self) -> None:
        self.folder_of: dict[str, Path] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        home = self.folder_of.get(fullname)
        if home is None:
            return None
        spec = PathFinder.find_spec(fullname, [str(home)])
        if spec is None:
            raise ModuleNotFoundError(f"no module named {fullname!r} in {home}", name=fullname)
        return spec


_homes = _Homes()


def bind() -> None:
    """Let `passes`, `codegen`, `viz` and `runtime` be ours from now on, whatever the user's folder holds.

    Imports none of them. Calling it again changes nothing.

    Raises:
        UsageError: another module of one of these names has been imported already.
    """
    for name in FLOORS:
        if (loaded := sys.modules.get(name)) and not _lies_in(loaded, ROOT):
            raise UsageError(
                f"the name {name!r} is taken by another module",
                where=str(_place(loaded)),
                why=f"torch-capture has a package {name}/ and needs it under that name.",
                hint="rename the other module, or move it into a package of its own.",
            )
    _homes.folder_of.update(dict.fromkeys(FLOORS, ROOT))
    if _homes not in sys.meta_path:
        sys.meta_path.insert(0, _homes)


def import_model_module(name: str) -> ModuleType:
    """Import the module `name` from the working directory, else from beside `capture`, else from `sys.path`.

    Raises:
        UsageError: there is no such module, or one of our names hides a module that it imports.
        ModelError: the module itself raised while it was imported.
    """
    folder = Path.cwd()
    top = name.partition(".")[0]
    if not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(
            f"{name!r} is not the name of a module", hint="package.module, package.module:factory or file.pt2"
        )
    bind()
    if top in _hidden_names(folder):
        raise _collision(top, folder, where=None)
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    home = next((place for place in (folder, ROOT) if _holds(place, name)), None)
    if home is not None:
        _settle(top, home)
    try:
        with user_imports(folder):
            return importlib.import_module(name)
    except CaptureError:
        raise
    except (Exception, SystemExit) as error:
        if (
            home is None
            and isinstance(error, ModuleNotFoundError)
            and f"{name}.".startswith(f"{error.name}.")
        ):
            raise _unknown(name, folder) from None
        raise ModelError(
            f"the module {name!r} cannot be imported",
            where=user_line(error),
            why=f"{type(error).__name__}: {error}",
            hint=f"python -c 'import {name}' should work first.",
        ) from error


@contextlib.contextmanager
def user_imports(folder: Path | None = None) -> Iterator[None]:
    """While code of the user's runs, refuse it an import of a module that one of our names hides.

    The code asks for its own `runtime`, say, and would silently get ours. The user's code is what lies in
    `folder`, by default the working directory.

    Raises:
        UsageError: such an import; the message names the module, the line and the way out.
    """
    folder = folder or Path.cwd()
    hidden = _hidden_names(folder)
    if not hidden:
        yield
        return
    plain_import = builtins.__import__

    def checked_import(name: str, globals: Any = None, *args: Any, **kwargs: Any) -> ModuleType:
        top = name.partition(".")[0]
        absolute = not (args[2] if len(args) > 2 else kwargs.get("level", 0))
        if absolute and top in hidden and _is_users(globals, folder):
            caller = sys._getframe(1)
            raise _collision(top, folder, where=_line(caller.f_code.co_filename, caller.f_lineno, folder))
        return plain_import(name, globals, *args, **kwargs)

    builtins.__import__ = checked_import
    try:
        yield
    finally:
        builtins.__import__ = plain_import


def user_line(error: BaseException) -> str | None:
    """The innermost line of the user's own code that `error` came through, as "file:line   code", or None.

    Models of ours count as the user's; the standard library, installed packages and our floors do not.
    """
    folder = Path.cwd()
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return _line(error.filename, error.lineno, folder)
    foreign = [Path(sysconfig.get_path(key)).resolve() for key in ("stdlib", "purelib", "platlib")]
    foreign += [ROOT / name for name in NAMES]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename).resolve()
        known = any(file.is_relative_to(place) for place in foreign) and not file.is_relative_to(
            ROOT / "models"
        )
        if frame.lineno and not frame.filename.startswith("<") and not known:
            return _line(frame.filename, frame.lineno, folder)
    return None


def _hidden_names(folder: Path) -> set[str]:
    """Our names that a module of the user's bears too."""
    return set() if folder.resolve() == ROOT else {name for name in NAMES if _holds(folder, name)}


def _holds(folder: Path, name: str) -> bool:
    """Is there a module of this dotted name? Told from the files alone: looking must not run the parents."""
    base = folder.joinpath(*name.split("."))
    return base.with_suffix(".py").is_file() or (base.is_dir() and any(base.glob("*.py")))


def _settle(top: str, home: Path) -> None:
    """Let `home` answer for the package `top`; forget a package of that name from elsewhere."""
    loaded = sys.modules.get(top)
    if loaded is not None and not _lies_in(loaded, home):
        if top != "models":
            raise UsageError(
                f"the name {top!r} is taken by a module that is loaded already",
                where=str(_place(loaded)),
                hint=f"rename {top} in {home}.",
            )
        for name in [name for name in sys.modules if name.partition(".")[0] == top]:
            del sys.modules[name]
    if top not in NAMES:
        _homes.folder_of[top] = home


def _is_users(module_globals: Any, folder: Path) -> bool:
    """Does the importing module lie in the user's folder, and not in an installation inside that folder?"""
    if not (named := (module_globals or {}).get("__file__")):
        return False
    file, folder = Path(named).resolve(), folder.resolve()
    if not file.is_relative_to(folder) or "site-packages" in file.relative_to(folder).parts:
        return False
    return not (ROOT.is_relative_to(folder) and file.is_relative_to(ROOT))


def _place(module: ModuleType) -> Path | None:
    """The module's file, or the folder of a package that has none."""
    places = [module.__file__] if getattr(module, "__file__", None) else list(getattr(module, "__path__", ()))
    return Path(places[0]).resolve() if places and places[0] else None


def _lies_in(module: ModuleType, folder: Path) -> bool:
    place = _place(module)
    return place is not None and place.is_relative_to(folder.resolve())


def _line(file: str, number: int, folder: Path) -> str:
    path = Path(file).resolve()
    folder = folder.resolve()
    shown = path.relative_to(folder) if path.is_relative_to(folder) else path
    return f"{shown}:{number}   {linecache.getline(file, number).strip()}"


def _collision(name: str, folder: Path, where: str | None) -> UsageError:
    theirs = f"{name}/" if (folder / name).is_dir() else f"{name}.py"
    return UsageError(
        f"the name {name!r} means two modules",
        where=where,
        why=f"{folder} holds {theirs}, and torch-capture has a package of that name, which imports get.",
        hint=f"rename {theirs}, or move it into a package of your own (from mypackage import {name}).",
    )


def _unknown(name: str, folder: Path) -> UsageError:
    known = [
        ".".join(file.relative_to(place).with_suffix("").parts)
        for place in (folder, ROOT)
        for file in [*place.glob("*.py"), *(place / "models").glob("*.py")]
        if file.stem != "__init__" and file.stem.isidentifier()
    ]
    close = difflib.get_close_matches(name, sorted(set(known)), n=3)
    return UsageError(
        f"there is no module {name!r}",
        why=f"looked in {folder}, then beside torch-capture, then in the installed packages.",
        hint=" or ".join(close) if close else "a module such as models.resnet, or a .pt2 file",
    )
