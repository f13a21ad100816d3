"""From a resolved recipe to what training reads: corpus -> texts -> labels -> cached features -> feasible utterances.

Every exclusion is a line in the data report with its reason and numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from asrkit import registry
from asrkit.audio import LONGEST
from asrkit.audio.perturb import build_perturbation, num_samples
from asrkit.corpus import Corpus, Utterance, fetch, open_data, split_names
from asrkit.corpus.same_audio import same_audio
from asrkit.corpus.selection import DataReport, Leakage, leakage, normalized, select_texts, split_hash
from asrkit.corpus.subset import subset
from asrkit.ctc import required_frames
from asrkit.defects import defects_of, features_section
from asrkit.errors import DataError
from asrkit.model import CTCModel, build_model
from asrkit.preparation.clips import Limits, waveform_of
from asrkit.preparation.feature_cache import FeatureTable, WaveformTable, cached_features, cached_waveforms
from asrkit.preparation.splits import AugmentedSplit, Split
from asrkit.text import fit_tokenizer

__all__ = ["Prepared", "Split", "prepare"]

LONGEST_TEST = LONGEST  # seconds, which bound memory: what is scored must not depend on what training takes


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
    DataError (exit 3) when a split has no usable utterance, when more than `data.max_bad` of it was excluded (by the
    reader too, but not by choice), and when splits share speakers or audio (by file; where train is wanted, by the
    bytes of the files too). Where train is not wanted, it need not be there, and no other split that is not wanted.
    """
    data = recipe["data"]
    report = DataReport() if report is None else report
    rules = registry.load("text", recipe["text"]["rules"])()
    corpus = open_data(data, report, progress)
    # All tables are read, cheap as they are: leakage between splits is an error even if only one of them is used.
    names = split_names(data)
    needed = set(wanted) | ({"train"} if tokenizer is None else set())
    tables = _tables(corpus, names, set(names) if "train" in needed else needed, report)
    lost = {key: (report.unusable(names[key]), len(table)) for key, table in tables.items()}
    shared = leakage(tables, rules)
    shared.check(data["allow_shared_speakers"])
    if "train" in tables and (tokenizer is None or "train" in wanted):
        tables["train"] = subset(tables["train"], data["hours"], data["subset_seed"], fetch=partial(fetch, corpus))
    if tokenizer is None:
        tokenizer = _fit(recipe, tables["train"], rules)
    model = build_model(recipe, tokenizer.size)
    model.features.eval()  # no dither in what is cached
    if "train" in wanted and data["max_utterances"]:
        tables["train"] = _beginning(tables["train"], recipe, rules, tokenizer)
    chosen = {key: _choose(tables[key], recipe, rules, tokenizer) for key in wanted if key in tables}
    fetch(corpus, [utterance for pairs, _ in chosen.values() for utterance, _ in pairs])  # an archive is read once
    if "train" in wanted:
        used = {key: [utterance for utterance, _ in pairs] for key, (pairs, _) in chosen.items()}
        _refuse_same_audio({key: used.get(key, table) for key, table in tables.items()}, data, model, shared)
    splits = {
        key: _split(key, _Judge(len(tables[key]), *lost[key]), pairs, found, recipe, tokenizer, model, report, progress)
        for key, (pairs, found) in chosen.items()
    }
    if data["hours"] and "train" in splits:
        hours = sum(splits["train"].frames) * model.features.frame_seconds / 3600
        report.note("hours", asked=data["hours"], used=round(hours, 4), clips=len(splits["train"]))
    return Prepared(splits, tokenizer, model, report, shared)


def _refuse_same_audio(
    splits: dict[str, list[Utterance]], data: dict[str, Any], model: CTCModel, shared: Leakage
) -> None:
    """Raise DataError (`shared_audio`) where a recording lies in two splits under two names. Clips that nothing has
    fetched from their archive yet are not compared."""
    limits = Limits(float(data["max_seconds"]), data["on_truncated"])

    def usable(utterance: Utterance) -> bool:
        return waveform_of(utterance, model.features, limits).values is not None

    shared.audio.update(same_audio(splits, Path(data["cache"]), usable))
    shared.check(data["allow_shared_speakers"])


