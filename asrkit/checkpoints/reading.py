"""The newest checkpoint for those who only look: nothing is made, moved or removed, also beside a running training."""

from __future__ import annotations

from pathlib import Path

from asrkit.checkpoints.files import Checkpoint, Damaged, open_checkpoint, steps_in

ATTEMPTS = 3  # a training that keeps one checkpoint may replace what was listed


def newest_intact(folder: Path) -> tuple[Checkpoint | None, dict[str, str]]:
    """The newest checkpoint in a folder whose hashes are right, and name -> damage of those that are newer.

    None where there is none; a folder that is missing has none.
    """
    for _ in range(ATTEMPTS):
        damaged: dict[str, str] = {}
        listed = steps_in(folder) if folder.is_dir() else []
        for step, path in listed:
            try:
                return open_checkpoint(path, step, verify=True), damaged
            except Damaged as damage:
                if path.is_dir():  # else training has removed it meanwhile, for it has newer ones
                    damaged[path.name] = str(damage)
        if len(damaged) == len(listed):
            break
    return None, damaged
