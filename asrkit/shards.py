"""Arrow shards: what preparation computes for each utterance, on disk once and memory-mapped by training.

A folder holds `shard-00000.arrow`, ... (plain Arrow streams, which `datasets.Dataset.from_file` opens as well), beside
each a `.json` with what was excluded or noted, and `manifest.json`, written last. A shard is a pure function of its
items: written under another name, synced, renamed, its `.json` after it. So a killed preparation goes on at the first
missing shard and ends with the same bytes, and two processes that fill one folder replace files by their equals.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from asrkit.disk import atomic_write, sync_folder

CLIPS_PER_SHARD = 1000
ROWS_PER_BATCH = 250  # a table touches a few pages of each batch when it is opened
MANIFEST = "manifest.json"
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Outcome:
    """One utterance: its values, or None and the reason why there are none; notes are (what, numbers)."""

    id: str
    values: np.ndarray | None
    reason: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)
    notes: tuple[tuple[str, dict[str, Any]], ...] = ()


@dataclass(frozen=True)
class Layout:
    """What a row holds: `values`, the name of the column, with `width` numbers of `dtype` in each of its `count`
    steps (`count` names that column)."""

    values: str
    count: str
    width: int
    dtype: str

    @property
    def schema(self) -> pa.Schema:
        """Arrow's names and types of the three columns."""
        return pa.schema([("id", pa.string()), (self.count, pa.int32()), (self.values, pa.large_binary())])


@dataclass(frozen=True)
class Origin:
    """Where a table lies, its `items` before exclusions, how many were `ready`, and the seconds that the rest took."""

    folder: Path
    items: int
    ready: int
    seconds: float


class ShardTable:
    """The rows of all shards: `ids` and `counts` (N,) in memory, `values(i)` memory-mapped."""

    def __init__(self, paths: Sequence[Path], layout: Layout, origin: Origin) -> None:
        self.layout, self.origin = layout, origin
        self.ids: list[str] = []
        self.counts: list[int] = []
        self._chunks: list[pa.Array] = []
        for path in paths:
            with pa.memory_map(str(path)) as source:
                table = pa.ipc.open_stream(source).read_all()
            self.ids += table.column("id").to_pylist()
            self.counts += table.column(layout.count).to_pylist()
            self._chunks += table.column(layout.values).chunks
        self._starts = np.cumsum([0] + [len(chunk) for chunk in self._chunks])

    def __len__(self) -> int:
        return len(self.ids)

    def values(self, row: int) -> np.ndarray:
        """Row -> (count, width), a view of the file."""
        chunk = int(np.searchsorted(self._starts, row, side="right")) - 1
        buffer = self._chunks[chunk][row - int(self._starts[chunk])].as_buffer()
        return np.frombuffer(buffer, dtype=self.layout.dtype).reshape(-1, self.layout.width)


def shard_starts(items: int) -> range:
    """Where the shards of so many items start."""
    return range(0, items, CLIPS_PER_SHARD)


def shard_path(folder: Path, index: int) -> Path:
    """The Arrow file of shard number `index`."""
    return folder / f"shard-{index:05d}.arrow"


def is_whole(path: Path) -> bool:
    """Whether this shard is there with all its bytes, and its `.json` with it."""
    try:
        return bool(json.loads(path.with_suffix(".json").read_bytes())["bytes"] == path.stat().st_size)
    except (OSError, ValueError, KeyError):
        return False


def write_shards(
    folder: Path,
    items: Sequence[Item],
    work: Callable[[Item], Outcome],
    layout: Layout,
    pool: Executor,
    facts: dict[str, Any],
    workers: int = 1,
    advance: Callable[[int], object] = lambda _: None,
) -> None:
    """Write the shards that are missing, and the manifest with `facts` last. `advance(n)` counts finished items.

    Raises OSError when the disk does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    starts = shard_starts(len(items))
    for index, start in enumerate(starts):
        path, part = shard_path(folder, index), items[start : start + starts.step]
        if is_whole(path):
            advance(len(part))
        else:
            _write_shard(path, _in_order(pool, work, part, 4 * workers), layout, advance)
    shards = [json.loads(shard_path(folder, i).with_suffix(".json").read_bytes()) for i in range(len(starts))]
    summary = [
        {"file": shard_path(folder, i).name, "rows": s["rows"], "bytes": s["bytes"]} for i, s in enumerate(shards)
    ]
    totals = {"items": len(items), "rows": sum(shard["rows"] for shard in shards)}
    atomic_write(folder / MANIFEST, json.dumps({**facts, **totals, "shards": summary}, indent=1) + "\n")


def read_sides(folder: Path, shards: int) -> Iterator[dict[str, Any]]:
    """The `.json` of each shard: `excluded` as [id, reason, numbers], `notes` as [id, what, numbers]."""
    for index in range(shards):
        yield json.loads(shard_path(folder, index).with_suffix(".json").read_bytes())


def _write_shard(path: Path, outcomes: Iterable[Outcome], layout: Layout, advance: Callable[[int], object]) -> None:
    temporary = path.with_name(f".tmp-{socket.gethostname()}-{os.getpid()}-{path.name}")
    excluded, notes, count = [], [], 0
    rows: list[tuple[str, int, bytes]] = []
    try:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_stream(sink, layout.schema) as writer:
            for outcome in outcomes:
                notes += [(outcome.id, what, numbers) for what, numbers in outcome.notes]
                if outcome.values is None:
                    excluded.append((outcome.id, outcome.reason, outcome.numbers))
                else:
                    rows.append((outcome.id, len(outcome.values), outcome.values.tobytes()))
                    count += 1
                if len(rows) == ROWS_PER_BATCH:
                    writer.write(_record_batch(rows, layout))
                    rows.clear()
                advance(1)
            if rows:
                writer.write(_record_batch(rows, layout))
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
            size = file.seek(0, os.SEEK_END)
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
    side = {"rows": count, "bytes": size, "excluded": excluded, "notes": notes}
    atomic_write(path.with_suffix(".json"), json.dumps(side, ensure_ascii=False) + "\n")


def _record_batch(rows: list[tuple[str, int, bytes]], layout: Layout) -> pa.RecordBatch:
    return pa.record_batch([list(column) for column in zip(*rows, strict=True)], schema=layout.schema)


def _in_order(pool: Executor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> Iterator[Result]:
    """Results in the order of the items; at most `ahead` of them wait, so memory does not grow with the shard."""
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _remove_leftovers(folder: Path) -> None:
    """Unfinished files of processes of this machine that are no more; those of others may still be written to."""
    for path in folder.glob(".tmp-*"):
        match = re.match(rf"\.tmp-(?:{re.escape(socket.gethostname())}-)?(\d+)-", path.name)
        if match is None:
            continue
        try:
            os.kill(int(match[1]), 0)
        except ProcessLookupError:
            with contextlib.suppress(OSError):
                path.unlink()
        except OSError:  # it lives, and is somebody else's
            continue
