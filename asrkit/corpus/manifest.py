"""Manifests: tables (tsv, csv, jsonl) of one's own recordings."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from asrkit.corpus.duplicates import without_duplicates
from asrkit.corpus.selection import DataReport
from asrkit.corpus.tables import SUFFIXES, Row, header_or_nothing, path_inside, read_header, read_rows, tables_of
from asrkit.corpus.utterances import Cells, Utterance
from asrkit.errors import DataError, TrustError, nearest


class Manifest:
    """Tables of one's own recordings: .tsv, .csv or .jsonl with a path and a text for each utterance.

    `root` is one table, or a folder. A split is then named by the `split` column of that table or of the folder's
    `manifest.tsv` (or .csv, .jsonl; without the column, all rows are `train`), or by its own table in the folder:
    `train` for `train.tsv`, or the file name itself, `asr_train.tsv`. `train`, `dev` and `test` name the tables of
    these splits, all of whose rows are taken.

    Columns: `path`, relative to the table's folder, or else, where that has no such file, to `root`, which it may not
    leave; the text, in `column`, or else `sentence`
    or `text`. Optional: `id`, `speaker`, `split`, `start`, `end` (seconds in the file), `duration` or `duration_s`
    (seconds). All others are in `Utterance.extra`.
    """

    asrkit_api = 1
    TEXT = ("sentence", "text")
    OWN = ("path", "id", "speaker", "split", "start", "end", "duration", "duration_s")

    def __init__(
        self,
        root: Path | str,
        column: str | None = None,
        train: str | None = None,
        dev: str | None = None,
        test: str | None = None,
        report: DataReport | None = None,
    ) -> None:
        self.root = Path(root)
        self.column = column
        self._named = {key: name for key, name in (("train", train), ("dev", dev), ("test", test)) if name}
        self.report = DataReport() if report is None else report
        self._folder = self.root if self.root.is_dir() else self.root.parent
        self.exists: Callable[[Path], bool] = os.path.exists
        tables = [self.root] if self.root.is_file() else tables_of(self.root)
        self._joint = next((t for t in tables if t == self.root or t.stem == "manifest"), None)
        self._tables = {} if self._joint else {table.stem: table for table in tables}

    @classmethod
    def recognizes(cls, root: Path) -> bool:
        """Whether `root` is a table, or a folder with one that has a `path` and is not of Common Voice."""
        if root.is_file():
            return root.suffix.lower() in SUFFIXES
        headers = map(header_or_nothing, tables_of(root))
        return any("path" in columns and "client_id" not in columns for columns in headers)

    def splits(self) -> list[str]:
        """The splits in the order in which they first appear in the table; or the names of the folder's tables, those
        left out that are no lists of audio (speakers.csv)."""
        if self._named or self._joint is None:
            return list(self._named or (name for name, table in self._tables.items() if _may_list_audio(table)))
        return list(dict.fromkeys(row.cells.get("split", "train") for row in read_rows(self._joint, ("path",))))

    def read(self, split: str) -> list[Utterance]:
        """The utterances of one split, in the order of the file. Raises as `CommonVoice.read` does."""
        name = self._named.get(split, split)
        whole = Path(name).suffix.lower() in SUFFIXES
        table = self._folder / name if whole else self._joint or self._tables.get(name)
        if table is None or not table.is_file():
            raise self._no_split(split)
        column = self._text_column(table)
        rows: Iterable[Row] = read_rows(table, ("path", column))
        if table == self._joint and not whole:
            rows = (row for row in rows if row.cells.get("split", "train") == split)
        try:
            found = without_duplicates(self._utterances(rows, column, split, table.parent), table, self.report)
            return list(found.values())
        except DataError as error:
            if error.reason == "empty_table" and table == self._joint:
                raise self._no_split(split) from error
            raise

    def _utterances(self, rows: Iterable[Row], column: str, split: str, start: Path) -> Iterator[tuple[int, Utterance]]:
        """start: the table's folder."""
        names: tuple[str, ...] = ()
        keys: tuple[str, ...] | None = None
        root, start = Path(os.path.abspath(self._folder)), Path(os.path.abspath(start))
        for row in rows:
            if tuple(row.cells) != keys:  # jsonl: every line may have its own keys
                keys = tuple(row.cells)
                names = tuple(name for name in keys if name not in (*self.OWN, column))
            extra = Cells(names, [row.cells[name] for name in names])
            yield row.line, _utterance(row, self._audio(row, root, start), column, split, extra)

    def _audio(self, row: Row, root: Path, start: Path) -> Path:
        """The file of a row of a table in `start`."""
        path = row.cells["path"]
        if start == root:
            return path_inside(root, path, row)
        found: list[Path] = []
        for base, begin in ((root if start.is_relative_to(root) else start, start), (root, root)):
            try:
                found.append(path_inside(base, path, row, begin))
            except TrustError:  # ../a.wav leaves the root, but not from lists/
                if not found and begin == root:
                    raise
        return next((audio for audio in found if self.exists(audio)), found[0])

    def _no_split(self, split: str) -> DataError:
        tables = ", ".join(table.name for table in tables_of(self._folder))
        return DataError(
            f"{self.root}: no split {split!r}",
            possible=f"{nearest(split, self.splits())}; or the name of a table: {tables or 'none in this folder'}",
            fix="set data.train, data.dev and data.test to these names",
            reason="unknown_split",
        )

    def _text_column(self, table: Path) -> str:
        columns = read_header(table)
        wanted = [self.column] if self.column else [name for name in self.TEXT if name in columns]
        if not wanted or wanted[0] not in columns:
            raise DataError(
                f"{table.name}:1: no column {self.column or 'sentence'!r} for the text",
                possible=nearest(self.column or "sentence", columns),
                fix="name the column of the text with --data.column=NAME",
                reason="missing_column",
            )
        return wanted[0]


def _may_list_audio(table: Path) -> bool:
    """Whether it has a `path`, or a header that cannot be read (reading it tells why), or the name of a split."""
    columns = header_or_nothing(table)
    return not columns or "path" in columns or table.stem in ("train", "dev", "test")


def _utterance(row: Row, audio: Path, column: str, split: str, extra: Cells) -> Utterance:
    cells = row.cells
    start, end = row.span()
    claimed = row.number("duration") if "duration" in cells else row.number("duration_s")
    seconds = claimed if end is None else end - start
    piece = f"#{start:.3f}" if "start" in cells or "end" in cells else ""
    name = cells.get("id") or os.path.splitext(os.path.normpath(cells["path"]))[0] + piece
    text = unicodedata.normalize("NFC", cells[column])
    return Utterance(name, audio, text, cells.get("speaker", ""), split, start, end, seconds, extra)
