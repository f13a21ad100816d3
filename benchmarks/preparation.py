"""Preparation in times real time, beside the decoder alone; then the data loader's share of an epoch.

    python benchmarks/preparation.py FOLDER [--repeats 5] [--clips 500] [--recipe recipes/demo.yaml] [--width 128]

FOLDER holds clips (any *.mp3 below it). Part one works on all cores that this process may use: libsndfile alone, then
`cached_features` (decode, resample, check, log-mel, Arrow shards, fsync) in an empty folder, taking turns; medians of
wall time, and CPU time, which other work on the machine disturbs less. Part two makes batches of the cached features
and trains the recipe's model on them (targets are drawn at 12 labels a second), on one thread: the time to make a
batch against the time of forward, backward and update; then the same for waveforms augmented on the fly.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch.utils.data import DataLoader

from asrkit.audio.perturb import build_perturbation
from asrkit.batching import BatchSampler, collate
from asrkit.corpus import Utterance
from asrkit.corpus.selection import DataReport
from asrkit.ctc import ctc_loss
from asrkit.model import build_features, build_model
from asrkit.preparation.clips import Limits
from asrkit.preparation.feature_cache import cached_features, cached_waveforms
from asrkit.preparation.splits import AugmentedSplit, Split
from asrkit.recipe import load_recipe
from asrkit.recipe.schema import SCHEMA

AUGMENT = [("augment.speed", "[0.9, 1.0, 1.1]"), ("augment.noise.share", "0.5"), ("augment.gain_db", "[-6, 6]")]
LABELS, LABELS_PER_SECOND = 30, 12


def taken(job: Callable[[], Any]) -> tuple[float, float]:
    """Seconds on the wall and of CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    job()
    return time.perf_counter() - wall, time.process_time() - cpu


def decode(paths: list[Path], workers: int) -> float:
    """libsndfile alone; returns the seconds of audio."""

    def one(path: Path) -> float:
        samples, rate = soundfile.read(path, dtype="float32")
        return len(samples) / rate

    with ThreadPoolExecutor(workers) as pool:
        return sum(pool.map(one, paths))


def preparation(utterances: list[Utterance], recipe: dict[str, Any], repeats: int) -> None:
    """Part one."""
    paths = [utterance.audio for utterance in utterances]
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    seconds, extractor = decode(paths, workers), build_features(recipe)
    times: dict[str, list[tuple[float, float]]] = {"libsndfile alone": [], "cached features": []}
    for _ in range(repeats):
        times["libsndfile alone"].append(taken(lambda: decode(paths, workers)))
        with tempfile.TemporaryDirectory() as folder:
            job = lambda folder=folder: features(utterances, extractor, Path(folder))  # noqa: E731
            times["cached features"].append(taken(job))
    print(f"{len(paths)} clips, {seconds / 60:.1f} min, {workers} threads, medians of {repeats}; x real time:")
    for name, pairs in times.items():
        wall, cpu = (statistics.median(values) for values in zip(*pairs, strict=True))
        best = min(pair[0] for pair in pairs)
        print(
            f"  {name:<17} {seconds / wall:6,.0f} on the wall (best {seconds / best:,.0f}), "
            f"{seconds / cpu:6,.0f} per CPU second, {cpu / wall:.2f} cores used"
        )
    wall, cpu = ([statistics.median(p[i] for p in pairs) for pairs in times.values()] for i in (0, 1))
    print(f"  all of it / decoder: {wall[1] / wall[0]:.2f} on the wall, {cpu[1] / cpu[0]:.2f} in CPU time")


def features(utterances: list[Utterance], extractor: Any, folder: Path) -> Any:
    """The cache of these utterances."""
    return cached_features(utterances, extractor, {}, folder, DataReport(), limits=Limits(20.0), label="bench")


def loader_share(name: str, split: Split, recipe: dict[str, Any]) -> None:
    """Part two: one epoch, batch by batch."""
    torch.set_num_threads(1)
    model = build_model(recipe, LABELS)
    acoustic = model.acoustic.train()
    optimizer = torch.optim.AdamW(acoustic.parameters(), lr=1e-4)
    split.set_epoch(1)
    sampler = BatchSampler(split.frames, recipe["training"]["batch_frames"], None)
    batches = iter(DataLoader(split, batch_sampler=sampler, collate_fn=collate))
    loading = training = 0.0
    for _ in range(len(sampler)):
        started = time.thread_time()
        batch = next(batches)
        middle = time.thread_time()
        log_probs, lengths = acoustic(batch.features, batch.lengths)
        ctc_loss(log_probs, lengths, batch.targets, batch.target_lengths, batch.ids).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loading, training = loading + middle - started, training + time.thread_time() - middle
    hours = sum(split.frames) / 360_000
    print(
        f"  {name:<19} loader {loading / (loading + training):6.2%} of the epoch, "
        f"{3600 * hours / loading:8,.0f} x real time; training {3600 * hours / training:,.0f} x"
    )


def splits(utterances: list[Utterance], recipe: dict[str, Any], augmented: dict[str, Any], folder: Path) -> list[Split]:
    """The cached split, and the one whose waveforms are augmented."""
    extractor, report, limits = build_features(recipe).eval(), DataReport(), Limits(20.0)
    table = cached_features(utterances, extractor, {}, folder, report, limits=limits, label="train")
    waveforms = cached_waveforms(utterances, extractor, folder, report, limits=limits, label="train")
    perturbation = build_perturbation(augmented)
    assert perturbation is not None
    random, by_id = np.random.default_rng(1), {utterance.id: utterance for utterance in utterances}
    used = [by_id[name] for name in table.ids]
    labels = [random.integers(1, LABELS, max(1, LABELS_PER_SECOND * frames // 100)).tolist() for frames in table.frames]
    common: tuple[Any, ...] = ("train", used, [""] * len(used), labels)
    rows = list(range(len(used)))
    return [
        Split(*common, table, rows, ""),
        AugmentedSplit(*common, waveforms, rows, "", extractor, perturbation, [2] * len(used)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--recipe", type=Path, default=Path(__file__).parents[1] / "recipes" / "demo.yaml")
    parser.add_argument("--width", default="128")
    args = parser.parse_args()
    paths = sorted(args.folder.rglob("*.mp3"))[: args.clips]
    utterances = [Utterance(str(i), path, "", "", "train") for i, path in enumerate(paths)]
    recipe = load_recipe(args.recipe, [("width", args.width)], known=SCHEMA)
    preparation(utterances, recipe, args.repeats)
    print(f"{args.recipe.stem}, width {args.width}, one thread:")
    augmented = load_recipe(args.recipe, [("width", args.width), *AUGMENT], known=SCHEMA)
    with tempfile.TemporaryDirectory() as folder:
        cached, perturbed = splits(utterances, recipe, augmented, Path(folder))
        loader_share("cached features", cached, recipe)
        loader_share("augmented waveforms", perturbed, recipe)


if __name__ == "__main__":
    main()
