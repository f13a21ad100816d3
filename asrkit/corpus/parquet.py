"""Clips in Parquet files: the columns of text are read without touching the audio, then the audio of wanted rows only.

`fetch` keeps each clip as a file of its own, so every later step works as it does for a release, and tools can play
what is in doubt. That costs the disk of the wanted clips once more, which is said first.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from asrkit.corpus.extraction import ClipWriter, announce, bar, clips, has_size
from asrkit.corpus.utterances import Cells, Utterance
from asrkit.disk import storage_error
from asrkit.errors import DataError, nearest

SIZES = "sizes.tsv"
TAIL = 1 << 16  # bytes at the end of a shard: the footer, with sizes and statistics of every column
ROWS = 64  # clips in memory at a time
NAME = 200  # bytes of a clip's own file name that are kept
SPEAKER = ("client_id", "speaker_id", "speaker")
TEXT = ("sentence", "text", "transcription", "transcript", "normalized_text")
SECONDS = ("duration", "duration_s")


class Shards:
    """The Parquet files of one split. A clip's file name says where its bytes are: shard, row in it, name."""

    def __init__(self, paths: list[Path], cache: Path, column: str | None) -> None:
        self.paths, self._column = paths, column
        digest = hashlib.sha256()
        for path in paths:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(max(0, size - TAIL))
                digest.update(f"{path.name} {size} ".encode() + file.read())
        self.folder = cache / f"clips-{digest.hexdigest()[:16]}"
        self.clips = self.folder / "clips"

    def utterances(self, split: str, own_name: str) -> Iterator[tuple[int, Utterance]]:
        """(number of the row in the split, utterance). own_name: what the dataset calls the split; it makes ids of rows
        without a name, which must not depend on the name that was asked for."""
        number, seen = 0, set()
        for place, path in enumerate(self.paths):
            with _reading(path), pq.ParquetFile(path) as shard:
                columns = _Columns(path, shard.schema_arrow, self._column)
                row = 0
                for batch in shard.iter_batches(batch_size=4096, columns=columns.readable):
                    for cells in batch.to_pylist():
                        number += 1
                        base = columns.base_name(cells, f"{own_name}-{number}")
                        name = os.path.splitext(base)[0]
                        if name in seen:
                            name = f"{name}#{number}"
                        seen.add(name)
                        audio = self.clips / f"{place:05d}-{row:07d}-{base}"
                        row += 1
                        yield number, columns.utterance(cells, name, audio, split)

    def fetch(self, wanted: set[Path], progress: bool | None) -> None:
        """Write these clips; those that are there with the right size stay."""
        sizes = self._known_sizes()
        todo: dict[int, dict[int, Path]] = defaultdict(dict)
        for audio in wanted:
            if not has_size(audio, sizes.get(audio.name)):
                shard, row = map(int, audio.name.split("-", 2)[:2])
                todo[shard][row] = audio
        count = sum(map(len, todo.values()))
        if not count:
            return
        need = sum(_need(self.paths[place], set(rows)) for place, rows in todo.items())
        what = clips(count, len(wanted) - count)
        announce(self.paths[0].parent.name, what, need, self.folder, "about ")
        try:
            self.clips.mkdir(parents=True, exist_ok=True)
            with (
                bar(count, "clip", "taking clips", progress) as shown,
                (self.folder / SIZES).open("a", encoding="utf-8") as known,
            ):
                for place, rows in sorted(todo.items()):
                    self._take(self.paths[place], rows, known, shown)
        except OSError as error:
            raise storage_error(error, self.folder) from error

    def _take(self, path: Path, rows: dict[int, Path], known: Any, shown: Any) -> None:
        writer = ClipWriter(self.folder)
        for row, content in _audio(path, set(rows)):
            if content is not None:  # a clip that is not there stays missing, and is reported as such
                writer.write(rows[row], content)
                known.write(f"{rows[row].name}\t{len(content)}\n")
                known.flush()  # whatever happens next, this clip is known
            shown.update()

    def _known_sizes(self) -> dict[str, int]:
        """Sizes of the clips that were taken before; a line that was cut by a crash is no size."""
        sizes = {}
        if (self.folder / SIZES).is_file():
            for line in (self.folder / SIZES).read_text(encoding="utf-8", errors="replace").splitlines():
                name, _, size = line.partition("\t")
                if size.isdigit():
                    sizes[name] = int(size)
        return sizes


