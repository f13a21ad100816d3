"""Writes a report: report.html, report.md, cells.csv and report.json into the study's folder."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

from asrkit.comparison import ALPHA, Comparison, too_few
from asrkit.disk import atomic_write
from asrkit.errors import DataError, StorageError
from asrkit.report import axis_figures, figures, proof, rate_figures, tables, words
from asrkit.report.axes import Family, across, axes, questions
from asrkit.report.collect import CellResult, StudyResult, collect, reasons, troubles
from asrkit.report.formats import context_name
from asrkit.report.interactions import Interaction, interactions
from asrkit.report.layers import DEPENDENCE, GRADIENT, at_end, end_dependence, end_gradients
from asrkit.report.learning import THRESHOLDS, Pace, floor, heard_from, hears, model_hears, paces, reached, series
from asrkit.report.measures import Final, comparisons, cost, default_split, end_gap, finals, spread
from asrkit.report.page import Section, markdown, page
from asrkit.report.sentences import across_in_words, comparison_in_words, interaction_in_words, pace_in_words

FORMAT = 1
RATES = {"characters": "CER", "words": "WER"}
FEW = 3  # sentences without evidence that a page shows without being asked
BAND = "Lines are means over seeds, bands from least to most; a cell that failed is a thin line that ends in a cross."
FLOOR = (
    "The dotted line is the loss of the best model with the same output at every frame: blanks and the frequencies of "
    "characters. A recurrent one that hears nothing gets up to 8 % below it by knowing its place in the utterance."
)
RAW = (
    "CERs are drawn here as they were recorded, also of a model that does not hear yet, which writes frequent "
    "characters or blanks; where it is asked which arm learns faster they count as 100 %."
)


def write_report(
    folder: str | Path, unit: str = "characters", split: str | None = None, baseline: str | None = None
) -> dict[str, Any]:
    """Write the four files; returns what report.json holds.

    unit: characters (CER) or words (WER), what arms are compared in. split: dev or test; default test where any cell
    was scored on it. baseline: an encoder that every other one is compared with, instead of all pairs: fewer tests, so
    the correction for their number takes less; default that of the study file, where it was chosen before any result.

    Raises StorageError for a folder without a study, DataError for a split that no cell was scored on (`not_scored`)
    and a baseline that the study does not have (`unknown_baseline`).
    """
    found = collect(folder)
    if split is not None and not any(cell.row.get("chosen") and cell.scored(split) for cell in found.cells):
        has = [name for name in ("dev", "test") if any(c.row.get("chosen") and c.scored(name) for c in found.cells)]
        raise DataError(
            f"no cell with its arm's learning rate was scored on {split}", possible=", ".join(has) or "none so far",
            reason="not_scored",
        )  # fmt: skip
    baseline = baseline or found.baseline
    names = list(dict.fromkeys(arm["encoder"] for arm in found.arms))
    if baseline is not None and baseline not in names:
        raise DataError(f"no encoder {baseline!r} in this study", possible=", ".join(names), reason="unknown_baseline")
    j = judge(found, unit, split or default_split(found), baseline)
    data, sections = numbers(found, j, baseline), _sections(found, j, RATES[unit], baseline)
    subtitle = f"study {found.study.get('file', '?')} · asrkit {found.study.get('asrkit', '?')} · seeds " + ", ".join(
        map(str, found.study.get("seeds", []))
    )
    files = {
        "report.html": page(found.name, subtitle, j.headlines, len(data["troubles"]), sections, found.unplanned),
        "report.md": markdown(found.name, subtitle, j.headlines, sections),
        "cells.csv": cells_csv(found),
        "report.json": json.dumps(data, ensure_ascii=False, indent=1, allow_nan=False) + "\n",
    }
    for name, text in files.items():
        try:
            atomic_write(found.folder / name, text.encode("utf-8", "replace"))
        except OSError as error:
            raise StorageError(f"{found.folder / name}: {error.strerror or error}", reason="unwritable") from error
    return data


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What a study shows, as numbers and in sentences. finals: unit -> arm's id -> outcome."""

    split: str
    unit: str
    finals: dict[str, dict[str, Final]]
    pairs: list[tuple[str, Comparison]]
    speeds: list[Pace]
    axes: list[tuple[Family, Comparison]]
    changes: list[Interaction]
    headlines: list[str]
    verdicts: list[str]
    quicker: list[str]
    along: list[str]
    changing: list[str]


