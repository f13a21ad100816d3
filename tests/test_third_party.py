"""Packages of third parties, installed into a fresh environment: listed, checked and trained by command line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fresh import FreshEnvironment
from toy import RECIPE, make_corpus

from asrkit import registry, scaffold
from asrkit.encoders import NormOptions
from asrkit.model import encoder_class

ROOT = Path(__file__).resolve().parents[1]
OURS = ROOT / "plugins" / "asrkit-rmsnorm"

Make = Callable[[Path], Path]  # where to -> the package's folder
pytest.importorskip("pip")
pytest.importorskip("hatchling")


def copy_of_ours(folder: Path) -> Path:
    return Path(shutil.copytree(OURS, folder / "asrkit-rmsnorm", ignore=shutil.ignore_patterns("__pycache__")))


def newly_written(folder: Path) -> Path:
    scaffold.write_plugin("my_norm", folder / "mine")
    return folder / "mine"


@pytest.mark.skipif(os.name == "nt", reason="its commands are scripts of a POSIX shell")
@pytest.mark.parametrize(
    ("name", "package", "version", "make"),
    [
        ("simple_rms_norm", "asrkit-rmsnorm", "0.2.0", copy_of_ours),
        pytest.param("my_norm", "asrkit-my-norm", "0.1.0", newly_written, marks=pytest.mark.slow),
    ],
)
def test_installed_listed_checked_trained(name: str, package: str, version: str, make: Make, tmp_path: Path) -> None:
    fresh = FreshEnvironment(tmp_path / "environment")
    before = json.loads(fresh.run("asrkit", "plugins", "--json", folder=tmp_path))
    fresh.run("pip", "install", "--no-deps", str(make(tmp_path)), folder=tmp_path)
    after = json.loads(fresh.run("asrkit", "plugins", "--json", folder=tmp_path))
    [added] = [plugin for plugin in after if plugin not in before]
    assert (added["name"], added["kind"], added["package"], added["version"]) == (name, "encoders", package, version)
    assert len(after) == len(before) + 1

    checked = json.loads(fresh.run("asrkit", "plugins", "check", name, "--json", folder=tmp_path))
    assert checked["ok"]
    assert {result["status"] for result in checked["results"]} <= {"ok", "skipped"}
    assert len([result for result in checked["results"] if result["status"] == "ok"]) >= 20

    corpus = make_corpus(tmp_path / "cv", train=6, dev=2, test=0)
    (tmp_path / "toy.yaml").write_text(RECIPE, encoding="utf-8")
    words = [f"--data.root={corpus}", f"--data.cache={tmp_path / 'cache'}", "--data.test=null", "--output=run"]
    words += [f"--encoder={name}", "--training.batch_size=2", "--training.epochs=2", "--json"]
    result = json.loads(fresh.run("asrkit", "train", "toy.yaml", *words, folder=tmp_path))
    assert (result["last"]["epoch"], result["last"]["step"]) == (2, 6)
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["encoder"] == {"name": name, "package": package, "version": version, "api": registry.API}


def test_simple_rms_norm_is_rms_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its docstring says: the same numbers as asrkit's own."""
    monkeypatch.syspath_prepend(OURS)
    from simple_rms_norm import SimpleRMSNormEncoder

    options, layers = NormOptions(gain=0.7), ["norm", {"bigru": {"size": 6, "norm": "recurrent"}}]
    x, lengths = torch.randn(3, 9, 5), torch.tensor([9, 6, 2])
    outputs = []
    for cls in (SimpleRMSNormEncoder, encoder_class("rms_norm")):
        torch.manual_seed(1)
        outputs.append(cls(5, layers, options)(x, lengths)[0])
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-6, rtol=1e-5)


def test_it_is_as_short_as_it_claims() -> None:
    """Lines of code: neither blank nor comments nor docstrings nor imports."""
    import ast

    tree = ast.parse((OURS / "simple_rms_norm.py").read_text(encoding="utf-8"))
    lines = set()
    for node in ast.walk(tree):
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.stmt) and not docstring and not isinstance(node, ast.Import | ast.ImportFrom):
            lines.add(node.lineno)
    assert len(lines) <= 15
