"""The house keeps its floors: imports never climb, light modules stay light, folders hand out few names."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import vlrm

ROOT = Path(vlrm.__file__).parent
FLOORS = {"_types": -1, "types": 0, "serving": 1, "rm": 2, "prm": 3, "data_synth": 4, "policy": 5}
TOP = {"cli": 6, "__main__": 6, "commands": 6, "config": 6, "doctor": 6}
CODE = [
    path for name in FLOORS | TOP for path in ([ROOT / f"{name}.py"] if (ROOT / f"{name}.py").is_file() else (ROOT / name).rglob("*.py"))
]


def imported(path: Path) -> list[str]:
    """Absolute names of the vlrm modules that a file imports anywhere, functions included; not under TYPE_CHECKING."""
    here = ("vlrm", *path.relative_to(ROOT).with_suffix("").parts)
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*here[: len(here) - node.level], *(node.module or "").split(".")] if node.level else (node.module or "").split(".")
            names += [".".join([part for part in base if part] + [alias.name]) for alias in node.names]
    return [name for name in names if name.split(".")[0] == "vlrm"]


def test_import_linter_keeps_the_contract():
    command = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([str(command), "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "1 kept, 0 broken" in done.stdout, done.stdout + done.stderr


def test_the_contract_names_every_floor():
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    top, *floors = contract["layers"]
    assert {name.strip() for name in top.split(":")} == {f"vlrm.{name}" for name in TOP}
    assert floors == [f"vlrm.{name}" for name in sorted(FLOORS, key=FLOORS.get, reverse=True)]
    assert {path.stem for path in ROOT.glob("*.py")} | {"commands"} == {"__init__", "_types", "types", *TOP}


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_an_import_never_climbs(path):
    """The same by our own reading of the code, so that a mistake in the contract shows."""
    floor = (FLOORS | TOP)[path.relative_to(ROOT).parts[0].removesuffix(".py")]
    for name in imported(path):
        part = name.removeprefix("vlrm").lstrip(".").split(".")[0]
        assert (FLOORS | TOP).get(part, 0) <= floor, f"{path.name} on floor {floor} imports {name}"


def test_the_words_of_the_house_need_the_standard_library_only():
    for node in ast.walk(ast.parse((ROOT / "_types.py").read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert all(name.split(".")[0] in sys.stdlib_module_names for name in names)


def test_a_folder_hands_out_at_most_eight_names():
    for folder in ("serving", "rm", "prm", "data_synth", "policy"):
        module = importlib.import_module(f"vlrm.{folder}")
        assert 0 < len(module.__all__) <= 8, folder
        assert all(getattr(module, name) is not None for name in module.__all__)


def test_search_and_statistics_load_no_model_library():
    code = """
import sys, vlrm.policy, vlrm.rm.stats, vlrm.rm.step_metrics, vlrm.prm.steps, vlrm.rm.answers
print(sorted({"torch", "transformers", "trl", "vllm", "datasets"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd="/")
    assert done.stdout == "[]\n", done.stdout + done.stderr


def test_python_starts_in_the_root_folder():
    """Our types.py stands where a Python that is started in the clone looks for its own `types` first."""
    code = "import types, enum, dataclasses; print(types.__name__, hasattr(types, 'MappingProxyType'), hasattr(types, 'Problem'))"
    for options in ([], ["-S"], ["-E"]):
        done = subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
        assert done.stdout == "types True False\n", done.stderr
    for command in ([sys.executable, "-S", "-m", "json.tool"], [sys._base_executable, "-m", "venv"]):
        done = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=120, cwd=ROOT)
        assert done.returncode == 0 and done.stdout.startswith("usage: "), done.stderr


def test_every_package_is_listed_for_the_wheel():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(("vlrm", *path.parent.relative_to(ROOT).parts)) for path in CODE if path.name == "__init__.py"} | {"vlrm"}
    assert set(listed) == found
