"""What a run that goes on shares with its beginning, and which of its records it will write again."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from asrkit.errors import RecipeError, StorageError
from asrkit.position import Position

logger = logging.getLogger(__name__)


def same_data(before: dict[str, str] | None, now: dict[str, str], run: Path) -> None:
    """Raise RecipeError (`other_data`) unless the hashes agree: the folder may have moved, its content may not have
    changed. before: None where they were not kept."""
    changed = [name for name, value in now.items() if before is not None and before.get(name) != value]
    if changed:
        raise RecipeError(
            f"the run in {run} was begun on other data: {', '.join(changed)} differ",
            fix="give another folder with --output, or the data of before",
            reason="other_data",
        )


def same_code(before: dict[str, str] | None, now: dict[str, str], run: Path, exact: bool) -> None:
    """Other code trains on, with a warning; with `exact` it raises StorageError (`other_code`)."""
    if before is None or before == now:  # None: saved before checkpoints knew
        return
    changed = [name for name in sorted({*now, *before}) if now.get(name) != before.get(name)]
    what = f"the run in {run} was begun with other code: {', '.join(changed)} changed"
    if exact:
        raise StorageError(what, fix="bring the code of before back, or go on without --exact", reason="other_code")
    logger.warning("%s; it goes on, but not bit by bit (--exact refuses)", what)


def is_written_again(record: dict[str, Any], position: Position) -> bool:
    """Whether a record of the checkpoint's very step belongs to batches after it."""
    here = (position.epoch, position.batch)
    if record["type"] == "epoch":
        return bool(record["epoch"] >= here[0])
    return record["type"] in ("refused", "quarantined") and (record["epoch"], record["batch"]) >= here
