"""Small checkpoints whose every tensor says which step it is of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asrkit.checkpoints import Checkpoints


def tensors(value: float, size: int = 10) -> dict[str, Tensor]:
    return {"weight": torch.full((size, 4), value), "count": torch.tensor(int(value)), "half": torch.ones(3).bfloat16()}


def save(checkpoints: Checkpoints, step: int, cer: float | None = None, size: int = 10) -> Path:
    metrics = {} if cer is None else {"dev_cer": cer}
    return checkpoints.save(
        step, tensors(step, size), {"0.exp": tensors(step)["weight"]}, {"epoch": 1, "metrics": metrics}
    )


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def latest_step(folder: Path) -> int | None:
    """What a fresh process would resume from, with every tensor and the state read and consistent."""
    found = Checkpoints(folder).latest()
    if found is None:
        return None
    model = found.model()
    assert torch.equal(model["weight"], torch.full_like(model["weight"], found.step))
    assert torch.equal(found.optimizer()["0.exp"], torch.full((10, 4), float(found.step)))
    assert found.state["epoch"] == 1
    return found.step


RECIPE: dict[str, Any] = {
    "name": "m",
    "encoder": "none",
    "seed": 1,
    "training": {"lr": 1e-3, "epochs": 3},
    "layers": [{"conv": {"kernel": 4}}],
}
