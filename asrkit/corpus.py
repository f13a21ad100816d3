"""Corpora -> checked utterances: an extracted Common Voice release, or a manifest (tsv, csv, jsonl) of any recordings.

A corpus reader (kind `corpora`) offers `recognizes(root)`, `splits()` and `read(split)`, and keeps a `report` of the
rows that it dropped. Whether the audio can be used is for the preparation to find out; nothing here opens a clip.
"""

from __future__ import annotations

import inspect
import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from asrkit import registry
from asrkit.errors import DataError, RecipeError, TrustError, nearest
from asrkit.selection import REASONS, DataReport, Leakage, leakage, normalized, select_texts, split_hash
from asrkit.tables import SUFFIXES, Row, read_header, read_rows

__all__ = [
    "REASONS",
    "CommonVoice",
    "Corpus",
    "DataReport",
    "Leakage",
    "Manifest",
    "Utterance",
    "leakage",
    "normalized",
    "open_corpus",
    "select_texts",
    "split_hash",
]


@dataclass(frozen=True, slots=True)
class Utterance:
    """One stretch of speech and what was said.

    text is the sentence as the corpus has it, in Unicode NFC; speaker is "" where unknown. start and end are seconds in
    the audio file (end None: to its end); seconds is the duration that the corpus claims, None where it claims none.
    """

    id: str
    audio: Path
    text: str
    speaker: str
    split: str
    start: float = 0.0
    end: float | None = None
    seconds: float | None = None


class Corpus(Protocol):
    """Contract of the kind `corpora`."""

    asrkit_api: int
    report: DataReport

    def __init__(self, root: Path | str, **options: Any) -> None: ...

    @classmethod
    def recognizes(cls, root: Path) -> bool: ...

    def splits(self) -> list[str]: ...

    def read(self, split: str) -> list[Utterance]: ...


class CommonVoice:
    """An extracted Common Voice release, every version: the folder of one language, with `clips/` and `train.tsv`.

    Columns are found by name; `client_id`, `path` and `sentence` are needed. `seconds` comes from `clip_durations.tsv`,
    which releases have since 16.1. Clip paths are checked by their names: a link inside `clips/` is the user's own.
    """

    asrkit_api = 1
    COLUMNS = ("client_id", "path", "sentence")
    SPLITS = ("train", "dev", "test", "validated", "invalidated", "other")

    def __init__(self, root: Path | str, report: DataReport | None = None) -> None:
        self.root = Path(root)
        self.report = DataReport() if report is None else report
        self._clips = os.path.abspath(self.root / "clips")

    @classmethod
    def recognizes(cls, root: Path) -> bool:
        """Whether `root` has `clips/` and a table of a split in it."""
        return (root / "clips").is_dir() and any(
            set(cls.COLUMNS) <= set(_columns(root / f"{split}.tsv")) for split in cls.SPLITS
        )

    def splits(self) -> list[str]:
        """The splits that this release has, train first. A delta release has no train, dev and test."""
        return [split for split in self.SPLITS if (self.root / f"{split}.tsv").is_file()]

    def read(self, split: str) -> list[Utterance]:
        """The utterances of one split, in the order of the file, one for each row.

        Raises DataError for a table that is not as it should be (see `asrkit.tables.read_rows`), two rows that disagree
        about one clip (`conflicting_rows`), no rows (`empty_table`); TrustError for a path that leaves `clips/`.
        """
        table = self.root / f"{split}.tsv"
        if table.parent != self.root or not table.is_file():
            raise DataError(
                f"{self.root}: no split {split!r}",
                possible=nearest(split, self.splits()) or "none",
                reason="unknown_split",
            )
        found = [(row, self._utterance(row, split)) for row in read_rows(table, self.COLUMNS)]
        utterances = _without_duplicates(found, table, self.report)
        names = [u.audio.name for u in utterances]
        seconds = self._seconds(set(names))
        if not seconds:
            return utterances
        return [replace(u, seconds=seconds.get(name)) for u, name in zip(utterances, names, strict=True)]

    def _utterance(self, row: Row, split: str) -> Utterance:
        path = row.cells["path"]
        if path and "." not in path:  # releases 1 to 3 leave the ending out
            path += ".mp3"
        audio = _inside(self._clips, path, row)
        sentence = unicodedata.normalize("NFC", row.cells["sentence"])
        return Utterance(_stem(path), audio, sentence, row.cells["client_id"], split)

    def _seconds(self, clips: set[str]) -> dict[str, float]:
        """Clip name -> seconds, for these clips, as far as the release says."""
        table = self.root / "clip_durations.tsv"
        if not table.is_file():
            return {}
        found = {}
        for row in read_rows(table, ("clip", "duration[ms]")):
            if row.cells["clip"] in clips:
                milliseconds = row.number("duration[ms]")
                if milliseconds is not None:
                    found[row.cells["clip"]] = milliseconds / 1000
        return found


