"""What lies in a study's folder: study.json, cell.json and metrics.jsonl of every cell; what is damaged is named."""

from __future__ import annotations

import json
from collections import Counter
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

    @property
    def learning_rates(self) -> list[float]:
        """The learning rates that were tried, or are to be: the same grid for every arm, in increasing order."""
        return sorted({entry["lr"] for arm in self.arms for entry in arm.get("tuning") or []})

    def tried_in_vain(self, entry: dict[str, Any]) -> bool:
        """Whether no model of a learning rate (an entry of an arm's `tuning`) hears its input."""
        return (entry.get("deaf") or 0) >= max(1, len(self.study.get("tuning_seeds") or []))

    @property
    def left_out(self) -> list[dict[str, Any]]:
        """Cells that were trained and are not compared, since the study's rates, encoders or seeds are others now: id,
        arm, lr, seed, status, dev_cer, why."""
        known = self.study.get("left_out")
        return [one for one in known if isinstance(one, dict)] if isinstance(known, list) else []

    @property
    def unplanned(self) -> int:
        """How many cells are to come that depend on what others come to."""
        return max(int(self.study.get("total_cells", 0)) - len(self.cells), 0)

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
    torn: list[StorageError] = []
    try:
        epochs = [line for line in MetricsLog.read(place / "metrics.jsonl", torn) if line.get("type") == "epoch"]
    except AsrkitError as error:
        damage.append(_inside(error, folder))
    damage += [_inside(error, folder) for error in torn]
    if outcome is not None and not epochs and not damage and outcome.get("status") in (cells.DONE, cells.COLLAPSED):
        damage.append("metrics.jsonl has no epoch: no curves")
    return CellResult(row, outcome, epochs, tuple(damage))


def _inside(error: AsrkitError, folder: Path) -> str:
    """A report is passed on: no paths of the machine it was made on."""
    return "; fix: ".join(filter(None, (error.what, error.fix))).replace(f"{folder}/", "")


def utterances(members: Sequence[CellResult], split: str) -> dict[str, Any] | None:
    """One of the scores on the utterances that most of a context's cells were scored on; None where none was scored."""
    scores = [score for cell in members if (score := cell.scored(split))]
    counts = Counter(json.dumps(score["ids"]) for score in scores)
    return max(scores, key=lambda score: counts[json.dumps(score["ids"])], default=None)  # the first of equals


def troubles(found: StudyResult) -> list[dict[str, Any]]:
    """Every cell that is not simply done, with the reason; in the order of the study."""
    listed = []
    why = reasons(found)
    for cell in found.cells:
        if cell.status != cells.DONE or why[cell.row["id"]]:
            facts = {key: cell.row.get(key) for key in ("id", "arm", "lr", "seed", "chosen")}
            listed.append({**facts, "status": cell.status, "reason": "; ".join(why[cell.row["id"]])})
    return listed


def reasons(found: StudyResult) -> dict[str, list[str]]:
    """Cell's id -> in words what keeps it from being simply done."""
    definition = found.study.get("definition")
    tests = isinstance(definition, dict) and bool(definition.get("test"))
    unlike: dict[str, list[str]] = {}
    for arms in found.contexts().values():
        members = [cell for arm in arms for cell in found.of_arm(arm["arm"])]
        for split in ("dev", "test"):
            like = utterances(members, split)
            for cell in members:
                score = cell.scored(split)
                if like is not None and score is not None and score["ids"] != like["ids"]:
                    text = f"{split} was not scored on the same utterances as most others', so it is not compared"
                    unlike.setdefault(cell.row["id"], []).append(text)
    return {cell.row["id"]: _reasons(cell, tests, unlike.get(cell.row["id"], [])) for cell in found.cells}


def _reasons(cell: CellResult, tests: bool, unlike: list[str]) -> list[str]:
    """tests: whether the study decodes test. unlike: what is said of its utterances."""
    known = cell.outcome or cell.row
    said = [] if cell.outcome is None and cell.status != cells.FAILED else _error("", known.get("error"))
    said += _error("test not scored: ", known.get("test_error")) + list(cell.damage) + unlike
    if cell.outcome is not None:
        for name in ("dev", "test"):
            if cell.outcome.get(name) and not cell.scored(name):
                said.append(f"{name}: errors of single utterances are missing")
        if tests and _awaits_test(cell.row, cell.outcome):
            said.append("test is not decoded yet")
    if cell.status == cells.COLLAPSED:
        return ["at least 99 % empty outputs on dev, and the model does not hear its input", *said]
    return said or {
        cells.SKIPPED: ["the time budget was used up"],
        cells.PENDING: ["not done yet"],
        cells.FAILED: ["no reason recorded"],
        "missing": ["study.json says it is over, and its cell.json is gone"],
    }.get(cell.status, [])


def _awaits_test(row: dict[str, Any], outcome: dict[str, Any]) -> bool:
    missing = not outcome.get("test") and not outcome.get("test_error")
    return missing and bool(row.get("chosen") and outcome.get("dev"))


def _error(prefix: str, error: dict[str, Any] | None) -> list[str]:
    return [f"{prefix}{error.get('code', '?')}: {error.get('message', '')}".rstrip(": ")] if error else []
