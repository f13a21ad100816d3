"""Tables as corpora ship them: tsv without quoting, csv, jsonl; every line a row or an error that names file and line.

The usual readers lose rows at an unbalanced quote, without a word. Here the number of rows is the number of lines - 1
(jsonl: of lines), or DataError.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asrkit.errors import DataError, StorageError, TrustError, nearest

SUFFIXES = (".tsv", ".csv", ".jsonl")
BOM = "\ufeff"
MAX_LINE = 1 << 20  # bytes: a line is read as a whole, and a file without line ends is one line


@dataclass(slots=True)
class Row:
    """One row: where it stands (lines count from 1), its columns and their cells.

    `cells` is the dict of both; a reader of hundreds of thousands of rows takes `values` by their places instead.
    """

    file: Path
    line: int
    names: list[str]
    values: list[str]

    @property
    def cells(self) -> dict[str, str]:
        """The cells by column name."""
        return dict(zip(self.names, self.values, strict=True))

    @property
    def place(self) -> str:
        """`train.tsv:42`."""
        return f"{self.file.name}:{self.line}"

    def number(self, column: str) -> float | None:
        """The cell as a finite number that is not negative; None where the column is absent or empty."""
        cell = self.values[self.names.index(column)] if column in self.names else ""
        if not cell:
            return None
        try:
            value = float(cell)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            raise DataError(f"{self.place}: {column} is {cell!r}", possible="a number >= 0", reason="bad_number")
        return value

    def span(self) -> tuple[float, float | None]:
        """The columns `start` and `end` in seconds; (0, None), the whole recording, where they are absent or empty."""
        start, end = self.number("start") or 0.0, self.number("end")
        if end is not None and end <= start:
            raise DataError(f"{self.place}: end {end:g} is not after start {start:g}", reason="bad_number")
        return start, end


def read_rows(path: Path, required: Sequence[str] = (), skipped: list[int] | None = None) -> Iterator[Row]:
    """The rows of a .tsv, .csv or .jsonl file, one by one.

    UTF-8 with or without BOM, LF or CRLF. tsv is read without quoting, since that is how Common Voice writes it; only
    a cell that a csv writer has wrapped (quotes around it, all quotes inside doubled) is unwrapped. Empty lines at the
    end are accepted. Raises DataError naming file and line: `not_utf8`, `bad_row` (number of cells, NUL, unbalanced
    quote in a csv, not JSON), `long_line` (over 1 MiB), `missing_column`, `duplicate_column`, `missing_table`.

    skipped: a list that gets the numbers of lines that are no row, which are then passed over; for tables that nothing
    depends on.
    """
    split = _splitter(path)
    header: list[str] | None = None
    for line, text in _lines(path, skipped):
        if split is None:
            yield _json_row(path, line, text, required)
            continue
        cells = split(text, line)
        if header is None:
            header = [cell.strip() for cell in cells]
            _check_header(path, header, required)
        elif len(cells) != len(header):
            if skipped is not None:
                skipped.append(line)
                continue
            raise DataError(
                f"{path.name}:{line}: {len(cells)} cells, the header has {len(header)}",
                fix="repair the line: is a tab or a line break inside a sentence?",
                reason="bad_row",
            )
        else:
            yield Row(path, line, header, cells)


def read_header(path: Path) -> list[str]:
    """The column names (jsonl: the keys of the first line); empty for an empty file."""
    split = _splitter(path)
    for line, text in _lines(path):
        if split is None:
            return list(_json_row(path, line, text, ()).cells)
        return [cell.strip() for cell in split(text, line)]
    return []


def header_or_nothing(path: Path) -> list[str]:
    """The column names, none where there is no such table; a defect is for reading to report."""
    try:
        return read_header(path) if path.is_file() else []
    except DataError:
        return []


def tables_of(folder: Path) -> list[Path]:
    """The tables that lie in a folder, sorted by name."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES) if folder.is_dir() else []


def path_inside(base: Path, path: str, row: Row, start: Path | None = None) -> Path:
    """`base / path`, which must stay inside that absolute folder: TrustError otherwise, DataError for no path.

    start: the folder at or below `base` that the path begins at.
    """
    if "/" not in path and "\\" not in path and path not in ("", ".", ".."):  # a plain file name, as almost all are
        return (start or base) / path
    folder = str(base)
    full = os.path.normpath(os.path.join(start or folder, path))
    if full != folder and not full.startswith(folder + os.sep):
        raise TrustError(
            f"{row.place}: the path {path!r} leaves {base.name}/",
            fix="remove the row, or move the clip",
            reason="path",
        )
    if not path or full == folder:
        raise DataError(f"{row.place}: no path", reason="bad_row")
    return Path(full)


