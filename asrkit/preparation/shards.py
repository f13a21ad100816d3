"""Arrow shards: what preparation computes for each utterance, on disk once and memory-mapped by training.

A folder holds `shard-00000.arrow`, ... (plain Arrow streams, which `datasets.Dataset.from_file` opens as well), beside
each a `.json` with what was excluded or noted and with its sha256, and `manifest.json`, written last. A shard is a pure
function of its items: written under another name, synced, renamed, its `.json` after it. So a killed preparation goes
on at the first missing shard and ends with the same bytes, and two processes that fill one folder replace files by
their equals. A shard whose bytes are not those that were written is never used, but made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import pyarrow as pa

from asrkit.disk import atomic_write, remove_leftovers, sync_folder, temporary_name

CLIPS_PER_SHARD = 1000
ROWS_PER_BATCH = 250  # a table touches a few pages of each batch when it is opened
BATCH_BYTES = 1 << 26  # and no more than about so many
HELD_BYTES = 1 << 28  # of results that wait for an earlier one
MANIFEST = "manifest.json"
logger = logging.getLogger(__name__)
_verified: set[tuple[str, int, int, int, int]] = set()  # the files whose bytes this process has compared
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
    """Whether this shard is there with the very bytes that were written, and its `.json` with it."""
    return _damage(path) is None


def _damage(path: Path) -> str | None:
    """What is wrong with a shard in words, "" if it (or its `.json`) is not there, None if nothing is.

    All bytes are read, once in a process as long as the file does not change.
    """
    side = path.with_suffix(".json")
    try:
        facts = json.loads(side.read_bytes())
        if facts.pop("check") != _check(facts):
            return f"{side.name} is not as it was written"
        found = path.stat()
        if found.st_size != facts["bytes"]:
            return f"{found.st_size} bytes instead of {facts['bytes']}"
        state = (str(path), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        if state not in _verified:
            with path.open("rb", buffering=0) as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != facts["sha256"]:
                    return "its bytes are not those that were written"
            _verified.add(state)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return error.strerror or str(error)
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{side.name} cannot be read"
    return None


def _check(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


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
    remove_leftovers(folder)
    starts = shard_starts(len(items))
    for index, start in enumerate(starts):
        path, part = shard_path(folder, index), items[start : start + starts.step]
        damage = _damage(path)
        if damage is None:
            advance(len(part))
            continue
        if damage:
            logger.warning("%s is damaged (%s) and is made again", path, damage)
        _write_shard(path, _in_order(pool, work, part, 4 * workers, _bytes), layout, advance)
    shards = [json.loads(shard_path(folder, i).with_suffix(".json").read_bytes()) for i in range(len(starts))]
    summary = [
        {"file": shard_path(folder, i).name} | {key: s[key] for key in ("rows", "bytes", "sha256")}
        for i, s in enumerate(shards)
    ]
    totals = {"items": len(items), "rows": sum(shard["rows"] for shard in shards)}
    atomic_write(folder / MANIFEST, json.dumps({**facts, **totals, "shards": summary}, indent=1) + "\n")


def read_sides(folder: Path, shards: int) -> Iterator[dict[str, Any]]:
    """The `.json` of each shard: `excluded` as [id, reason, numbers], `notes` as [id, what, numbers]."""
    for index in range(shards):
        yield json.loads(shard_path(folder, index).with_suffix(".json").read_bytes())


def _write_shard(path: Path, outcomes: Iterable[Outcome], layout: Layout, advance: Callable[[int], object]) -> None:
    temporary = path.with_name(temporary_name(path.name))
    excluded, notes, count, held = [], [], 0, 0
    rows: list[tuple[str, int, bytes]] = []
    try:
        with temporary.open("wb", buffering=0) as file:
            sink = _Hashing(file)
            writer = pa.ipc.new_stream(sink, layout.schema)
            for outcome in outcomes:
                notes += [(outcome.id, what, numbers) for what, numbers in outcome.notes]
                if outcome.values is None:
                    excluded.append((outcome.id, outcome.reason, outcome.numbers))
                else:
                    rows.append((outcome.id, len(outcome.values), outcome.values.tobytes()))
                    count, held = count + 1, held + outcome.values.nbytes
                if len(rows) == ROWS_PER_BATCH or held >= BATCH_BYTES:
                    writer.write(_record_batch(rows, layout))
                    rows.clear()
                    held = 0
                advance(1)
            if rows:
                writer.write(_record_batch(rows, layout))
            writer.close()
            os.fsync(file.fileno())
            size = file.tell()
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
    side = {"rows": count, "bytes": size, "sha256": sink.digest.hexdigest(), "excluded": excluded, "notes": notes}
    side = json.loads(json.dumps(side))  # as it will be read
    atomic_write(path.with_suffix(".json"), json.dumps(side | {"check": _check(side)}, ensure_ascii=False) + "\n")


class _Hashing:
    """What Arrow writes to: a file, and the hash of every byte on its way there."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self.digest.update(view)
        done = 0
        while done < len(view):  # an unbuffered file may take a part only
            done += self.file.write(view[done:])
        return done

    def tell(self) -> int:
        return self.file.tell()

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """The file is its opener's."""


def _bytes(outcome: Outcome) -> int:
    return 0 if outcome.values is None else outcome.values.nbytes


def _record_batch(rows: list[tuple[str, int, bytes]], layout: Layout) -> pa.RecordBatch:
    return pa.record_batch([list(column) for column in zip(*rows, strict=True)], schema=layout.schema)


def _in_order(
    pool: Executor,
    work: Callable[[Item], Result],
    items: Iterable[Item],
    ahead: int,
    size: Callable[[Result], int] = lambda _: 0,
) -> Iterator[Result]:
    """Results in the order of the items; at most `ahead` of them wait, and fewer where those that are ready hold over
    HELD_BYTES by their `size`, so memory does not grow with the shard."""
    waiting: deque[Future[Result]] = deque()

    def held() -> int:
        return sum(size(future.result()) for future in waiting if future.done() and future.exception() is None)

    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            while len(waiting) > ahead or held() > HELD_BYTES:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
