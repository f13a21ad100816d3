"""`asrkit plugins new`: what it writes works as it is; names that cannot work are refused; nothing is overwritten."""

from __future__ import annotations

import ast
import importlib
import json
import re
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import asrkit
from asrkit import registry, scaffold
from asrkit.cli import main
from asrkit.encoders import NormOptions
from asrkit.errors import RecipeError, StorageError
from asrkit.testing import check_encoder


def new(*words: str) -> int:
    return main(["plugins", "new", *words])


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert new("my_norm") == 0
    out = capsys.readouterr().out
    names = ["pyproject.toml", "my_norm.py", "tests/test_my_norm.py", "README.md"]
    assert [line for line in out.splitlines() if line.startswith("asrkit-my-norm/")] == [
        f"asrkit-my-norm/{name}" for name in names
    ]
    assert "pip install -e ./asrkit-my-norm" in out
    assert sorted(str(p.relative_to("asrkit-my-norm")) for p in Path("asrkit-my-norm").rglob("*.*")) == sorted(names)


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a folder"
    assert new("l1", "--output", str(folder), "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["name"], answer["package"], answer["folder"]) == ("l1", "asrkit-l1", str(folder))
    assert all(Path(path).is_file() for path in answer["files"])
    assert answer["next"][0] == f"pip install -e '{folder}'"


@pytest.mark.parametrize("name", ["my_norm", "l1", "tensor", "norm_options", "a1_b2"])
def test_what_is_written_passes_every_check(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scaffold.write_plugin(name, tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "tests")
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, attribute = project["entry-points"]["asrkit.encoders"][name].partition(":")
    try:
        cls = getattr(importlib.import_module(module), attribute)
        checks = None if name == "my_norm" else ["shapes", "padding_train", "gradients"]
        results = {result.check: result for result in check_encoder(cls, checks=checks)}
        assert {check: str(r) for check, r in results.items() if r.status not in ("ok", "skipped")} == {}
        assert [check for check, r in results.items() if r.status == "skipped"] == (["scope"] if checks is None else [])
        assert vars(cls)["asrkit_api"] == registry.API  # its own, not that of the asrkit that happens to be here
        with monkeypatch.context() as patch:  # its tests ask for the name, which is not installed here
            patch.setattr(registry, "_registered", {("encoders", name): cls})
            importlib.import_module(f"test_{name}").test_formula()
    finally:
        for loaded in (name, f"test_{name}"):
            sys.modules.pop(loaded, None)


def test_the_formula_of_its_docstring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside NumPy in float64, on the real frames of a ragged batch."""
    scaffold.write_plugin("my_norm", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        norm = importlib.import_module("my_norm").MyNorm(6, NormOptions(eps=1e-3, gain=0.5)).double()
    finally:
        del sys.modules["my_norm"]
    x, mask = np.random.default_rng(3).normal(size=(3, 7, 6)), np.arange(7) < np.array([[7], [4], [1]])
    y = norm(torch.from_numpy(x), torch.from_numpy(mask)).detach().numpy()
    for row, frame in np.ndindex(3, 7):
        s = sum(abs(v) for v in x[row, frame]) / 6 + 0.001**0.5
        np.testing.assert_allclose(y[row, frame], 0.5 * x[row, frame] / s * mask[row, frame], rtol=1e-12)


def test_the_wheel(tmp_path: Path) -> None:
    builder = pytest.importorskip("hatchling.builders.wheel").WheelBuilder
    scaffold.write_plugin("my_norm", tmp_path / "package")
    [built] = builder(str(tmp_path / "package")).build(directory=str(tmp_path), versions=["standard"])
    wheel = zipfile.ZipFile(built)
    assert [name for name in wheel.namelist() if "dist-info" not in name] == ["my_norm.py"]
    offered = wheel.read("asrkit_my_norm-0.1.0.dist-info/entry_points.txt").decode()
    assert offered.split() == ["[asrkit.encoders]", "my_norm", "=", "my_norm:MyNormEncoder"]
    metadata = wheel.read("asrkit_my_norm-0.1.0.dist-info/METADATA").decode()
    wanted = re.search(r"Requires-Dist: asrkit>=(\S+)", metadata)
    assert wanted is not None
    assert asrkit.__version__.startswith(f"{wanted[1]}.")


def test_its_python_is_plain(tmp_path: Path) -> None:
    """No placeholder is left, and no line is longer than most style rules allow."""
    for path in scaffold.write_plugin("a_rather_long_name_for_a_norm", tmp_path):
        text = path.read_text(encoding="utf-8")
        assert "$" not in text
        assert max(map(len, text.splitlines())) <= 120, path
        if path.suffix == ".py":
            ast.parse(text)


@pytest.mark.parametrize(
    ("name", "possible", "text"),
    [
        ("My-Norm", "my_norm", "lowercase letters"),
        ("MyNorm", "my_norm", "lowercase letters"),
        ("my norm", "my_norm", "lowercase letters"),
        ("my__norm", "my_norm", "lowercase letters"),
        ("_norm", "my_norm", "lowercase letters"),
        ("my_", "my", "lowercase letters"),
        ("2nd", "norm_2nd", "lowercase letters"),
        ("ñorma", "norma", "lowercase letters"),
        ("", "my_norm", "lowercase letters"),
        ("../evil", "evil", "lowercase letters"),
        ("class", "class_norm", "a word of Python; possible: class_norm; fix: choose another"),
        *[(word, f"{word}_norm", "a value in a recipe") for word in ("yes", "off", "true", "null")],
        ("norm", "my_norm", "the slot"),
        ("torch", "torch_norm", "a Python module"),
        ("json", "json_norm", "a Python module"),
        ("asrkit", "asrkit_norm", "a Python module"),
        ("none", "none_norm", "already offered by asrkit"),
        ("layer_norm", "my_layer_norm", "already offered by asrkit"),
    ],
)
def test_names_that_cannot_be(name: str, possible: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        scaffold.write_plugin(name, tmp_path / "x")
    assert caught.value.reason == "plugin_name"
    assert caught.value.possible == possible
    assert text in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    scaffold.check_name(possible)  # what it proposes is true


def test_a_name_of_a_guest(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    guests = [registry.Plugin(name, "encoders", "guest", "3", "a:b") for name in ("mine", "mine_norm", "my_mine")]
    monkeypatch.setattr(registry, "list_plugins", lambda kind=None: guests)
    assert new("mine") == 2
    err = capsys.readouterr().err
    assert "error[plugin_name]: 'mine' is already offered by guest 3; possible: my_mine_2; " in err
    assert "or uninstall guest" in err


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").write_text("mine", encoding="utf-8")
    assert new("my_norm", "--output", str(tmp_path)) == 2
    err = capsys.readouterr().err
    assert "error[exists]" in err
    assert str(tmp_path / "README.md") in err
    assert "pyproject.toml" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "mine"


def test_a_folder_beside_other_files_is_fine(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    assert len(scaffold.write_plugin("my_norm", tmp_path)) == 4


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError) as caught:
        scaffold.write_plugin("my_norm", tmp_path / "file" / "below")
    assert caught.value.reason == "storage"
    assert "--output" in str(caught.value)


def test_what_was_written_before_a_failure_is_taken_back(tmp_path: Path) -> None:
    (tmp_path / "tests").touch()  # a file where the folder of the third one must be
    with pytest.raises(StorageError):
        scaffold.write_plugin("my_norm", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tests"]


def test_a_name_too_long_for_the_disk(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        scaffold.write_plugin("a" * 300, tmp_path)


def test_it_needs_no_torch() -> None:
    import subprocess

    code = "import sys; from asrkit.cli import main; main(['plugins', 'new', 'Bad']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