class Manifest:
    """Tables of one's own recordings: .tsv, .csv or .jsonl with a path and a text for each utterance.

    `root` is one table, or a folder. A split is then named by the `split` column of that table or of the folder's
    `manifest.tsv` (or .csv, .jsonl; without the column, all rows are `train`), or by its own table in the folder:
    `train` for `train.tsv`, or the file name itself, `asr_train.tsv`. `train`, `dev` and `test` name the tables of
    these splits, all of whose rows are taken.

    Columns: `path`, relative to the table's folder, which it may not leave; the text, in `column`, or else `sentence`
    or `text`. Optional: `id`, `speaker`, `split`, `start`, `end` (seconds in the file), `duration` or `duration_s`
    (seconds).
    """

    asrkit_api = 1
    TEXT = ("sentence", "text")

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
        tables = [self.root] if self.root.is_file() else _tables(self.root)
        self._joint = next((t for t in tables if t == self.root or t.stem == "manifest"), None)
        self._tables = {} if self._joint else {table.stem: table for table in tables}

    @classmethod
    def recognizes(cls, root: Path) -> bool:
        """Whether `root` is a table, or a folder with one that has a `path` and is not of Common Voice."""
        if root.is_file():
            return root.suffix.lower() in SUFFIXES
        return any("path" in columns and "client_id" not in columns for columns in map(_columns, _tables(root)))

    def splits(self) -> list[str]:
        """The splits in the order in which they first appear in the table; or the names of the folder's tables."""
        if self._named or self._joint is None:
            return list(self._named or self._tables)
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
        found = [(row, self._utterance(row, column, split)) for row in rows]
        if not found and table == self._joint:
            raise self._no_split(split)
        return _without_duplicates(found, table, self.report)

    def _no_split(self, split: str) -> DataError:
        tables = ", ".join(table.name for table in _tables(self._folder))
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

    def _utterance(self, row: Row, column: str, split: str) -> Utterance:
        cells = row.cells
        path = cells["path"]
        audio = _inside(os.path.abspath(row.file.parent), path, row)
        start, end = row.number("start") or 0.0, row.number("end")
        if end is not None and end <= start:
            raise DataError(f"{row.place}: end {end:g} is not after start {start:g}", reason="bad_number")
        claimed = row.number("duration") if "duration" in cells else row.number("duration_s")
        seconds = claimed if end is None else end - start
        piece = f"#{start:.3f}" if "start" in cells or "end" in cells else ""
        name = cells.get("id") or _stem(path) + piece
        text = unicodedata.normalize("NFC", cells[column])
        return Utterance(name, audio, text, cells.get("speaker", ""), split, start, end, seconds)


