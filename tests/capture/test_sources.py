"""Module paths and file paths, out of the several ways in which torch writes them."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from capture.frontends.source import (
    Frame,
    import_root_path,
    innermost_user_frame,
    is_user_file,
    module_path,
    parse_stack,
)


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("", ""),
        ("layer1.0.conv1", "layer1.0.conv1"),
        ("L['self'].layer1[0].conv1", "layer1.0.conv1"),
        ("L['self']._modules['layer1']._modules['0'].conv1", "layer1.0.conv1"),
        ("L__self__", ""),
        ("bn@1", "bn"),
        ("L['args'][1].__closure__[0].cell_contents.layer", ""),
        ("_empty_nn_module_stack_from_metadata_hook", ""),
    ],
)
def test_module_paths(written: str, path: str) -> None:
    assert module_path({"outer": ("outer", "C"), "inner": (written, "C")}) == path


def test_no_module_stack() -> None:
    assert module_path(None) == module_path({}) == ""


STACK = f'''
  File "/home/me/net/model.py", line 12, in forward
    y = attend(x)
        ^^^^^^^^^
  File "/home/me/net/model.py", line 30, in attend
  File "{torch.__file__.removesuffix("__init__.py")}nn/functional.py", line 5, in linear
    return torch._C._nn.linear(x)
  File "<eval_with_key>.5", line 3, in forward
'''


def test_the_innermost_line_of_the_users() -> None:
    frames = parse_stack(STACK)
    assert [frame.line for frame in frames] == [12, 30, 5, 3]
    assert frames[0].code == "y = attend(x)"
    assert innermost_user_frame(frames) == Frame("/home/me/net/model.py", 30, "")
    assert innermost_user_frame(frames[2:]) is None


def test_whose_file_it_is() -> None:
    import capture

    assert not is_user_file(torch.__file__)
    assert not is_user_file(capture.__file__)
    assert not is_user_file("<string>")
    assert is_user_file("/home/me/torch_models/net.py")
    assert is_user_file(str(Path(capture.__file__).parents[1] / "models" / "resnet.py"))


def test_paths_start_at_the_import_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "pkg" / "sub"
    package.mkdir(parents=True)
    (tmp_path / "pkg" / "__init__.py").touch()
    (package / "__init__.py").touch()
    assert import_root_path(str(package / "net.py")) == "pkg/sub/net.py"
    assert import_root_path(str(tmp_path / "script.py")) == "script.py"
    assert import_root_path("/usr/lib/python3/site-packages/lib/net.py") == "lib/net.py"
    plain = (
        tmp_path / "folder" / "net.py"
    )  # a package without __init__.py is known by what was imported from it
    module = ModuleType("folder.net")
    module.__file__ = str(plain)
    monkeypatch.setitem(sys.modules, "folder.net", module)
    assert import_root_path(str(plain)) == "folder/net.py"