def _fit(recipe: dict[str, Any], utterances: list[Utterance], rules: Any) -> Any:
    """The tokenizer of the recipe, from the train split only."""
    section = recipe["text"]
    texts = [normalized(utterance.text, rules, section.get("map") or {}) for utterance in utterances]
    return fit_tokenizer(section["tokenizer"], texts, section.get("options") or {}, rules)


def _tables(corpus: Corpus, names: dict[str, str], needed: set[str], report: DataReport) -> dict[str, list[Utterance]]:
    """The tables of all splits, of those that are not needed as far as they are there."""
    tables = {}
    for key, name in names.items():
        try:
            tables[key] = corpus.read(name)
        except DataError as error:
            if key in needed or error.reason not in ("unknown_split", "no_splits"):
                raise
            report.note("split_not_there", split=name)
    return tables


def _beginning(table: list[Utterance], recipe: dict[str, Any], rules: Any, tokenizer: Any) -> list[Utterance]:
    """The table up to the row of the last utterance that `max_utterances` allows: no later row is looked at, so that
    nothing of it is reported, counted, or an error."""
    limit, mapping = int(recipe["data"]["max_utterances"]), recipe["text"].get("map") or {}
    size = limit
    while True:
        usable = select_texts(table[:size], rules, tokenizer, "drop", mapping, DataReport())
        if len(usable) >= limit:
            last = usable[limit - 1][0].id
            return table[: 1 + next(row for row, utterance in enumerate(table) if utterance.id == last)]
        if size >= len(table):
            return table
        size *= 2


def _choose(
    table: list[Utterance], recipe: dict[str, Any], rules: Any, tokenizer: Any
) -> tuple[list[tuple[Utterance, str]], DataReport]:
    """The utterances of a split with their texts, and what was left out."""
    text, found = recipe["text"], DataReport()
    return select_texts(table, rules, tokenizer, text["unknown"], text.get("map") or {}, found), found


@dataclass(frozen=True)
class _Judge:
    """Whether too much of a split is unusable. rows: those that were looked at; of all, the reader has kept `total`
    and lost `lost`, which count in proportion where `data.hours` or `max_utterances` took a part."""

    rows: int
    lost: Counter[str]
    total: int

    def check(self, found: DataReport, max_bad: float) -> None:
        """Raise DataError (`too_many_excluded`)."""
        lost = round(self.lost.total() * self.rows / self.total) if self.total else 0
        bad = DataReport()
        bad.counts = found.counts + self.lost
        bad.check_limit(max_bad, self.rows + lost, found.unusable_total() + lost)


def _split(
    key: str,
    judge: _Judge,
    chosen: list[tuple[Utterance, str]],
    found: DataReport,
    recipe: dict[str, Any],
    tokenizer: Any,
    model: CTCModel,
    report: DataReport,
    progress: bool,
) -> Split:
    """found: what `_choose` has left out."""
    data = recipe["data"]
    table = _table(key, [utterance for utterance, _ in chosen], recipe, model, found, progress)
    keep = key == "test" or "zero_infinity" in defects_of(recipe)  # whose users train on what cannot be aligned
    kept = _feasible({pair[0].id: pair for pair in chosen}, table, tokenizer, model, found, keep)
    report.counts += found.counts
    report.lines += found.lines
    judge.check(found, float(data["max_bad"]))
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
    options = {"features": features_section(recipe), "sample_rate": data["sample_rate"]}
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
    keep: bool,
) -> list[tuple[int, Utterance, str, list[int]]]:
    """Rows whose encoder frames can carry their labels; the others are excluded with the numbers that say why.

    With `keep` they stay, and are noted.
    """
    kept = []
    for row, (identity, count) in enumerate(zip(table.ids, table.counts, strict=True)):
        utterance, text = chosen[identity]
        labels = tokenizer.encode(text)
        frames = count if isinstance(table, FeatureTable) else model.features.num_frames(count)
        available, needed = model.acoustic.encoder.num_frames(frames), required_frames(labels)
        if available < needed and not keep:
            report.exclude(utterance, "too_short_for_ctc", frames=available, needed=needed, labels=len(labels))
        else:
            if available < needed:
                report.note("too_short_for_ctc", utterance, frames=available, needed=needed, labels=len(labels))
            kept.append((row, utterance, text, labels))
    return kept
