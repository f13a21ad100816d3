"""What lies in a study's folder: study.json, cell.json and metrics.jsonl of every cell; what is damaged is named."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asrkit.errors import AsrkitError, StorageError
from asrkit.runs import MetricsLog
from asrkit.study import cells

OVER = (cells.DONE, cells.COLLAPSED, cells.FAILED)


@dataclass(frozen=True)
class CellResult:
    """One cell: its line in study.json, what it has left (None: nothing yet), its epoch records, what is damaged."""

    row: dict[str, Any]
    outcome: dict[str, Any] | None = None
    epochs: list[dict[str, Any]] = field(default_factory=list)
    damage: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        """done, collapsed, failed, skipped_budget, pending, or missing: it was over, and its file is gone."""
        if self.outcome is not None:
            return str(self.outcome.get("status", cells.FAILED))
        status = str(self.row.get("status", cells.PENDING))
        return "missing" if status in OVER else status

    @property
    def over(self) -> bool:
        """Whether training has ended, well or not; a cell whose file is gone can show nothing."""
        return self.outcome is not None and self.status in OVER

    def scored(self, split: str) -> dict[str, Any] | None:
        """What it made of a split, if every utterance's errors are there."""
        found = (self.outcome or {}).get(split)
        whole = found and all(key in found for key in cells.ARRAYS)
        return found if whole else None


@dataclass(frozen=True)
class StudyResult:
    """A whole study as it lies on disk."""

    folder: Path
    study: dict[str, Any]
    cells: list[CellResult]

    @property
    def name(self) -> str:
        """The study's name."""
        return str(self.study.get("name", self.folder.name))

    @property
    def baseline(self) -> str | None:
        """The encoder that all others are compared with, if the study's file names one."""
        definition = self.study.get("definition")
        name = definition.get("baseline") if isinstance(definition, dict) else None
        return name if isinstance(name, str) else None

    @property
    def arms(self) -> list[dict[str, Any]]:
        """The arms as study.json has them: arm, context, recipe, axes, encoder, lr, tuning."""
        return list(self.study.get("arms", []))

    def contexts(self) -> dict[str, list[dict[str, Any]]]:
        """Context (recipe and axes) -> its arms: only these are compared with each other."""
        found: dict[str, list[dict[str, Any]]] = {}
        for arm in self.arms:
            found.setdefault(arm["context"], []).append(arm)
        return found

    def of_arm(self, arm: str) -> list[CellResult]:
        """The cells of an arm that have its chosen learning rate, by seed; none while it is open."""
        found = [cell for cell in self.cells if cell.row["arm"] == arm and cell.row.get("chosen")]
        return sorted(found, key=lambda cell: cell.row["seed"])


def collect(folder: str | Path) -> StudyResult:
    """Read a study. Raises StorageError (`no_study`, `damaged`) where study.json cannot be used."""
    folder = Path(folder)
    path = folder / "study.json"
    try:
        study = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        fix = "give the folder that `asrkit study` has written (studies/NAME)"
        raise StorageError(f"{folder} holds no study.json", fix=fix, reason="no_study") from None
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}", reason="unreadable") from error
    except ValueError as error:
        fix = "run `asrkit study` again: it writes it anew"
        raise StorageError(f"{path} is damaged ({error})", fix=fix, reason="damaged") from error
    if not isinstance(study, dict) or study.get("format") != cells.FORMAT or not isinstance(study.get("cells"), list):
        raise StorageError(f"{path} is no study of this asrkit", reason="format")
    if not _is_whole(study):
        raise StorageError(f"{path} is damaged", fix="run `asrkit study` again: it writes it anew", reason="damaged")
    return StudyResult(folder, study, [_cell(folder, row) for row in study["cells"]])


def _is_whole(study: dict[str, Any]) -> bool:
    """Whether cells and arms have what is read of them, and lie below the study's own folder."""
    arms = study.get("arms", [])
    if not isinstance(arms, list) or not all(isinstance(entry, dict) for entry in [*study["cells"], *arms]):
        return False
    texts = [cell.get(key) for cell in study["cells"] for key in ("id", "path", "arm")]
    texts += [arm.get(key) for arm in arms for key in ("arm", "context")]
    paths = [Path(str(cell.get("path"))) for cell in study["cells"]]
    inside = not any(path.is_absolute() or ".." in path.parts for path in paths)
    seeds = all(isinstance(cell.get("seed"), int) for cell in study["cells"])
    return inside and seeds and all(isinstance(text, str) and "\0" not in text for text in texts)


def _cell(folder: Path, row: dict[str, Any]) -> CellResult:
    place, damage = folder / row["path"], []
    outcome, epochs = None, []
    try:
        outcome = cells.read_outcome(place)
    except AsrkitError as error:
        damage.append(_inside(error, folder))
    try:
        epochs = [line for line in MetricsLog.read(place / "metrics.jsonl") if line.get("type") == "epoch"]
    except AsrkitError as error:
        damage.append(_inside(error, folder))
    if outcome is not None and not epochs and not damage and outcome.get("status") in (cells.DONE, cells.COLLAPSED):
        damage.append("metrics.jsonl has no epoch: no curves")
    return CellResult(row, outcome, epochs, tuple(damage))


def _inside(error: AsrkitError, folder: Path) -> str:
    """A report is passed on: no paths of the machine it was made on."""
    return str(error.what).replace(f"{folder}/", "")


def troubles(found: StudyResult) -> list[dict[str, Any]]:
    """Every cell that is not simply done, with the reason; in the order of the study."""
    listed = []
    for cell in found.cells:
        reasons = _reasons(cell)
        if cell.status != cells.DONE or reasons:
            facts = {key: cell.row.get(key) for key in ("id", "arm", "lr", "seed", "chosen")}
            listed.append({**facts, "status": cell.status, "reason": "; ".join(reasons)})
    return listed


def _reasons(cell: CellResult) -> Sequence[str]:
    known = cell.outcome or cell.row
    reasons = [] if cell.outcome is None and cell.status != cells.FAILED else _error("", known.get("error"))
    reasons += _error("test not scored: ", known.get("test_error")) + list(cell.damage)
    if cell.outcome is not None:
        for name in ("dev", "test"):
            if cell.outcome.get(name) and not cell.scored(name):
                reasons.append(f"{name}: errors of single utterances are missing")
    if reasons:
        return reasons
    return {
        cells.COLLAPSED: ["at least 99 % empty outputs on dev, and the model does not hear its input"],
        cells.SKIPPED: ["the time budget was used up"],
        cells.PENDING: ["not done yet"],
        cells.FAILED: ["no reason recorded"],
        "missing": ["study.json says it is over, and its cell.json is gone"],
    }.get(cell.status, [])


def _error(prefix: str, error: dict[str, Any] | None) -> list[str]:
    return [f"{prefix}{error.get('code', '?')}: {error.get('message', '')}".rstrip(": ")] if error else []
