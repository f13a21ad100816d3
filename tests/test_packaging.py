"""The wheel holds both import packages, its entry points resolve, and the heavy imports stay where they belong."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_wheel_holds_both_packages(tmp_path: Path) -> None:
    wheel_builder = pytest.importorskip("hatchling.builders.wheel")
    [built] = wheel_builder.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    names = set(zipfile.ZipFile(built).namelist())
    sources = [*(ROOT / "asrkit").rglob("*.py"), *(ROOT / "plugins" / "asrkit_norms").rglob("*.py")]
    wanted = {str(path.relative_to(ROOT)).removeprefix("plugins/").replace("\\", "/") for path in sources}
    assert wanted <= names
    assert not [name for name in names if name.startswith("tests/")]


def test_entry_points_resolve_and_declare_the_api() -> None:
    count = 0
    for group, entries in PROJECT["entry-points"].items():
        for target in entries.values():
            module, name = target.split(":")
            assert getattr(importlib.import_module(module), name).asrkit_api == 1, f"{group}: {target}"
            count += 1
    assert count == 25


def test_version_is_written_once_more_and_agrees() -> None:
    import asrkit

    assert asrkit.__version__ == PROJECT["version"]


def test_pins_that_an_install_needs() -> None:
    """Plain torch resolves to a release that breaks torchaudio."""
    assert "torch>=2.11,<2.15" in PROJECT["dependencies"]


@pytest.mark.parametrize("module", ["asrkit", "asrkit.cli", "asrkit.registry", "asrkit.recipe", "asrkit.corpus"])
def test_light_modules_do_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_norm_plugins_import_only_asrkit_and_torch() -> None:
    import ast

    for path in (ROOT / "plugins" / "asrkit_norms").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert all(name.split(".")[0] in ("asrkit", "torch", "__future__") for name in names), path.name
