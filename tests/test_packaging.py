"""What gets installed: every module and template, nothing else, with pins that fit the ranges."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from capture._floors import NAMES, ROOT

PACKAGES = (*NAMES, "models")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [
    *PROJECT["dependencies"],
    *(line for lines in PROJECT["optional-dependencies"].values() for line in lines),
]
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))

HEAVY = {
    "jinja2",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "pydot",
    "pygraphviz",
    "rich",
    "transformers",
    "triton",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources, so that nothing is written into them."""
    source = tmp_path_factory.mktemp("source")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests", source / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return source / done.stdout.split()[-1]


def test_every_module_and_template_is_installed(wheel: Path) -> None:
    written = {
        file.relative_to(ROOT).as_posix()
        for name in PACKAGES
        for file in (ROOT / name).rglob("*")
        if file.suffix in {".py", ".jinja", ".html", ".css", ".js"} or file.name == "py.typed"
    }
    installed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert installed == written
    assert "capture/py.typed" in installed


def test_an_installation_imports_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = f"""
import importlib, sys
sys.path.insert(0, {str(site)!r})
from importlib.metadata import distribution
for name in {PACKAGES}: print(importlib.import_module(name).__file__)
(script,) = distribution("torch-capture").entry_points.select(group="console_scripts")
print(script.name, callable(script.load()))
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = [str(site / name / "__init__.py") for name in PACKAGES]
    assert done.stdout.split("\n") == [*expected, "torch-capture True", ""]


@pytest.mark.parametrize(
    ("system", "machine", "chosen"),
    [
        ("linux", "x86_64", "onnxruntime-gpu"),
        ("linux", "aarch64", "onnxruntime"),
        ("darwin", "arm64", "onnxruntime"),
        ("win32", "AMD64", "onnxruntime"),
    ],
)
def test_one_onnxruntime_for_each_platform(wheel: Path, system: str, machine: str, chosen: str) -> None:
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    needs = [
        Requirement(line)
        for line in Parser().parsestr(archive.read(metadata).decode()).get_all("Requires-Dist", [])
    ]
    platform = {"sys_platform": system, "platform_machine": machine, "extra": ""}
    names = [need.name for need in needs if need.marker is None or need.marker.evaluate(platform)]
    assert [name for name in names if name.startswith("onnxruntime")] == [chosen]


@pytest.mark.parametrize("line", REQUIREMENTS)
def test_every_requirement_has_a_pin_within_its_range(line: str) -> None:
    need = Requirement(line)
    pins = {canonicalize_name(name): version for name, version in PINS.items()}
    assert need.specifier.contains(pins[canonicalize_name(need.name)])


def test_importing_capture_loads_nothing_heavy_besides_torch() -> None:
    code = "import sys, torch; before = set(sys.modules); import capture; print(*(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not {name.partition(".")[0] for name in done.stdout.split()} & HEAVY
