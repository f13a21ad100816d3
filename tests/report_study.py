"""Studies that are written by hand, for tests of reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from asrkit.report.collect import collect
from asrkit.report.export import judge, numbers
from asrkit.report.measures import default_split

ENCODERS = ("none", "layer_norm", "sequence_batch_norm")
LENGTHS = [20, 30, 10, 40]


def score(errors: list[int]) -> dict[str, Any]:
    words = {"errors": [min(e, 5) for e in errors], "lengths": [5] * 4}
    return {
        "cer": sum(errors) / 100, "wer": sum(words["errors"]) / 20, "ids": ["a", "b", "c", "d"],
        "speakers": ["x", "x", "y", "z"], "characters": {"errors": errors, "lengths": LENGTHS}, "words": words,
    }  # fmt: skip


def epochs(cers: list[float], phases: list[str] | None = None) -> list[dict[str, Any]]:
    """Epoch records of 10 updates each with these dev CERs; with phases also what the diagnosis writes."""
    lines = []
    for i, cer in enumerate(cers):
        train = {"loss": 2 / (i + 1), "cer": cer / 2, "grad_norm_by_layer": {"0": 0.5, "4": 1.0, "ctc": 2.0 + i}}
        dev = {"loss": 3.0, "cer": cer, "blank": 0.9, "empty": 0.25}
        line: dict[str, Any] = {"type": "epoch", "epoch": i + 1, "step": 10 * (i + 1), "train": train, "dev": dev,
                                "seconds": 1.5}  # fmt: skip
        if phases is not None:
            heard = {"cmvn": 1.0, "layers.0": 0.8, "layers.4": 0.02 * (i + 1)}
            line["diagnosis"] = {"floor": 3.0, "phase": phases[i], "dependence": heard, "dead": {}, "findings": []}
        lines.append(line)
    return lines


def write_epochs(place: Path, lines: list[dict[str, Any]]) -> None:
    """metrics.jsonl of a cell."""
    (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_study(
    folder: Path,
    errors: dict[str, list[list[int]]],
    curves: dict[str, list[float]] | None = None,
    axes: dict[str, str] | None = None,
) -> Path:
    """A study of one recipe: encoder -> seed -> errors on test per utterance. Called again, it adds another context."""
    axes = axes or {}
    context = "--".join(["m", *(f"{axis}-{value}" for axis, value in axes.items())])
    path = folder / "study.json"
    study = json.loads(path.read_text()) if path.exists() else {
        "format": 1, "asrkit": "0", "name": "by_hand", "file": "s.yaml", "seeds": [1, 2, 3], "tuning_seeds": [1],
        "complete": True, "arms": [], "cells": [], "proof": [],
    }  # fmt: skip
    for name, seeds in errors.items():
        arm = {
            "arm": f"{context}--{name}",
            "context": context,
            "recipe": "m",
            "axes": axes,
            "encoder": name,
            "lr": 0.001,
        }
        study["arms"].append({**arm, "tuning": [{"lr": 0.001, "dev_cer": 0.5}]})
        for seed, values in enumerate(seeds, 1):
            about = {**arm, "id": f"{context}--{name}--seed-{seed}", "seed": seed}
            study["cells"].append({**about, "path": f"cells/{about['id']}", "chosen": True, "status": "done"})
            place = folder / "cells" / str(about["id"])
            place.mkdir(parents=True)
            left = {"format": 1, **about, "status": "done", "error": None, "dev": score(values), "test": score(values),
                    "updates": 30, "train_seconds": 4.5, "memory_mb": 100.0 + seed, "test_error": None}  # fmt: skip
            (place / "cell.json").write_text(json.dumps(left))
            write_epochs(place, epochs((curves or {}).get(name, [0.9, 0.45, 0.25])))
            study["proof"].append({"group": f"{context}--seed-{seed}", "cell": about["id"], "encoder": name,
                                   "order": f"{seed}abc", "updates": 30, "parameters": 1234,
                                   "norm_parameters": 56})  # fmt: skip
    path.write_text(json.dumps({**study, "total_cells": len(study["cells"])}))
    return folder


def change(folder: Path, cell: str, **facts: Any) -> None:
    """Other facts in a cell's cell.json."""
    path = folder / "cells" / cell / "cell.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def measured(folder: Path) -> dict[str, Any]:
    """What report.json would hold, without the time that pictures take."""
    found = collect(folder)
    return numbers(found, judge(found, "characters", default_split(found)))
