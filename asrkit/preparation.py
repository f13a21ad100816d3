"""From a resolved recipe to what training reads: corpus -> texts -> labels -> cached features -> feasible utterances.

Every exclusion is a line in the data report with its reason and numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from asrkit import registry
from asrkit.corpus import Utterance, open_corpus
from asrkit.ctc import required_frames
from asrkit.errors import DataError
from asrkit.feature_cache import FeatureTable, cached_features
from asrkit.model import CTCModel, build_model
from asrkit.selection import DataReport, Leakage, leakage, normalized, select_texts, split_hash
from asrkit.text import fit_tokenizer

TABLES = (".tsv", ".csv", ".jsonl")


@dataclass(frozen=True)
class Split(Dataset[tuple[int, str, np.ndarray, Sequence[int]]]):
    """The usable utterances of one split: item i is (i, id, features (T, F) float16, labels)."""

    name: str
    utterances: list[Utterance]
    texts: list[str]
    labels: list[list[int]]
    table: FeatureTable
    rows: list[int]
    hash: str

    @property
    def frames(self) -> list[int]:
        """Feature frames of every utterance (N,)."""
        return [self.table.frames[row] for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, str, np.ndarray, Sequence[int]]:
        return index, self.utterances[index].id, self.table.features(self.rows[index]), self.labels[index]


@dataclass(frozen=True)
class Prepared:
    """What one run needs: the splits, the tokenizer, the untrained model, and the record of what was left out."""

    splits: dict[str, Split]
    tokenizer: Any
    model: CTCModel
    report: DataReport
    leakage: Leakage


def prepare(
    recipe: dict[str, Any], wanted: Sequence[str] = ("train", "dev"), *, tokenizer: Any = None, progress: bool = False
) -> Prepared:
    """Read the splits of `data:` named in `wanted` (keys: train, dev, test), fit the tokenizer on train, build the
    model.

    A tokenizer that is given (a trained model's) is used as it is. Raises DataError (exit 3) when a split has no usable
    utterance, when more than `data.max_bad` of it was excluded, and when splits share speakers or audio.
    """
    data = recipe["data"]
    report = DataReport()
    rules = registry.load("text", recipe["text"]["rules"])()
    named = {key: data[key] for key in ("train", "dev", "test") if data[key]}
    files = {key: name for key, name in named.items() if Path(name).suffix in TABLES}
    corpus = open_corpus(_root(data["root"]), data["format"], column=data["column"], report=report, **files)
    # All tables are read, cheap as they are: leakage between splits is an error even if only one of them is used.
    tables = {key: corpus.read(key if key in files else name) for key, name in named.items()}
    shared = leakage(tables, rules)
    shared.check(data["allow_shared_speakers"])
    if tokenizer is None:
        tokenizer = _fit(recipe, tables["train"], rules)
    model = build_model(recipe, tokenizer.size)
    splits = {
        key: _split(key, tables[key], recipe, rules, tokenizer, model, report, progress)
        for key in wanted
        if key in tables
    }
    return Prepared(splits, tokenizer, model, report, shared)


def _root(root: str | None) -> str:
    if root is None:
        raise DataError(
            "data.root is not set: where is the speech?",
            possible="the folder of a Common Voice language (clips/, train.tsv, ...), or of a manifest",
            fix="--data.root=.../cv-corpus-.../es, or make a synthetic corpus with `asrkit data synth`",
            reason="missing_corpus",
        )
    return root


def _fit(recipe: dict[str, Any], utterances: list[Utterance], rules: Any) -> Any:
    """The tokenizer of the recipe, from the train split only."""
    section = recipe["text"]
    texts = [normalized(utterance.text, rules, section.get("map") or {}) for utterance in utterances]
    return fit_tokenizer(section["tokenizer"], texts, section.get("options") or {}, rules)


def _split(
    key: str,
    table: list[Utterance],
    recipe: dict[str, Any],
    rules: Any,
    tokenizer: Any,
    model: CTCModel,
    report: DataReport,
    progress: bool,
) -> Split:
    data, text = recipe["data"], recipe["text"]
    limit = data["max_utterances"] if key == "train" else None
    found = DataReport()
    chosen = select_texts(table, rules, tokenizer, text["unknown"], text.get("map") or {}, found)
    if limit:
        chosen = chosen[: int(limit)]
    features = cached_features(
        [utterance for utterance, _ in chosen],
        model.features,
        {"features": recipe["features"], "sample_rate": data["sample_rate"]},
        Path(data["cache"]),
        found,
        max_seconds=float(data["max_seconds"]) if key != "test" else 1e4,
        label=key,
        progress=progress,
    )
    kept = _feasible({pair[0].id: pair for pair in chosen}, features, tokenizer, model, found)
    report.counts += found.counts
    report.lines += found.lines
    found.check_limit(float(data["max_bad"]), len(table))
    if not kept:
        raise DataError(
            f"split {data[key]!r} of {data['root']} has no usable utterance ({found.summary()})",
            fix="see data_report.jsonl for the reason of every clip",
            reason="empty_split",
        )
    rows, utterances, texts, labels = (list(column) for column in zip(*kept, strict=True))
    return Split(key, utterances, texts, labels, features, rows, split_hash(utterances))


def _feasible(
    chosen: dict[str, tuple[Utterance, str]],
    features: FeatureTable,
    tokenizer: Any,
    model: CTCModel,
    report: DataReport,
) -> list[tuple[int, Utterance, str, list[int]]]:
    """Rows whose encoder frames can carry their labels; the others are excluded with the numbers that say why."""
    kept = []
    for row, (identity, frames) in enumerate(zip(features.ids, features.frames, strict=True)):
        utterance, text = chosen[identity]
        labels = tokenizer.encode(text)
        available, needed = model.acoustic.encoder.num_frames(frames), required_frames(labels)
        if available < needed:
            report.exclude(utterance, "too_short_for_ctc", frames=available, needed=needed, labels=len(labels))
        else:
            kept.append((row, utterance, text, labels))
    return kept