def _lines(path: Path, skipped: list[int] | None = None) -> Iterator[tuple[int, str]]:
    """Numbered lines, split at LF only: U+2028, U+0085 and their like belong to sentences. skipped: see `read_rows`."""
    empty_since = 0
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), start=1):
                if len(raw) > MAX_LINE:
                    raise DataError(
                        f"{path.name}:{number}: a line of more than {MAX_LINE >> 20} MiB",
                        fix="give a table of rows; a sentence is a few hundred bytes",
                        reason="long_line",
                    )
                try:
                    text = _line(path, number, raw)
                    if text and empty_since and skipped is None:
                        raise DataError(f"{path.name}:{empty_since}: empty line", fix="remove it", reason="bad_row")
                except DataError:
                    if skipped is None:
                        raise
                    skipped.append(number)
                    continue
                if text:
                    yield number, text
                else:
                    empty_since = empty_since or number
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file", reason="missing_table") from error
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}", reason="unreadable") from error


def _line(path: Path, number: int, raw: bytes) -> str:
    try:
        text = raw.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path.name}:{number}: not UTF-8 (byte 0x{raw[error.start]:02x} at {error.start + 1})",
            fix="convert the file to UTF-8",
            reason="not_utf8",
        ) from error
    if "\0" in text:
        raise DataError(f"{path.name}:{number}: a NUL character", fix="repair the line", reason="bad_row")
    return text.removeprefix(BOM) if number == 1 else text


def _splitter(path: Path) -> Callable[[str, int], list[str]] | None:
    """How a line becomes cells; None for jsonl."""
    suffix = path.suffix.lower()
    if suffix == ".tsv":
        return lambda text, line: list(map(_unwrap, text.split("\t"))) if '""' in text else text.split("\t")
    if suffix == ".csv":
        return lambda text, line: _split_csv(text, f"{path.name}:{line}")
    if suffix == ".jsonl":
        return None
    raise DataError(f"{path.name}: not a table", possible=", ".join(SUFFIXES), reason="unknown_table")


def _unwrap(cell: str) -> str:
    """Undo a csv writer's quoting. Quotes that only stand around a sentence belong to it and stay."""
    if len(cell) < 4 or cell[0] != '"' or cell[-1] != '"':
        return cell
    inner = cell[1:-1]
    if '""' not in inner or '"' in inner.replace('""', ""):
        return cell
    return inner.replace('""', '"')


def _split_csv(text: str, place: str) -> list[str]:
    """One line is one row: a quote that is still open at the end of the line is an error, not the next line."""
    try:
        return next(csv.reader([text], strict=True))
    except csv.Error as error:
        raise DataError(
            f"{place}: {error}",
            possible='cells with a comma or a quote stand in quotes, quotes inside doubled: "a ""b"", c"',
            fix="repair the line, or write a tsv",
            reason="bad_row",
        ) from error


def _check_header(path: Path, header: list[str], required: Sequence[str]) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path.name}:1: column {twice[0]!r} twice", fix="rename one", reason="duplicate_column")
    for name in required:
        if name not in header:
            raise DataError(
                f"{path.name}:1: no column {name!r}",
                possible=f"the file has {nearest(name, header)}",
                reason="missing_column",
            )


def _json_row(path: Path, line: int, text: str, required: Sequence[str]) -> Row:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("a key stands twice")
        return dict(pairs)

    place = f"{path.name}:{line}"
    try:
        values = json.loads(text, object_pairs_hook=unique)
        if not isinstance(values, dict) or any(isinstance(value, dict | list) for value in values.values()):
            raise ValueError("not a flat object")
        if "\\ud" in text.lower():  # half of a pair of \\u escapes is no character, and no file can hold it
            "".join(f"{key}{value}" for key, value in values.items()).encode()
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{place}: {error}", possible='one object per line: {"path": "a.wav", "sentence": "hola"}', reason="bad_row"
        ) from error
    for name in required:
        if name not in values:
            raise DataError(
                f"{place}: no key {name!r}", possible=f"the line has {nearest(name, values)}", reason="missing_column"
            )
    return Row(path, line, list(values), ["" if value is None else str(value) for value in values.values()])