def judge(found: StudyResult, unit: str, split: str, baseline: str | None = None) -> Judgement:
    """Every comparison that the report makes, and what it says of it; nothing is drawn. baseline: as write_report's.

    The questions share ALPHA: with four of them each has half the level that each of two has.
    """
    rate, level = RATES[unit], ALPHA / questions(found)
    both = {name: finals(found, split, name) for name in RATES}
    pairs, speeds = comparisons(found, both[unit], baseline, level), paces(found, baseline, level)
    along, changes = across(found, both[unit], level), interactions(found, both[unit], baseline, level)
    several = len(found.contexts()) > 1

    def said(context: str, text: str) -> str:
        return f"{context_name(context)}: {text}" if several else text

    return Judgement(
        split, unit, both, pairs, speeds, along, changes,
        words.headlines(
            found, both[unit], pairs, speeds, split, rate, baseline, [*(one for _, one in along), *changes]
        ),
        [said(context, comparison_in_words(one, rate)) for context, one in pairs],
        [said(one.context, pace_in_words(one)) for one in speeds],
        [across_in_words(family, one, rate) for family, one in along],
        [interaction_in_words(one, rate) for one in changes],
    )  # fmt: skip


def numbers(found: StudyResult, j: Judgement, baseline: str | None = None) -> dict[str, Any]:
    """What report.json holds."""
    data = {
        "format": FORMAT, "study": found.name, "split": j.split, "unit": j.unit, "rate": RATES[j.unit],
        "baseline": baseline, "complete": found.study.get("complete"), "headlines": j.headlines,
        "verdicts": j.verdicts, "pace": j.quicker, "across": j.along, "changes": j.changing,
        "arms": [
            {**arm, **{RATES[name]: _final(one.get(arm["arm"])) for name, one in j.finals.items()}}
            for arm in found.arms
        ],
        "comparisons": [{"context": context, **_judged(one)} for context, one in j.pairs],
        "paces": [_judged(one) for one in j.speeds],
        "axes": [
            {"axis": family.axis, "context": family.context, "encoder": family.encoder, **_judged(one)}
            for family, one in j.axes
        ],
        "interactions": [_judged(one) for one in j.changes],
        "cells": _cells(found), "left_out": found.left_out,
        "layers": {cell.row["id"]: {kind: at_end(cell, kind) for kind in (GRADIENT, DEPENDENCE)}
                   for cell in found.cells if cell.epochs},
        "troubles": troubles(found), "proof": found.study.get("proof") or [],
    }  # fmt: skip
    return plain(data)


def _judged(one: Comparison | Pace | Interaction) -> dict[str, Any]:
    return {"different": one.different, "too_few": too_few(one), **dataclasses.asdict(one)}


def _split(sentences: list[str], stands: list[bool]) -> tuple[list[str], list[str]]:
    """Sentences of differences that stand, and the others, which a page folds away where they are many."""
    there = [text for text, different in zip(sentences, stands, strict=True) if different]
    others = [text for text, different in zip(sentences, stands, strict=True) if not different]
    return (there, others) if len(others) > FEW else ([*there, *others], [])


def _sections(found: StudyResult, j: Judgement, rate: str, baseline: str | None = None) -> list[Section]:
    result, contexts = j.finals[j.unit], found.contexts()
    final = tables.final_table(found, j.split, j.finals["characters"], j.finals["words"])
    scored = {split: one for split in ("dev", "test") if (one := finals(found, split, j.unit))}
    slopes = {one.axis for one in j.changes if one.per}  # few values are read from the table
    along = [
        Section("Across the axes", *_split(j.along, [one.different for _, one in j.axes]),
                [axis_figures.across(found, scored, axis, rate) for axis in axes(found)],
                [tables.axis_table(j.axes, j.split, rate)]),
        Section("Does an axis change what an encoder does", *_split(j.changing, [one.different for one in j.changes]),
                [axis_figures.gaps(found, result, axis, rate, baseline) for axis in axes(found) if axis in slopes],
                [tables.interaction_table(j.changes, j.split, rate)]),
    ]  # fmt: skip
    return [
        Section("Which arm is better", *_split(j.verdicts, [one.different for _, one in j.pairs]),
                [figures.outcome(found, result, rate, j.split)],
                [final, tables.comparison_table(j.pairs, j.split, rate)]),
        *(along if axes(found) else []),
        Section("Which arm learns faster", *_split(j.quicker, [one.different for one in j.speeds]),
                figures.overview(found),
                [tables.threshold_table(found), tables.pace_table(j.speeds)]),
        Section("Learning curves", [BAND, FLOOR, *[RAW] * any(one.raised for one in j.speeds)], (),
                [figures.learning(found, context) for context in contexts]),
        Section("Blanks, empty outputs, gradients, dependence on the input", [BAND], (),
                [figures.inside(found, context) for context in contexts],
                [tables.end_table(found), *tables.layer_tables(found)]),
        Section("Learning rates", [], (), rate_figures.learning_rates(found), [proof.rates_table(found)]),
        Section("Cost", tables=[tables.cost_table(found)]),
        Section("How it was made", tables=[proof.proof_table(found)]),
        Section("Cells", tables=[proof.trouble_table(found), *[proof.left_out_table(found)] * bool(found.left_out)]),
    ]  # fmt: skip


