"""Features (or waveforms) computed once and kept in Arrow shards, memory-mapped: an epoch reads frames, not mp3s.

The folder of a cache is named by a hash of everything that made it (utterances with size and time of change of their
files, options, code): a stale one is never used. See `asrkit.preparation.shards` for what lies in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from asrkit import audio
from asrkit.audio import soundfile_reader
from asrkit.corpus import Utterance
from asrkit.corpus.selection import DataReport
from asrkit.corpus.subset import clip_seconds
from asrkit.disk import disk_full, free_bytes, storage_error
from asrkit.features import FeatureExtractor, formulas
from asrkit.preparation import clips, shards
from asrkit.preparation.clips import Limits, features_of, waveform_of
from asrkit.preparation.shards import Layout, Origin, Outcome, ShardTable
from asrkit.threads import one_torch_thread

SPARE = 0.8  # of the disk that is needed by estimate: with less, nothing is begun
LOOKED_AT = 32  # headers of clips whose length nobody claims, for that estimate
logger = logging.getLogger(__name__)
VERSION = 3  # raise it when what a cache holds changes and no file of `_code` does


class FeatureTable(ShardTable):
    """Features of the usable utterances of one split: `ids`, `frames` (N,) and, memory-mapped, `features(i) -> (T, F)`
    float16."""

    @property
    def frames(self) -> list[int]:
        """Frames of every row (N,)."""
        return self.counts

    def features(self, row: int) -> np.ndarray:
        """Row -> (T, F) float16, a view of the file."""
        return self.values(row)


class WaveformTable(ShardTable):
    """Waveforms of the usable utterances of one split: `ids`, `counts` (N,) in samples and `waveform(i) -> (S,)`."""

    def waveform(self, row: int) -> np.ndarray:
        """Row -> (S,) float32, full scale 1."""
        return self.values(row)[:, 0].astype(np.float32) / clips.FULL_SCALE


def cached_features(
    utterances: Sequence[Utterance],
    extractor: FeatureExtractor,
    options: dict[str, Any],
    folder: Path,
    report: DataReport,
    *,
    limits: Limits,
    label: str,
    progress: bool = False,
) -> FeatureTable:
    """The table of these utterances; what no shard with their key holds is computed now.

    Clips that cannot be used are excluded in `report` with their reason, each time, whether the shards were there or
    not. The disk that is needed is estimated first. Raises StorageError where there is clearly less (`disk_full`),
    where the cache cannot be written, and where a clip that is there cannot be read (`unreadable`).
    """
    layout = Layout("features", "frames", extractor.size, "<f2")
    work = partial(features_of, extractor=extractor, limits=limits)
    identity = [options, _code(extractor)]
    rate = extractor.num_frames(60 * extractor.sample_rate) / 60
    return FeatureTable(*_cached(utterances, work, layout, rate, identity, folder, report, limits, label, progress))


def cached_waveforms(
    utterances: Sequence[Utterance],
    extractor: FeatureExtractor,
    folder: Path,
    report: DataReport,
    *,
    limits: Limits,
    label: str,
    progress: bool = False,
) -> WaveformTable:
    """The same for waveforms at the extractor's sample rate; of the extractor, only its rate and lengths count."""
    layout = Layout("waveform", "samples", 1, "<i2")
    work = partial(waveform_of, extractor=extractor, limits=limits)
    identity = [extractor.sample_rate, _shortest(extractor), _code(None)]
    label += "-waveforms"
    rate = extractor.sample_rate
    return WaveformTable(*_cached(utterances, work, layout, rate, identity, folder, report, limits, label, progress))


def siblings(folder: Path) -> list[tuple[Path, int]]:
    """(folder, bytes) of other caches of this split beside its own: made before something changed, or by other recipes.

    None is ever removed by itself: another recipe may still use it.
    """
    label = folder.name.rpartition("-")[0]
    found = []
    for path in sorted(folder.parent.glob(f"{label}-*")):
        if path != folder and path.is_dir() and re.fullmatch(re.escape(label) + "-[0-9a-f]{16}", path.name):
            found.append((path, sum(file.stat().st_size for file in path.iterdir() if file.is_file())))
    return found


def _cached(
    utterances: Sequence[Utterance],
    work: Callable[[Utterance], Outcome],
    layout: Layout,
    rate: float,
    identity: list[Any],
    folder: Path,
    report: DataReport,
    limits: Limits,
    label: str,
    progress: bool,
) -> tuple[list[Path], Layout, Origin]:
    """rate: steps of `layout` in a second."""
    key = _key(utterances, [VERSION, layout.__dict__, limits.__dict__, identity])
    folder = folder / f"{label}-{key}"
    starts = shards.shard_starts(len(utterances))
    paths = [shards.shard_path(folder, index) for index in range(len(starts))]
    missing: list[Utterance] = []
    for start, whole in zip(starts, _whole(paths, label, progress), strict=True):
        missing += [] if whole else utterances[start : start + starts.step]
    ready = len(utterances) - len(missing)
    started = time.monotonic()
    _announce(missing, rate * layout.width * np.dtype(layout.dtype).itemsize, folder, limits)
    if missing or not (folder / shards.MANIFEST).is_file():
        try:
            with _bar(len(utterances), f"prepare {label}", progress) as bar, _threads() as (pool, workers):
                shards.write_shards(folder, utterances, work, layout, pool, {"key": key}, workers, bar.update)
        except OSError as error:
            raise storage_error(error, folder) from error
    by_id = {utterance.id: utterance for utterance in utterances}
    for side in shards.read_sides(folder, len(paths)):
        for name, reason, numbers in side["excluded"]:
            report.exclude(by_id[name], reason, **numbers)
        for name, what, numbers in side["notes"]:
            report.note(what, by_id[name], **numbers)
    return paths, layout, Origin(folder, len(utterances), ready, time.monotonic() - started)


