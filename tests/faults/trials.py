"""One toy run through the command line: how it ended, and what it left on disk."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from toy import RECIPE, make_corpus

from asrkit.cli import main
from asrkit.runs import MetricsLog
from asrkit.testing.faults import in_child

TIMES = ("seconds", "cpu_seconds", "frames_per_second", "memory_mb")  # what may differ between two equal runs


@dataclass
class Ended:
    """Exit code, reason code (of `error[...]`) and all of stderr."""

    code: int
    error: str

    @property
    def reason(self) -> str:
        found = re.search(r"error\[(\w+)\]", self.error)
        return found[1] if found else ""

    @property
    def end(self) -> tuple[int, str]:
        return self.code, self.reason


class Trial:
    """A toy corpus and recipe in a folder, trained by the command line."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capfd = folder, capfd
        self.corpus = make_corpus(folder / "cv")
        self.recipe = folder / "toy.yaml"
        self.recipe.write_text(RECIPE, encoding="utf-8")
        self.run = folder / "run"

    def words(self, *options: str, output: str = "run") -> list[str]:
        return [
            "train", str(self.recipe), f"--data.root={self.corpus}", f"--data.cache={self.folder / 'cache'}", "--quiet",
            "--training.curves=false", "--training.epochs=2", f"--output={self.folder / output}", *options,
        ]  # fmt: skip

    def train(self, *options: str, output: str = "run") -> Ended:
        self.capfd.readouterr()
        code = main(self.words(*options, output=output))
        return Ended(code, self.capfd.readouterr().err)

    def child(self, *options: str, output: str = "run") -> Ended:
        """The same in a forked process, which may die of it (code: minus the signal)."""
        warm()
        self.capfd.readouterr()
        code = in_child(lambda: os._exit(main(self.words(*options, output=output))))
        return Ended(code, self.capfd.readouterr().err)

    def state(self, output: str = "run", without: tuple[str, ...] = ("log.txt", "run.lock")) -> dict[str, str]:
        """Every file of a run by its sha256."""
        root = self.folder / output
        return {
            str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(root.rglob("*"))
            if path.is_file() and path.name not in without
        }

    def outcome(self, output: str = "run") -> tuple[str, list[dict[str, Any]], list[str], Any]:
        """What two equal runs have in common: weights, metrics, last checkpoint's tensors, its position."""
        root = self.folder / output
        metrics = [without_times(line) for line in MetricsLog.read(root / "metrics.jsonl")]
        newest = sorted((root / "checkpoints").glob("step-*"))[-1]
        tensors = [digest(newest / f"{part}.safetensors") for part in ("model", "optimizer")]
        state = json.loads((newest / "state.json").read_text(encoding="utf-8"))
        return digest(root / "model" / "model.safetensors"), metrics, tensors, without_times(state)


@functools.cache
def warm() -> None:
    """Import what a first training step imports (seconds), so that forked processes need not do it one by one."""
    import torch

    from asrkit import experiment

    assert experiment.train
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def without_times(value: Any) -> Any:
    """A record without what a clock or the machine says."""
    if isinstance(value, dict):
        return {key: without_times(child) for key, child in value.items() if key not in TIMES}
    return [without_times(child) for child in value] if isinstance(value, list) else value
