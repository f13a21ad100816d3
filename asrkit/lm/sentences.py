"""Where the sentences of a language model come from, and how they become its words."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from asrkit.corpus.tables import SUFFIXES, read_rows
from asrkit.disk import unreadable
from asrkit.errors import DataError, RecipeError, nearest
from asrkit.tokenizers import SPACE_MARK

UNITS = ("words", "characters", "labels")


def read_sentences(sources: Sequence[str], column: str = "sentence") -> Iterator[tuple[str, int]]:
    """(sentence, bytes read for it): lines of text files, the column of .tsv, .csv and .jsonl tables, `-` for standard
    input.

    Raises DataError naming file and line: `missing_text`, `not_utf8`, and those of `asrkit.corpus.tables.read_rows`.
    """
    for source in sources:
        path = Path(source)
        if source != "-" and not path.is_file():
            raise DataError(
                f"{source}: no such file",
                possible="text files with one sentence a line; .tsv, .csv or .jsonl tables; - for standard input",
                reason="missing_text",
            )
        if path.suffix.lower() in SUFFIXES:
            for row in read_rows(path, (column,)):
                yield row.cells[column], sum(map(len, row.values)) + len(row.values)
        else:
            yield from _lines(source, path)


def _lines(source: str, path: Path) -> Iterator[tuple[str, int]]:
    try:
        with contextlib.nullcontext(sys.stdin.buffer) if source == "-" else path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8"), len(line)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{source}: a line is not UTF-8 ({error})", fix="convert the file first", reason="not_utf8"
        ) from error
    except OSError as error:
        raise unreadable(error, path) from error


def size_of(sources: Sequence[str]) -> int | None:
    """Bytes of all sources, for a progress bar; None where one of them has no size."""
    try:
        return sum(os.stat(source).st_size for source in sources)
    except OSError:
        return None


def splitter(unit: str, encode: Callable[[str], Iterable[str]] | None = None) -> Callable[[str], list[str]]:
    """From a normalized sentence to the words of the model: its `words`, its `characters` with the space written ▁, or
    the `labels` that `encode` gives. Raises RecipeError (`lm_unit`) for another unit, or `labels` without `encode`."""
    if unit == "words":
        return str.split
    if unit == "characters":
        return lambda text: list(text.replace(" ", SPACE_MARK))
    if unit == "labels" and encode is not None:
        return lambda text: [label.replace(" ", SPACE_MARK) for label in encode(text)]
    possible = nearest(unit, UNITS if encode is not None else UNITS[:2])
    fix = "labels are those of a trained model: give --model" if unit == "labels" else None
    raise RecipeError(f"unit {unit!r}", possible=possible, fix=fix, reason="lm_unit")
