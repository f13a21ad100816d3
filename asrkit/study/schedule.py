"""What a study does next, as a pure function of what is done: learning rates first, then all seeds.

Stage 1 trains every arm with every learning rate and the first seed (or seeds); the one with the smallest mean CER on
dev is the arm's, where a model that does not hear its input counts as 100 %. Stage 2 trains the other seeds with it,
reuses the cells of stage 1, and decodes the test split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asrkit.study.plan import Cell, Study

WITHOUT_OUTPUT = 1.0  # the CER of a cell that has left no model: every character is deleted

Outcomes = Mapping[str, Mapping[str, Any]]
"""What cells have left (cell.json), by cell id."""


@dataclass(frozen=True)
class Job:
    """One process: train the cell unless it is done, and decode the test split with its model if `test`."""

    cell: Cell
    test: bool


def counted_cer(outcome: Mapping[str, Any]) -> float | None:
    """The CER on dev of a cell: a crashed one counts by the best model it has left. None where there is a model that
    could not be scored."""
    if outcome.get("dev"):
        return float(outcome["dev"]["cer"])
    return WITHOUT_OUTPUT if not outcome.get("dev_error") else None


@dataclass(frozen=True)
class Tried:
    """What a learning rate came to with the tuning seeds.

    cer: mean on dev. deaf: how many of the models do not hear their input, so that their CER is chance. judged: the
    mean with 1 in their place.
    """

    cer: float
    deaf: int
    judged: float

    @classmethod
    def of(cls, outcomes: Sequence[Mapping[str, Any]]) -> Tried | None:
        """Of the tuning seeds' cells, all of them done; None where one of them could not be scored."""
        rates = [rate for one in outcomes if (rate := counted_cer(one)) is not None]
        if len(rates) < len(outcomes):
            return None
        deaf = [one.get("hears") is False for one in outcomes]
        judged = [WITHOUT_OUTPUT if no else rate for rate, no in zip(rates, deaf, strict=True)]
        return cls(_mean(rates), sum(deaf), _mean(judged))


def tuning(study: Study, outcomes: Outcomes) -> dict[str, dict[float, Tried | None]]:
    """Arm -> learning rate -> what it came to; None where not all cells of the tuning seeds are done and scored."""
    found: dict[str, dict[float, Tried | None]] = {}
    for arm, cells in study.arms.items():
        found[arm] = {}
        for lr in dict.fromkeys(cell.lr for cell in cells):
            ids = [cell.id for cell in cells if cell.lr == lr and cell.seed in study.tuning_seeds]
            done = [outcomes[name] for name in ids if name in outcomes]
            found[arm][lr] = Tried.of(done) if len(done) == len(ids) else None
    return found


def chosen_rates(study: Study, outcomes: Outcomes) -> dict[str, float | None]:
    """The learning rate of every arm: the smallest mean CER on dev, a model that does not hear its input counting as
    100 %; of equals the smaller CER as it is, then the smaller rate. None while it is open."""
    chosen: dict[str, float | None] = {}
    for arm, rates in tuning(study, outcomes).items():
        known = {lr: (tried.judged, tried.cer, lr) for lr, tried in rates.items() if tried is not None}
        if len(rates) == 1:
            chosen[arm] = next(iter(rates))
        else:
            chosen[arm] = min(known, key=known.__getitem__) if len(known) == len(rates) else None
    return chosen


def wanted_cells(study: Study, outcomes: Outcomes) -> list[Cell]:
    """The cells that are known to be needed by now, stage 1 first, then seed by seed: a study that is cut off has
    paired seeds."""
    chosen, seeds = chosen_rates(study, outcomes), study.definition["seeds"]
    several = len(study.definition["lr"]) > 1
    ranked = []
    for place, cell in enumerate(study.cells):
        tunes = several and cell.seed in study.tuning_seeds
        if tunes or chosen[cell.arm] == cell.lr:
            ranked.append((not tunes, seeds.index(cell.seed), place, cell))
    return [cell for *_, cell in sorted(ranked, key=lambda entry: entry[:3])]


def next_jobs(study: Study, outcomes: Outcomes) -> list[Job]:
    """All that can be done now, in the order in which it shall be."""
    chosen = chosen_rates(study, outcomes)
    first, then = [], []  # what other cells wait for, all else
    for cell in wanted_cells(study, outcomes):
        test = bool(study.definition["test"]) and chosen[cell.arm] == cell.lr
        outcome = outcomes.get(cell.id)
        if outcome is None and chosen[cell.arm] is None:
            first.append(Job(cell, test))
        elif outcome is None or (test and _can_be_tested(outcome)):
            then.append(Job(cell, test))
    return first + then


def _can_be_tested(outcome: Mapping[str, Any]) -> bool:
    return outcome.get("dev") is not None and outcome.get("test") is None and outcome.get("test_error") is None


def total_cells(study: Study) -> int:
    """How many cells the whole study trains, whatever learning rates are chosen."""
    arms, seeds = len(study.arms), len(study.definition["seeds"])
    rates, tuned = len(study.definition["lr"]), len(study.tuning_seeds)
    return arms * (rates * tuned + seeds - tuned)


def seconds_left(study: Study, outcomes: Outcomes, processes: int) -> float | None:
    """Estimate of the time to the end: what cells of the same recipe, else of any, took; None before the first is
    done."""
    took: dict[str, list[float]] = {}
    for cell in study.cells:
        outcome = outcomes.get(cell.id) or {}
        if outcome.get("wall_seconds") and not outcome.get("resumed"):
            took.setdefault(cell.context, []).append(outcome["wall_seconds"])
    if not took:
        return None
    overall = _mean([one for values in took.values() for one in values])
    left = 0.0
    share = total_cells(study) / len(study.arms)
    done = Counter(cell.arm for cell in wanted_cells(study, outcomes) if cell.id in outcomes)
    for arm, cells in study.arms.items():
        left += max(share - done[arm], 0) * _mean(took.get(cells[0].context, [overall]))
    return left / max(min(processes, total_cells(study)), 1)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