def _final(one: Any) -> dict[str, Any] | None:
    if one is None:
        return None
    rates = one.arm.rates.tolist()
    by_seed = {str(seed): rate for seed, rate in zip(one.arm.seeds, rates, strict=True)}
    return {**dataclasses.asdict(spread(rates)), "by_seed": by_seed, "without_model": one.without_model}  # type: ignore[arg-type]


def _cells(found: StudyResult) -> list[dict[str, Any]]:
    why = reasons(found)
    return [cell_figures(cell, "; ".join(why[cell.row["id"]])) for cell in found.cells]


def cell_figures(cell: CellResult, reason: str = "") -> dict[str, Any]:
    """One line of cells.csv; None where something is not known. reason: why it is not simply done, in words."""
    known, gap, gradients, weak = cell.outcome or {}, end_gap(cell), end_gradients(cell), end_dependence(cell)
    scores = {
        f"{name}_{rate}": (known.get(name) or {}).get(rate) for name in ("dev", "test") for rate in ("cer", "wer")
    }
    ends = {
        f"end_{split}_{key}": points[-1][2] if (points := series(cell, split, key)) else None
        for split, key in (("train", "loss"), ("dev", "loss"), ("dev", "blank"), ("dev", "empty"))
    }
    return {
        **{key: cell.row.get(key) for key in ("id", "arm", "context", "recipe", "axes", "encoder", "lr", "seed")},
        "chosen": bool(cell.row.get("chosen")),
        "status": cell.status,
        "reason": reason,
        **scores,
        **{key: known.get(key) for key in ("epochs", "updates", "best_epoch", "train_seconds", "wall_seconds")},
        **cost(cell),
        **ends,
        "end_train_cer": gap[0] if gap else None,
        "end_dev_cer": gap[1] if gap else None,
        "end_gap": gap[1] - gap[0] if gap else None,
        "first_layer": gradients[0] if gradients else None,
        "first_gradient": gradients[1] if gradients else None,
        "last_layer": gradients[2] if gradients else None,
        "last_gradient": gradients[3] if gradients else None,
        "weakest_layer": weak[0] if weak else None,
        "weakest_dependence": weak[1] if weak else None,
        "floor": floor(cell),
        "hears": hears(cell),
        "model_hears": model_hears(cell),
        "updates_to_hearing": heard_from(cell),
        **{f"updates_to_{t:g}": reached(cell, t) for t in THRESHOLDS},
    }


def cells_csv(found: StudyResult) -> str:
    """A line for every cell; axes as JSON, what is not known empty, numbers so that they read back the same."""
    lines = [plain(line) for line in _cells(found)]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(lines[0]) if lines else ["id"], lineterminator="\n")
    writer.writeheader()
    for line in lines:
        axes = json.dumps(line["axes"], ensure_ascii=False) if line["axes"] else ""
        writer.writerow({**line, "axes": axes})
    return text.getvalue()


def plain(data: Any) -> Any:
    """Data as strict JSON has it: NaN and infinity None, arrays and tuples lists."""
    if isinstance(data, dict):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, float):
        return float(data) if math.isfinite(data) else None
    if isinstance(data, str | int | None):
        return data
    if hasattr(data, "tolist"):
        return plain(data.tolist())
    return [plain(value) for value in data]