class _Columns:
    """Which column of a Parquet file is what."""

    def __init__(self, path: Path, schema: pa.Schema, text: str | None) -> None:
        self.audio = _audio_column(path, schema)
        plain = [field.name for field in schema if not pa.types.is_nested(field.type) and not _is_bytes(field.type)]
        wanted = [text] if text else [name for name in TEXT if name in plain]
        if not wanted or wanted[0] not in plain:
            raise DataError(
                f"{path.name}: no column {text or 'sentence'!r} for the text",
                possible=nearest(text or "sentence", plain),
                fix="name the column of the text with --data.column=NAME",
                reason="missing_column",
            )
        self.text = wanted[0]
        self.speaker = next((name for name in SPEAKER if name in plain), None)
        self.seconds = next((name for name in SECONDS if name in plain), None)
        self.struct = pa.types.is_struct(schema.field(self.audio).type)
        has_path = self.struct and "path" in [field.name for field in schema.field(self.audio).type]
        self.readable = plain + ([f"{self.audio}.path"] if has_path else [])
        own = (self.text, self.speaker, "path")
        self.others = [name for name in plain if name not in own]
        renamed = "accents" not in self.others
        self.names = tuple("accents" if name == "accent" and renamed else name for name in self.others)

    def base_name(self, cells: dict[str, Any], otherwise: str) -> str:
        """The clip's file name: folders of the machine that made the dataset mean nothing here."""
        inner = (cells.get(self.audio) or {}).get("path") if self.struct else None
        named = (inner, cells.get("path"), cells.get("id"), otherwise)
        path = str(next(name for name in named if name not in (None, "")))
        base = "".join(c for c in PurePosixPath(path.replace("\\", "/")).name if c.isprintable())
        base = base.encode(errors="ignore")[-NAME:].decode(errors="ignore")
        return base if base not in ("", ".", "..") else otherwise

    def utterance(self, cells: dict[str, Any], name: str, audio: Path, split: str) -> Utterance:
        text = unicodedata.normalize("NFC", _plain(cells[self.text]))
        speaker = _plain(cells[self.speaker]) if self.speaker else ""
        seconds = cells[self.seconds] if self.seconds else None
        if not isinstance(seconds, int | float) or not 0 <= seconds < float("inf"):
            seconds = None
        extra = Cells(self.names, [_plain(cells[other]) for other in self.others])
        return Utterance(name, audio, text, speaker, split, seconds=seconds, extra=extra)


def _plain(value: Any) -> str:
    return "" if value is None else str(value)


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _audio_column(path: Path, schema: pa.Schema) -> str:
    found = []
    for field in schema:
        inner = {part.name: part.type for part in field.type} if pa.types.is_struct(field.type) else {}
        if _is_bytes(field.type) or ("bytes" in inner and _is_bytes(inner["bytes"])):
            found.append(field.name)
    if not found:
        raise DataError(
            f"{path.name}: no column with audio in it",
            possible=f"a column of {{bytes, path}} or of bytes; there is {', '.join(schema.names)}",
            fix="take a dataset that holds its audio, or give a manifest if the clips are files on this disk",
            reason="missing_column",
        )
    return "audio" if "audio" in found else found[0]


def _leaf(path: Path, shard: pq.ParquetFile) -> str:
    """The column of bytes: `audio.bytes`, or `audio` itself."""
    audio = _audio_column(path, shard.schema_arrow)
    return f"{audio}.bytes" if pa.types.is_struct(shard.schema_arrow.field(audio).type) else audio


def _groups(shard: pq.ParquetFile, rows: set[int]) -> Iterator[tuple[int, int, list[int]]]:
    """(row group, its first row, wanted rows) for every row group that has some."""
    ordered, first = sorted(rows), 0
    for group in range(shard.num_row_groups):
        last = first + shard.metadata.row_group(group).num_rows
        inside = ordered[bisect_left(ordered, first) : bisect_left(ordered, last)]
        if inside:
            yield group, first, inside
        first = last


def _need(path: Path, rows: set[int]) -> int:
    """Bytes of these rows' audio, from the sizes of the row groups."""
    need = 0.0
    with _reading(path), pq.ParquetFile(path) as shard:
        leaf = _leaf(path, shard)
        for group, _, inside in _groups(shard, rows):
            about = shard.metadata.row_group(group)
            chunks = [about.column(i) for i in range(about.num_columns)]
            size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == leaf)
            need += size * len(inside) / about.num_rows
    return int(need)


def _audio(path: Path, rows: set[int]) -> Iterator[tuple[int, bytes | None]]:
    """(row, bytes) for these rows of a shard; row groups without any are not read."""
    with _reading(path), pq.ParquetFile(path) as shard:
        leaf = _leaf(path, shard)
        for group, first, inside in _groups(shard, rows):
            row, wanted = first, set(inside)
            for batch in shard.iter_batches(batch_size=ROWS, row_groups=[group], columns=[leaf]):
                column = batch.column(0)
                values = column.field("bytes") if pa.types.is_struct(column.type) else column
                for value in values:
                    if row in wanted:
                        yield row, value.as_py()
                    row += 1


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk; those of the format have no number
            raise
        raise DataError(
            f"{path}: no whole Parquet file ({error})", fix="download it again", reason="not_parquet"
        ) from error
