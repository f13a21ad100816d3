"""Writes a report: report.html, report.md, cells.csv and report.json into the study's folder."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

from asrkit.comparison import in_words
from asrkit.disk import atomic_write
from asrkit.errors import DataError, StorageError
from asrkit.report import figures, tables, words
from asrkit.report.collect import CellResult, StudyResult, collect, troubles
from asrkit.report.measures import (
    THRESHOLDS,
    comparisons,
    cost,
    default_split,
    end_gap,
    end_gradients,
    finals,
    paces,
    reached,
    series,
    spread,
)
from asrkit.report.page import Section, markdown, page

FORMAT = 1
RATES = {"characters": "CER", "words": "WER"}


def write_report(folder: str | Path, unit: str = "characters", split: str | None = None) -> dict[str, Any]:
    """Write the four files; returns what report.json holds.

    unit: characters (CER) or words (WER), what arms are compared in. split: dev or test; default test where any cell
    was scored on it. Raises StorageError for a folder without a study, DataError (`not_scored`) for a split that no
    cell was scored on.
    """
    found = collect(folder)
    if split is not None and not any(cell.row.get("chosen") and cell.scored(split) for cell in found.cells):
        has = [name for name in ("dev", "test") if any(c.row.get("chosen") and c.scored(name) for c in found.cells)]
        raise DataError(
            f"no cell with its arm's learning rate was scored on {split}", possible=", ".join(has) or "none so far",
            reason="not_scored",
        )  # fmt: skip
    data, headlines, sections = build(found, unit, split or default_split(found))
    subtitle = f"study {found.study.get('file', '?')} · asrkit {found.study.get('asrkit', '?')} · seeds " + ", ".join(
        map(str, found.study.get("seeds", []))
    )
    files = {
        "report.html": page(found.name, subtitle, headlines, len(data["troubles"]), sections),
        "report.md": markdown(found.name, subtitle, headlines, sections),
        "cells.csv": cells_csv(found),
        "report.json": json.dumps(data, ensure_ascii=False, indent=1, allow_nan=False) + "\n",
    }
    for name, text in files.items():
        try:
            atomic_write(found.folder / name, text.encode("utf-8", "replace"))
        except OSError as error:
            raise StorageError(f"{found.folder / name}: {error.strerror or error}", reason="unwritable") from error
    return data


def build(found: StudyResult, unit: str, split: str) -> tuple[dict[str, Any], list[str], list[Section]]:
    """What report.json holds, the headlines, and the sections of page and Markdown."""
    rate = RATES[unit]
    both = {name: finals(found, split, name) for name in RATES}
    pairs, speeds = comparisons(found, both[unit]), paces(found)
    headlines = words.headlines(found, both[unit], pairs, speeds, split, rate)
    several = len(found.contexts()) > 1

    def said(context: str, text: str) -> str:
        return f"{words.context_name(context)}: {text}" if several else text

    verdicts = [said(context, in_words(one, rate)) for context, one in pairs]
    quicker = [said(one.context, words.pace_in_words(one)) for one in speeds]
    curves = [(words.context_name(context), figures.learning(found, context)) for context in found.contexts()]
    signs = [(words.context_name(context), figures.inside(found, context)) for context in found.contexts()]
    band = (
        "Lines are means over seeds, bands from least to most; a cell that failed is a thin line that ends in a cross."
    )
    final = tables.final_table(found, split, both["characters"], both["words"])
    sections = [
        Section("Which arm is better", verdicts,
                [(f"{rate} on {split}: seeds, mean, interval", figures.outcome(found, both[unit], rate, split))],
                [final, tables.comparison_table(pairs, split, rate)]),
        Section("Which arm learns faster", quicker, (), [tables.threshold_table(found), tables.pace_table(speeds)]),
        Section("Learning curves", [band], curves),
        Section("Blanks, empty outputs, gradients", [band], signs, [tables.end_table(found)]),
        Section("Cost", (), (), [tables.cost_table(found)]),
        Section("How it was made", (), (), [tables.rates_table(found), tables.proof_table(found)]),
        Section("Cells", (), (), [tables.trouble_table(found)]),
    ]  # fmt: skip
    data = {
        "format": FORMAT, "study": found.name, "split": split, "unit": unit, "rate": rate,
        "complete": found.study.get("complete"), "headlines": headlines, "verdicts": verdicts, "pace": quicker,
        "arms": [
            {**arm, **{RATES[name]: _final(one.get(arm["arm"])) for name, one in both.items()}} for arm in found.arms
        ],
        "comparisons": [
            {"context": context, "different": one.different, **dataclasses.asdict(one)} for context, one in pairs
        ],
        "paces": [{"different": one.different, **dataclasses.asdict(one)} for one in speeds],
        "cells": [cell_figures(cell) for cell in found.cells],
        "troubles": troubles(found), "proof": found.study.get("proof") or [],
    }  # fmt: skip
    return plain(data), headlines, sections


def _final(one: Any) -> dict[str, Any] | None:
    if one is None:
        return None
    rates = one.arm.rates.tolist()
    by_seed = {str(seed): rate for seed, rate in zip(one.arm.seeds, rates, strict=True)}
    return {**dataclasses.asdict(spread(rates)), "by_seed": by_seed, "without_model": one.without_model}  # type: ignore[arg-type]


def cell_figures(cell: CellResult) -> dict[str, Any]:
    """One line of cells.csv; None where something is not known."""
    known, gap, gradients = cell.outcome or {}, end_gap(cell), end_gradients(cell)
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
        "reason": "; ".join(t["reason"] for t in troubles(StudyResult(Path(), {}, [cell]))),
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
        **{f"updates_to_{t:g}": reached(cell, t) for t in THRESHOLDS},
    }


def cells_csv(found: StudyResult) -> str:
    """A line for every cell; axes as JSON, what is not known empty, numbers so that they read back the same."""
    lines = [plain(cell_figures(cell)) for cell in found.cells]
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
