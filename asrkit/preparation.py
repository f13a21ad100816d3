"""From a resolved recipe to what training reads: corpus -> texts -> labels -> cached features -> feasible utterances.

Every exclusion is a line in the data report with its reason and numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from asrkit import registry
from asrkit.clips import Limits
from asrkit.corpus import Utterance, fetch, open_data
from asrkit.ctc import required_frames
from asrkit.errors import DataError
from asrkit.feature_cache import FeatureTable, WaveformTable, cached_features, cached_waveforms
from asrkit.model import CTCModel, build_model
from asrkit.perturb import build_perturbation, num_samples
from asrkit.selection import DataReport, Leakage, leakage, normalized, select_texts, split_hash
from asrkit.splits import AugmentedSplit, Split
from asrkit.subset import subset
from asrkit.text import fit_tokenizer

__all__ = ["Prepared", "Split", "prepare"]

TABLES = (".tsv", ".csv", ".jsonl")
LONGEST_TEST = 1e4  # seconds: what is scored must not depend on what training takes


@dataclass(frozen=True)
class Prepared:
    """What one run needs: the splits, the tokenizer, the untrained model, and the record of what was left out."""

    splits: dict[str, Split]
    tokenizer: Any
    model: CTCModel
    report: DataReport
    leakage: Leakage


def prepare(
    recipe: dict[str, Any],
    wanted: Sequence[str] = ("train", "dev"),
    *,
    tokenizer: Any = None,
    report: DataReport | None = None,
    progress: bool = False,
) -> Prepared:
    """Read the splits of `data:` named in `wanted` (keys: train, dev, test), fit the tokenizer on train, build the
    model.

    A tokenizer that is given (a trained model's) is used as it is; a report that is given is filled even if this
    raises. The test split keeps clips that the loss could not take: what is scored must not depend on the model. Raises
    DataError (exit 3) when a split has no usable utterance, when more than `data.max_bad` of it was excluded, and when
    splits share speakers or audio.
    """
    data = recipe["data"]
    report = DataReport() if report is None else report
    rules = registry.load("text", recipe["text"]["rules"])()
    named = {key: data[key] for key in ("train", "dev", "test") if data[key]}
    files = {key: name for key, name in named.items() if Path(name).suffix in TABLES}
    corpus = open_data(data, report, progress)
    # All tables are read, cheap as they are: leakage between splits is an error even if only one of them is used.
    tables = {key: corpus.read(key if key in files else name) for key, name in named.items()}
    shared = leakage(tables, rules)
    shared.check(data["allow_shared_speakers"])
    if "train" in tables and (tokenizer is None or "train" in wanted):
        tables["train"] = subset(tables["train"], data["hours"], data["subset_seed"], fetch=partial(fetch, corpus))
    if tokenizer is None:
        tokenizer = _fit(recipe, tables["train"], rules)
    model = build_model(recipe, tokenizer.size)
    model.features.eval()  # no dither in what is cached
    chosen = {key: _choose(key, tables[key], recipe, rules, tokenizer) for key in wanted if key in tables}
    fetch(corpus, [utterance for pairs, _ in chosen.values() for utterance, _ in pairs])  # an archive is read once
    splits = {
        key: _split(key, len(tables[key]), pairs, found, recipe, tokenizer, model, report, progress)
        for key, (pairs, found) in chosen.items()
    }
    return Prepared(splits, tokenizer, model, report, shared)


def _fit(recipe: dict[str, Any], utterances: list[Utterance], rules: Any) -> Any:
    """The tokenizer of the recipe, from the train split only."""
    section = recipe["text"]
    texts = [normalized(utterance.text, rules, section.get("map") or {}) for utterance in utterances]
    return fit_tokenizer(section["tokenizer"], texts, section.get("options") or {}, rules)


def _choose(
    key: str, table: list[Utterance], recipe: dict[str, Any], rules: Any, tokenizer: Any
) -> tuple[list[tuple[Utterance, str]], DataReport]:
    """The utterances of a split with their texts, up to `max_utterances`, and what was left out."""
    text, found = recipe["text"], DataReport()
    chosen = select_texts(table, rules, tokenizer, text["unknown"], text.get("map") or {}, found)
    limit = recipe["data"]["max_utterances"] if key == "train" else None
    return chosen[: int(limit)] if limit else chosen, found


def _split(
    key: str,
    total: int,
    chosen: list[tuple[Utterance, str]],
    found: DataReport,
    recipe: dict[str, Any],
    tokenizer: Any,
    model: CTCModel,
    report: DataReport,
    progress: bool,
) -> Split:
    """total: rows of the split's table; found: what `_choose` has left out."""
    data = recipe["data"]
    limit = data["max_utterances"] if key == "train" else None
    table = _table(key, [utterance for utterance, _ in chosen], recipe, model, found, progress)
    kept = _feasible({pair[0].id: pair for pair in chosen}, table, tokenizer, model, found, score=key == "test")
    report.counts += found.counts
    report.lines += found.lines
    found.check_limit(float(data["max_bad"]), min(total, limit or total))
    if not kept:
        raise DataError(
            f"split {data[key]!r} of {data['root']} has no usable utterance ({found.summary()})",
            fix="see data_report.jsonl for the reason of every clip",
            reason="empty_split",
        )
    rows, utterances, texts, labels = (list(column) for column in zip(*kept, strict=True))
    parts = (key, utterances, texts, labels, table, rows, split_hash(utterances))
    perturbation = build_perturbation(recipe)
    if isinstance(table, FeatureTable) or perturbation is None:
        return Split(*parts)
    allowed = [
        _allowed(table.counts[row], ids, perturbation.speeds, model) for row, ids in zip(rows, labels, strict=True)
    ]
    return AugmentedSplit(*parts, model.features, perturbation, allowed)


def _table(
    key: str, utterances: list[Utterance], recipe: dict[str, Any], model: CTCModel, found: DataReport, progress: bool
) -> FeatureTable | WaveformTable:
    """Features, or the waveforms of a train split whose waveforms are augmented."""
    data = recipe["data"]
    longest = LONGEST_TEST if key == "test" else float(data["max_seconds"])
    limits = Limits(longest, data["on_truncated"])
    folder = Path(data["cache"])
    if key == "train" and build_perturbation(recipe) is not None:
        return cached_waveforms(utterances, model.features, folder, found, limits=limits, label=key, progress=progress)
    options = {"features": recipe["features"], "sample_rate": data["sample_rate"]}
    return cached_features(
        utterances, model.features, options, folder, found, limits=limits, label=key, progress=progress
    )


def _allowed(samples: int, labels: list[int], speeds: Sequence[Fraction], model: CTCModel) -> int:
    """How many of the speeds, the slowest first, leave frames enough for the labels."""
    needed = required_frames(labels)
    return sum(model.num_frames(num_samples(samples, speed)) >= needed for speed in speeds)


def _feasible(
    chosen: dict[str, tuple[Utterance, str]],
    table: FeatureTable | WaveformTable,
    tokenizer: Any,
    model: CTCModel,
    report: DataReport,
    score: bool,
) -> list[tuple[int, Utterance, str, list[int]]]:
    """Rows whose encoder frames can carry their labels; the others are excluded with the numbers that say why.

    Where only the score counts they stay, and are noted.
    """
    kept = []
    for row, (identity, count) in enumerate(zip(table.ids, table.counts, strict=True)):
        utterance, text = chosen[identity]
        labels = tokenizer.encode(text)
        frames = count if isinstance(table, FeatureTable) else model.features.num_frames(count)
        available, needed = model.acoustic.encoder.num_frames(frames), required_frames(labels)
        if available < needed and not score:
            report.exclude(utterance, "too_short_for_ctc", frames=available, needed=needed, labels=len(labels))
        else:
            if available < needed:
                report.note("too_short_for_ctc", utterance, frames=available, needed=needed, labels=len(labels))
            kept.append((row, utterance, text, labels))
    return kept