def open_corpus(root: Path | str, format: str | None = None, **options: Any) -> Corpus:
    """The corpus at `root`, by the name of its reader or by asking every registered reader.

    `options` go to the reader, those that are None left out; `report=` collects the rows it drops. Raises DataError for
    a folder that is missing (`missing_corpus`) or that no reader or more than one recognizes (`unknown_corpus`);
    RecipeError for an unknown reader or option.
    """
    path = Path(root).expanduser()
    if not path.exists():
        raise DataError(f"data.root: {root} does not exist", possible=_POSSIBLE, fix=_FIX, reason="missing_corpus")
    name = format or _recognized(path)
    cls = registry.load("corpora", name)
    parameters = list(inspect.signature(cls).parameters)[1:]
    options = {key: value for key, value in options.items() if value is not None}
    unknown = [option for option in options if option not in parameters]
    if unknown:
        raise RecipeError(
            f"corpus {name!r} has no option {unknown[0]!r}",
            possible=nearest(unknown[0], parameters),
            reason="unknown_option",
        )
    return cls(path, **options)


_POSSIBLE = (
    "the extracted folder of one Common Voice language (clips/, train.tsv, ...), or a folder or table of your own"
)
_FIX = (
    "download a release from the Mozilla Data Collective, extract it and give --data.root=.../cv-corpus-.../es, "
    "or make a synthetic corpus with `asrkit data synth`"
)


def _recognized(path: Path) -> str:
    names = [plugin.name for plugin in registry.list_plugins("corpora")]
    matches = [name for name in names if registry.load("corpora", name).recognizes(path)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise DataError(
            f"data.root: {path} looks like {' and like '.join(matches)}",
            fix=f"say which: --data.format={matches[0]}",
            reason="unknown_corpus",
        )
    inside = [clips.parent for depth in ("*/clips", "*/*/clips") for clips in sorted(path.glob(depth))]
    inside = [folder for folder in inside if CommonVoice.recognizes(folder)]
    if inside:
        folders = ", ".join(str(folder) for folder in inside[:10])
        raise DataError(
            f"data.root: {path} holds languages, not one", possible=folders, fix="give one", reason="unknown_corpus"
        )
    archive = path.is_file() and path.suffix.lower() in (".gz", ".tar", ".tgz", ".zip")
    fix = "extract it and give the folder" if archive else f"{_FIX}; or say --data.format= ({', '.join(names)})"
    raise DataError(
        f"data.root: {path} is no corpus that asrkit knows", possible=_POSSIBLE, fix=fix, reason="unknown_corpus"
    )


def _inside(base: str, path: str, row: Row) -> Path:
    """`base / path`, which must stay inside that absolute folder."""
    full = os.path.normpath(os.path.join(base, path))
    if full != base and not full.startswith(base + os.sep):
        raise TrustError(
            f"{row.place}: the path {path!r} leaves {os.path.basename(base)}/",
            fix="remove the row, or move the clip",
            reason="path",
        )
    if not path or full == base:
        raise DataError(f"{row.place}: no path", reason="bad_row")
    return Path(full)


def _stem(path: str) -> str:
    """A path without its ending, as an id."""
    return os.path.splitext(path)[0]


def _without_duplicates(found: Iterable[tuple[Row, Utterance]], table: Path, report: DataReport) -> list[Utterance]:
    seen: dict[str, tuple[Row, Utterance]] = {}
    for row, utterance in found:
        first, other = seen.setdefault(utterance.id, (row, utterance))
        if first is row:
            continue
        if other != utterance:
            raise DataError(
                f"{row.place} and line {first.line} disagree about {utterance.id!r}",
                fix="keep one of the two rows",
                reason="conflicting_rows",
            )
        report.exclude(utterance, "duplicate", line=row.line, first_line=first.line)
    if not seen:
        raise DataError(f"{table.name}: no rows for this split", reason="empty_table")
    return [utterance for _, utterance in seen.values()]


def _tables(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES) if folder.is_dir() else []


def _columns(table: Path) -> list[str]:
    """The header of a table, nothing where there is none; a defect is for reading to report."""
    try:
        return read_header(table) if table.is_file() else []
    except DataError:
        return []
