"""What the tests of rows X and I share: a toy model, commands with their answers, folders by hash, hostile bundles."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from toy import RECIPE, make_corpus

import asrkit.experiment  # noqa: F401  # speechbrain, before hypothesis looks at modules: see tests/conftest.py
from asrkit.cli import main


@dataclass(frozen=True)
class Toy:
    """A trained toy run with its corpus and the recipe that made it."""

    folder: Path
    corpus: Path
    recipe: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def words(self, output: Path, *more: str) -> list[str]:
        """The command line of a run of two epochs."""
        options = {"data.root": self.corpus, "data.cache": self.corpus.parent / "cache", "training.epochs": 2}
        settings = [f"--{key}={value}" for key, value in options.items()]
        return ["train", str(self.recipe), *settings, "--output", str(output), "--quiet", *more]


_made: list[Toy] = []


def shared_toy(factory: pytest.TempPathFactory) -> Toy:
    """One for all modules of a session; nobody changes it."""
    if not _made:
        _made.append(_make_toy(factory.mktemp("toy")))
    return _made[0]


def _make_toy(folder: Path) -> Toy:
    recipe = folder / "toy.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    toy = Toy(folder / "run", make_corpus(folder / "cv"), recipe)
    assert main(toy.words(toy.folder)) == 0
    return toy


@dataclass(frozen=True)
class Answer:
    """What a command said: exit code, the reason code in brackets, and both streams."""

    code: int
    reason: str
    out: str
    err: str


def command(capsys: pytest.CaptureFixture[str], *words: str | Path) -> Answer:
    """Run one command line in this process."""
    capsys.readouterr()
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    found = re.search(r"asrkit: error\[([a-z_0-9]+)\]", err)
    return Answer(code, found[1] if found else "", out, err)


def hashes(*folders: Path) -> dict[str, str]:
    """Every file and link below some folders -> sha256 of its content, or where it points."""
    found = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_symlink():
                found[str(path)] = str(path.readlink())
            elif path.is_file():
                found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A change of config.json."""

    def apply(folder: Path) -> None:
        data = json.loads((folder / "config.json").read_text())
        change(data)
        (folder / "config.json").write_text(json.dumps(data))

    return apply


def replace(folder: Path, name: str, data: bytes) -> None:
    """Another file of a bundle with the hash that belongs to it: what a hostile author would write."""
    (folder / name).write_bytes(data)
    edit(lambda c: c["files"].update({name: hashlib.sha256(data).hexdigest()}))(folder)


def weights(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A change of the tensors, with a matching hash."""

    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
        replace(folder, "model.safetensors", (folder / "model.safetensors").read_bytes())

    return apply


def copy_of(bundle: Path, place: Path) -> Path:
    """A bundle of one's own to change."""
    shutil.copytree(bundle, place)
    return place
