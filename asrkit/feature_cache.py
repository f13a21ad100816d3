"""Features computed once and kept in an Arrow file, float16, memory-mapped: an epoch reads frames, not mp3s.

The file is a plain Arrow stream (columns id, frames, features) that `datasets.Dataset.from_file` opens as well. Its
name is a hash of everything that made it (clips with size and time of change, options, code version): a stale file is
never used.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from asrkit.audio import read_audio
from asrkit.corpus import Utterance
from asrkit.errors import AudioError, StorageError
from asrkit.features import FeatureExtractor
from asrkit.selection import DataReport

VERSION = 1  # raise it when the same options give other features


class FeatureTable:
    """Features of the usable utterances of one split: `ids`, `frames` (N,) and, memory-mapped, `features(i) -> (T, F)`
    float16."""

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size = path, size
        self._source = pa.memory_map(str(path))
        table = pa.ipc.open_stream(self._source).read_all()
        self.ids: list[str] = table.column("id").to_pylist()
        self.frames: list[int] = table.column("frames").to_pylist()
        self._chunks = table.column("features").chunks
        self._starts = np.cumsum([0] + [len(chunk) for chunk in self._chunks])

    def __len__(self) -> int:
        return len(self.ids)

    def features(self, row: int) -> np.ndarray:
        """Row -> (T, F) float16, a view of the file."""
        chunk = int(np.searchsorted(self._starts, row, side="right")) - 1
        buffer = self._chunks[chunk][row - int(self._starts[chunk])].as_buffer()
        return np.frombuffer(buffer, dtype=np.float16).reshape(-1, self.size)


def cached_features(
    utterances: Sequence[Utterance],
    extractor: FeatureExtractor,
    options: dict[str, Any],
    folder: Path,
    report: DataReport,
    *,
    max_seconds: float,
    label: str,
    progress: bool = False,
) -> FeatureTable:
    """The table of these utterances, computed if no file with their key exists.

    Clips that cannot be used are excluded in `report` with their reason, each time, whether the file was there or not.
    """
    key = _key(utterances, options, max_seconds)
    path, excluded = folder / f"{label}-{key}.arrow", folder / f"{label}-{key}.excluded.json"
    if not (path.exists() and excluded.exists()):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write(path, excluded, utterances, extractor, max_seconds, label, progress)
        except OSError as error:
            raise StorageError(
                f"cannot write the feature cache to {folder} ({error.strerror or error})",
                fix="free some space, or choose another folder with --data.cache=",
                reason="cache",
            ) from error
    by_id = {utterance.id: utterance for utterance in utterances}
    for identity, reason, numbers in json.loads(excluded.read_text(encoding="utf-8")):
        report.exclude(by_id[identity], reason, **numbers)
    return FeatureTable(path, extractor.size)


def _key(utterances: Sequence[Utterance], options: dict[str, Any], max_seconds: float) -> str:
    digest = hashlib.sha256(json.dumps([VERSION, options, max_seconds], sort_keys=True).encode())
    for utterance in utterances:
        try:
            stat = os.stat(utterance.audio)
            state = (stat.st_size, stat.st_mtime_ns)
        except OSError:
            state = (-1, -1)
        digest.update(repr((utterance.id, str(utterance.audio), utterance.start, utterance.end, state)).encode())
    return digest.hexdigest()[:16]


Outcome = tuple[Utterance, np.ndarray | None, str, dict[str, Any]]


def extract(utterance: Utterance, extractor: FeatureExtractor, max_seconds: float) -> Outcome:
    """One utterance -> its features (T, F) float16, or the reason why there are none, with numbers."""
    try:
        audio = read_audio(
            utterance.audio,
            extractor.sample_rate,
            start=utterance.start,
            end=utterance.end,
            max_seconds=max_seconds + 0.001,  # one sample more than allowed tells a long clip from a fitting one
        )
    except AudioError as error:
        return utterance, None, error.reason or "not_audio", {"detail": error.what}
    if audio.seconds > max_seconds:
        return utterance, None, "too_long", {"max_seconds": max_seconds}
    samples = torch.from_numpy(audio.samples)
    with torch.inference_mode():
        frames, lengths = extractor(samples.unsqueeze(0), torch.tensor([len(samples)]))
    values = frames[0, : int(lengths[0])].to(torch.float16).numpy()
    if len(values) == 0:
        return utterance, None, "too_short", {"seconds": round(audio.seconds, 4)}
    if not np.isfinite(values).all():
        return utterance, None, "nonfinite", {"seconds": round(audio.seconds, 4)}
    return utterance, values, "", {}


def _write(
    path: Path,
    excluded_path: Path,
    utterances: Sequence[Utterance],
    extractor: FeatureExtractor,
    max_seconds: float,
    label: str,
    progress: bool,
) -> None:
    """Extract in threads (decoders and torch release the lock), write in order, rename when whole."""
    threads = min(os.cpu_count() or 1, 16)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    excluded: list[tuple[str, str, dict[str, Any]]] = []
    schema = pa.schema([("id", pa.string()), ("frames", pa.int32()), ("features", pa.large_binary())])
    bar = tqdm(total=len(utterances), desc=f"features {label}", unit="clip", disable=not progress, leave=False)
    work: Callable[[Utterance], Outcome] = lambda utterance: extract(utterance, extractor, max_seconds)  # noqa: E731
    try:
        with (
            ThreadPoolExecutor(threads) as pool,
            pa.OSFile(str(temporary), "wb") as sink,
            pa.ipc.new_stream(sink, schema) as writer,
            bar,
        ):
            for chunk in _chunks(utterances, 64):
                rows = []
                for utterance, values, reason, numbers in pool.map(work, chunk):
                    bar.update()
                    if values is None:
                        excluded.append((utterance.id, reason, numbers))
                    else:
                        rows.append((utterance.id, len(values), values.tobytes()))
                if rows:
                    writer.write(pa.record_batch([list(column) for column in zip(*rows, strict=True)], schema=schema))
        os.replace(temporary, path)
        excluded_path.write_text(json.dumps(excluded), encoding="utf-8")
    finally:
        temporary.unlink(missing_ok=True)


def _chunks(items: Sequence[Utterance], size: int) -> Iterable[Sequence[Utterance]]:
    return (items[start : start + size] for start in range(0, len(items), size))
