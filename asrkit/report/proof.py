"""The tables of a report on how a study was made: proof, learning rates tried, cells that are not as they should be."""

from __future__ import annotations

from asrkit.report.collect import StudyResult, troubles
from asrkit.report.formats import NONE, Table, context_name, number, percent
from asrkit.study.proof import COMPARED, shortened


def proof_table(found: StudyResult) -> Table:
    """Group by group whether its cells agree in all that they must agree in."""
    groups: dict[str, list[dict[str, object]]] = {}
    for row in found.study.get("proof") or []:
        groups.setdefault(str(row.get("group")), []).append(row)
    rows, columns = [], (*COMPARED, "code")
    for group, members in groups.items():
        shown = []
        for key in columns:
            shown.append(_agreement([None if m.get(key) is None else str(m[key]) for m in members]))
        rows.append((context_name(group), str(len(members)), *shown))
    note = (
        "Within a recipe, its axes and a seed all cells must have the same hash of settings (outside encoder and "
        "learning rate), splits, labels, output frames, order of the data and initial weights outside the norms, and "
        "the same number of updates; ≠ marks what differs, and a number of cells says how many have recorded it, where "
        "not all have. Code: sources of asrkit and torch's version, which may differ where a study went on after an "
        "upgrade. First 8 digits of hashes; in full in report.json."
    )
    return Table("Proof that the arms differ in nothing else", note, ("group", "cells", *columns), rows)


def _agreement(values: list[str | None]) -> str:
    """`1f3a9c02` where all cells have that, `1f3a9c02 (3 of 20)` where the others have recorded none."""
    known = [value for value in values if value is not None]
    short = list(dict.fromkeys(shortened(value) for value in known))
    if not short:
        return NONE
    text = short[0] if len(set(known)) == 1 else f"≠ {', '.join(short)}"
    return text if len(known) == len(values) else f"{text} ({len(known)} of {len(values)})"


def rates_table(found: StudyResult) -> Table:
    """Learning rates tried and chosen, parameters."""
    parameters = {row.get("cell"): row for row in found.study.get("proof") or []}
    grid = found.learning_rates
    rows = []
    for arm in found.arms:
        means = {entry["lr"]: entry for entry in arm.get("tuning", [])}
        size: dict[str, int] = next((parameters[c.row["id"]] for c in found.cells
                     if c.row["arm"] == arm["arm"] and c.row["id"] in parameters), {})  # fmt: skip
        chosen = "open" if arm.get("lr") is None else f"{arm['lr']:g}"
        tried = [_tried(means.get(lr) or {}) for lr in grid]
        counts = [format(size[k], ",") if size.get(k) is not None else NONE for k in ("parameters", "norm_parameters")]
        rows.append((context_name(arm["arm"]), chosen, *tried, *counts))
    seeds = ", ".join(map(str, found.study.get("tuning_seeds", [])))
    note = (
        f"Mean dev CER in % of seed {seeds} with every learning rate of the grid; the lowest is the arm's. In "
        "brackets: of models that do not hear their input, which count as 100 % in this choice."
    )
    head = ("arm", "chosen", *(f"{lr:g}" for lr in grid), "parameters", "in norms")
    return Table("Learning rates tried", note, head, rows)


def _tried(entry: dict[str, float | None]) -> str:
    return f"[{percent(entry['dev_cer'])}]" if entry.get("deaf") else percent(entry.get("dev_cer"))


def trouble_table(found: StudyResult) -> Table:
    """Every cell that is not simply done."""
    rows = [(t["id"], t["status"].replace("_", " "), "yes" if t["chosen"] else "no", t["reason"])
            for t in troubles(found)]  # fmt: skip
    note = (
        "Failed, collapsed, skipped, pending and damaged cells, those whose test is still to be decoded, and those of "
        f"other utterances; none is left out of the figures without being here{' or below' * bool(found.left_out)}."
    )
    return Table("Cells that are not simply done", note, ("cell", "status", "has the arm's rate", "reason"), rows)


def left_out_table(found: StudyResult) -> Table:
    """Every cell that was trained and is not compared, since the study is another now."""
    rows = []
    for one in found.left_out:
        lr, seed = (
            number(value, "g") if isinstance(value := one.get(key), int | float) else NONE for key in ("lr", "seed")
        )
        cer = one.get("dev_cer")
        rows.append((
            str(one.get("id")), lr, seed, str(one.get("status")).replace("_", " "),
            percent(cer if isinstance(cer, int | float) else None), str(one.get("why")),
        ))  # fmt: skip
    note = "Trained before the study's learning rates, encoders or seeds were changed; in no figure of this report."
    return Table(
        "Cells that are not compared", note, ("cell", "learning rate", "seed", "status", "dev CER", "why"), rows
    )
