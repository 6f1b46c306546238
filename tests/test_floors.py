"""Imports from a user's folder that holds modules with our names.

Each test runs Python in such a folder. Beside it stands a small installation: our real `capture/__main__.py`,
`_floors.py` and `errors.py`, and floors that only say whose they are (so nothing waits for torch).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from capture._floors import FLOORS, ROOT

# Errors show as "Kind: text" on stdout, without a traceback.
PRELUDE = """
import builtins, importlib, sys
sys.excepthook = lambda kind, error, trace: print(kind.__name__, error, sep=": ")
from capture._floors import bind, import_model_module, user_imports
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    site = tmp_path / "installed"
    write(site / "capture" / "__init__.py", "")
    for name in ("__main__.py", "_floors.py", "errors.py"):
        shutil.copy(ROOT / "capture" / name, site / "capture")
    for name in (*FLOORS, "models"):
        write(site / name / "__init__.py", "OWNER = 'ours'\n")
    write(site / "models" / "mlp.py", "OWNER = 'ours'\n")
    write(site / "models" / "resnet.py", "OWNER = 'ours'\n")
    write(
        site / "runtime" / "cli.py",
        "def main(argv=None):\n    print('our command line', argv)\n    return 7\n",
    )
    return site


@pytest.fixture
def folder(tmp_path: Path, installed: Path) -> Path:
    """A user's folder with a `models/` (without __init__.py, as many have it) and a `runtime/` of its own."""
    user = tmp_path / "user"
    write(user / "models" / "resnet.py", "from models.blocks import NAME\nOWNER = 'user'\n")
    write(user / "models" / "blocks.py", "NAME = 'blocks'\n")
    write(user / "runtime" / "__init__.py", "OWNER = 'user'\n")
    return user


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def python(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run Python in `folder`, which comes first on sys.path; the installation comes after it."""
    env = {**os.environ, "PYTHONPATH": str(folder.parent / "installed"), "PYTHONDONTWRITEBYTECODE": "1"}
    env.pop("PYTHONSAFEPATH", None)
    return subprocess.run(
        [sys.executable, *args], cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False
    )


def output(folder: Path, code: str) -> str:
    """What `code` prints, after the prelude; the text of an error if it raises one."""
    done = python(folder, "-c", PRELUDE + code)
    assert done.stderr == ""
    return done.stdout


def test_python_alone_takes_the_users_package(folder: Path) -> None:
    """The premise of all that follows."""
    assert python(folder, "-c", "import runtime; print(runtime.OWNER)").stdout == "user\n"


# the floors


def test_the_command_line_is_ours(folder: Path) -> None:
    done = python(folder, "-m", "capture", "models.resnet")
    assert (done.stdout, done.stderr, done.returncode) == ("our command line None\n", "", 7)


def test_bind_makes_every_floor_ours(folder: Path) -> None:
    for name in FLOORS:
        write(folder / name / "__init__.py", "OWNER = 'user'\n")
    code = f"bind()\nfor name in {FLOORS}: print(importlib.import_module(name).OWNER)"
    assert output(folder, code).split() == ["ours"] * len(FLOORS)


def test_bind_imports_no_floor(folder: Path) -> None:
    assert output(folder, f"bind(); print([n for n in {FLOORS} if n in sys.modules])") == "[]\n"


def test_bind_twice_leaves_one_finder(folder: Path) -> None:
    assert output(folder, "bind(); n = len(sys.meta_path); bind(); print(len(sys.meta_path) - n)") == "0\n"


def test_bind_names_a_floor_that_is_taken_already(folder: Path) -> None:
    text = output(folder, "import runtime; bind()")
    assert text.startswith("UsageError: the name 'runtime' is taken by another module\n")
    assert str(folder / "runtime" / "__init__.py") in text


def test_a_floor_that_is_missing_is_not_taken_from_the_user(folder: Path, installed: Path) -> None:
    shutil.rmtree(installed / "runtime")
    assert output(folder, "bind(); import runtime").startswith(
        "ModuleNotFoundError: no module named 'runtime' in"
    )


# models


def test_a_model_comes_from_the_users_folder_first(folder: Path) -> None:
    assert (
        output(folder, "m = import_model_module('models.resnet'); print(m.OWNER, m.NAME)") == "user blocks\n"
    )


def test_a_model_that_the_user_lacks_is_ours(folder: Path) -> None:
    write(folder / "models" / "__init__.py", "raise SystemExit('looking must not run this')\n")
    assert output(folder, "print(import_model_module('models.mlp').OWNER)") == "ours\n"


def test_a_folder_without_modules_is_not_a_model(folder: Path) -> None:
    write(folder / "models" / "mlp" / "weights.bin", "")
    assert output(folder, "print(import_model_module('models.mlp').OWNER)") == "ours\n"


def test_models_of_both_in_one_process(folder: Path) -> None:
    code = "for name in ('mlp', 'resnet', 'mlp'): print(import_model_module('models.' + name).OWNER)"
    assert output(folder, code).split() == ["ours", "user", "ours"]


def test_the_users_folder_answers_though_the_console_script_left_it_off_the_path(folder: Path) -> None:
    write(folder / "net.py", "import helper\n")
    write(folder / "helper.py", "")
    code = "sys.path.remove(''); print(import_model_module('net').helper.__name__)"
    assert output(folder, code) == "helper\n"


def test_an_installed_module_is_a_model_too(folder: Path, installed: Path) -> None:
    write(folder.parent / "elsewhere" / "zoo.py", "OWNER = 'zoo'\n")
    code = f"sys.path.append({str(folder.parent / 'elsewhere')!r}); print(import_model_module('zoo').OWNER)"
    assert output(folder, code) == "zoo\n"


# collisions

CLASH = "UsageError: the name 'runtime' means two modules\n"


@pytest.mark.parametrize(
    "line", ["import runtime", "from runtime import OWNER", "import runtime.nets as nets"]
)
def test_a_model_that_would_get_our_module_instead_of_its_own_is_refused(folder: Path, line: str) -> None:
    write(folder / "net.py", f"import sys\n{line}\n")
    text = output(folder, "import_model_module('net')")
    assert text.startswith(CLASH)
    assert f"  net.py:2   {line}\n" in text
    assert f"{folder} holds runtime/" in text


def test_a_factory_that_imports_late_is_refused_as_well(folder: Path) -> None:
    write(folder / "net.py", "def build():\n    import runtime\n    return runtime\n")
    code = "net = import_model_module('net')\nwith user_imports(): net.build()"
    assert output(folder, code).startswith(CLASH)


def test_a_model_in_a_module_with_our_name_is_refused(folder: Path) -> None:
    write(folder / "runtime" / "net.py", "")
    assert output(folder, "import_model_module('runtime.net')").startswith(CLASH)


@pytest.mark.parametrize("line", ["from .runtime import OWNER", "from zoo.runtime import OWNER"])
def test_a_name_inside_the_users_package_is_free(folder: Path, line: str) -> None:
    write(folder / "zoo" / "__init__.py", "")
    write(folder / "zoo" / "runtime.py", "OWNER = 'zoo'\n")
    write(folder / "zoo" / "net.py", line)
    assert output(folder, "print(import_model_module('zoo.net').OWNER)") == "zoo\n"


def test_a_model_may_import_ours_where_the_user_has_none(folder: Path) -> None:
    write(folder / "net.py", "from passes import OWNER\n")
    assert output(folder, "print(import_model_module('net').OWNER)") == "ours\n"


def test_our_floors_may_import_each_other_beside_a_collision(folder: Path, installed: Path) -> None:
    write(installed / "passes" / "__init__.py", "import runtime\nOWNER = runtime.OWNER\n")
    write(folder / "net.py", "from passes import OWNER\n")
    assert output(folder, "print(import_model_module('net').OWNER)") == "ours\n"


def test_an_installation_inside_the_users_folder_is_not_the_users_code(folder: Path) -> None:
    outer = folder.parent
    write(outer / "runtime.py", "")
    write(outer / "net.py", "from passes import OWNER\n")
    write(outer / "installed" / "passes" / "__init__.py", "import runtime\nOWNER = runtime.OWNER\n")
    code = f"import os; os.chdir({str(outer)!r}); print(import_model_module('net').OWNER)"
    assert output(folder, code) == "ours\n"


def test_the_import_function_is_put_back(folder: Path) -> None:
    write(folder / "net.py", "import runtime\n")
    code = """
plain = builtins.__import__
with user_imports(): print(builtins.__import__ is plain)
try: import_model_module('net')
except Exception: pass
print(builtins.__import__ is plain)
"""
    assert output(folder, code).split() == ["False", "True"]


# what cannot be imported


def test_an_unknown_module_gets_a_suggestion(folder: Path) -> None:
    text = output(folder, "import_model_module('models.resnt')")
    assert text.startswith("UsageError: there is no module 'models.resnt'\n")
    assert "try: models.resnet" in text


@pytest.mark.parametrize("name", ["", "models.", "models/resnet.py", "a b"])
def test_what_is_no_module_name_is_said(folder: Path, name: str) -> None:
    assert output(folder, f"import_model_module({name!r})").startswith(
        f"UsageError: {name!r} is not the name of"
    )


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def f(:", "SyntaxError: invalid syntax"),
    ],
)
def test_a_module_that_raises_is_the_models_own_failure(folder: Path, source: str, why: str) -> None:
    write(folder / "net.py", f"x = 1\n{source}\n")
    text = output(folder, "import_model_module('net')")
    assert text.startswith("ModelError: the module 'net' cannot be imported\n")
    assert f"  net.py:2   {source}\n  {why}" in text


def test_the_line_shown_is_the_innermost_of_the_users_own(folder: Path) -> None:
    write(folder / "net.py", "import helper\nhelper.load('{')\n")
    write(folder / "helper.py", "import json\n\ndef load(text):\n    return json.loads(text)\n")
    assert "  helper.py:4   return json.loads(text)\n" in output(folder, "import_model_module('net')")