def _whole(paths: Sequence[Path], label: str, progress: bool) -> list[bool]:
    """Which shards hold the bytes that were written: all are read, in threads (sha256 lets others run)."""
    with _bar(len(paths), f"verify {label}", progress, "shard") as bar, ThreadPoolExecutor() as pool:
        found = []
        for whole in pool.map(shards.is_whole, paths):
            found.append(whole)
            bar.update()
        return found


def _announce(missing: Sequence[Utterance], bytes_per_second: float, folder: Path, limits: Limits) -> None:
    """Log the disk that these clips will need, by claimed lengths, else by the headers of some. Raises StorageError."""
    if not missing:
        return
    claims = [_claimed_seconds(utterance) for utterance in missing]
    unknown = [utterance for utterance, claim in zip(missing, claims, strict=True) if claim is None]
    looked_at = [clip_seconds(utterance) for utterance in unknown[:: -(-len(unknown) // LOOKED_AT) or 1]]
    seconds = sum(claim for claim in claims if claim is not None and claim <= limits.max_seconds)
    seconds += sum(s for s in looked_at if s <= limits.max_seconds) / max(len(looked_at), 1) * len(unknown)
    need, free = int(seconds * bytes_per_second), free_bytes(folder)
    logger.info("%d clips into %s: about %.1f MB of disk, %.1f MB free", len(missing), folder, need / 1e6, free / 1e6)
    if free < SPARE * need:
        raise disk_full(folder, need)


def _claimed_seconds(utterance: Utterance) -> float | None:
    if utterance.seconds is None and utterance.end is not None:
        return utterance.end - utterance.start
    return utterance.seconds


@contextlib.contextmanager
def _threads() -> Iterator[tuple[ThreadPoolExecutor, int]]:
    """As many threads as cores, each with one torch thread.

    Threads because libsndfile and torch let others run while they work: a tenth of a clip's time is Python. Forked
    processes hang once torch has run, spawned ones take seconds to start and know no plugin of `--plugin`.
    """
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    with one_torch_thread(), pool:
        yield pool, workers


@contextlib.contextmanager
def _bar(total: int, label: str, progress: bool, unit: str = "clip") -> Iterator[tqdm[Any]]:
    """A bar on a copy of stderr: while decoders run, what goes to stderr itself is held back (`asrkit.audio`)."""
    if not progress:
        yield tqdm(disable=True)
        return
    try:
        stream = os.fdopen(os.dup(sys.stderr.fileno()), "w")
    except (OSError, ValueError):  # a notebook's stderr is no file
        stream = sys.stderr  # type: ignore[assignment]
    with tqdm(total=total, desc=label, unit=unit, file=stream, leave=False, dynamic_ncols=True) as bar:
        yield bar
    if stream is not sys.stderr:
        stream.close()


def _key(utterances: Sequence[Utterance], identity: list[Any]) -> str:
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    for u in utterances:
        try:
            stat = os.stat(u.audio)
            state = (stat.st_size, stat.st_mtime_ns)
        except OSError:
            state = (-1, -1)
        digest.update(repr((u.id, str(u.audio), u.start, u.end, u.seconds, state)).encode())
    return digest.hexdigest()[:16]


def _code(extractor: FeatureExtractor | None) -> str:
    """Hash of the source of everything between a file and its features, the decoder's version included."""
    import soundfile

    parts: list[Any] = [audio, soundfile_reader, clips, formulas]
    if extractor is not None:
        parts += [cls for module in extractor.modules() for cls in type(module).__mro__ if _is_own(cls)]
    texts = [soundfile.__libsndfile_version__, torch.__version__, metadata.version("torchaudio")]
    for part in dict.fromkeys(sys.modules.get(getattr(part, "__module__", ""), part) for part in parts):
        try:
            texts.append(inspect.getsource(part))
        except (OSError, TypeError):  # typed into a notebook or a console
            texts.append(repr(part))
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _is_own(cls: type) -> bool:
    return cls.__module__.partition(".")[0] not in ("builtins", "torch")


def _shortest(extractor: FeatureExtractor) -> int:
    """The fewest samples that make a frame: what `too_short` is judged by."""
    low, high = 0, 1
    while extractor.num_frames(high) == 0:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if extractor.num_frames(middle) else (middle, high)
    return high
