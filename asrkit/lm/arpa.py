"""ARPA files: written from a model, and read far enough to know what words a file has and that it is one.

    \\data\\
    ngram 1=4
    ...
    \\1-grams:
    log10 p <TAB> word <TAB> log10 b
    ...
    \\end\\

The format is that of SRILM (`ngram-format(5)`), read by KenLM and all decoders.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from asrkit.disk import storage_error
from asrkit.errors import DataError
from asrkit.lm.kneser_ney import NgramModel

KENLM_BINARY = b"mmap lm http://kheafield.com/code"
END = "\\eof"  # after the last line
LINES = 1 << 16  # written at once
MAX_LINE = 1 << 16


@dataclass(frozen=True)
class Unigrams:
    """What the first part of an ARPA file says: log10 p by word, marks included, and the numbers of n-grams."""

    log_probs: dict[str, float]
    counts: tuple[int, ...]

    @property
    def order(self) -> int:
        """The number of words of the longest n-grams."""
        return len(self.counts)


def write_arpa(model: NgramModel, path: Path, told: Callable[[int], None] = lambda lines: None) -> None:
    """Write the file, whole or not at all; `told(lines)` is called as lines are written.

    Raises StorageError where the disk does not take it.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            file.write("\\data\\\n")
            file.writelines(f"ngram {n}={len(level)}\n" for n, level in enumerate(model.levels, start=1))
            for n in range(1, model.order + 1):
                file.write(f"\n\\{n}-grams:\n")
                for lines in _lines(model, n):
                    file.writelines(lines)
                    told(len(lines))
            file.write("\n\\end\\\n")
        os.replace(partial, path)
    except OSError as error:
        raise storage_error(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _lines(model: NgramModel, n: int) -> Iterator[list[str]]:
    words, level = np.array(model.words, dtype=object), model.levels[n - 1]
    for start in range(0, len(level), LINES):
        rows = np.arange(start, min(start + LINES, len(level)))
        probs = model.log_probs[n - 1][rows].tolist()
        text, place = words[level.word[rows]], level.context[rows]
        for lower in reversed(model.levels[: n - 1]):
            text, place = words[lower.word[place]] + " " + text, lower.context[place]
        if n == model.order:
            yield [f"{p:.7g}\t{w}\n" for p, w in zip(probs, text, strict=True)]
        else:
            backoffs = model.log_backoffs[n - 1][rows].tolist()
            yield [f"{p:.7g}\t{w}\t{b:.7g}\n" for p, w, b in zip(probs, text, backoffs, strict=True)]


def read_unigrams(path: Path) -> Unigrams:
    """The words of an ARPA file, each line up to the 2-grams checked.

    Raises DataError naming file and line: `missing_lm`, `not_arpa`, `not_utf8`.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file", fix="make one with `asrkit lm build`", reason="missing_lm")
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            lines = _numbered(file, path)
            counts = _header(lines, path)
            return Unigrams(_words(lines, path, counts), counts)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8, and no ARPA file", reason="not_utf8") from error
    except OSError as error:
        raise storage_error(error, path) from error


def is_kenlm_binary(path: Path) -> bool:
    """Whether the file is what KenLM's build_binary writes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(KENLM_BINARY)) == KENLM_BINARY


def _numbered(file: TextIO, path: Path) -> Iterator[tuple[int, str]]:
    number = 0
    while line := file.readline(MAX_LINE):
        number += 1
        if len(line) == MAX_LINE:
            raise _wrong(path, number, "a line of over 65,535 characters")
        yield number, line.rstrip("\r\n")
    yield number + 1, END


def _header(lines: Iterator[tuple[int, str]], path: Path) -> tuple[int, ...]:
    number, line = next((pair for pair in lines if pair[1].strip()), (1, ""))
    if line.strip() != "\\data\\":
        raise _wrong(path, number, f"{_shown(line)} instead of \\data\\")
    counts: list[int] = []
    for number, line in lines:
        left, _, right = line.partition("=")
        if not line.strip():
            continue
        if line.strip() == "\\1-grams:" and counts:
            return tuple(counts)
        if (
            left.split() != ["ngram", str(len(counts) + 1)]
            or not right.strip().isascii()
            or not right.strip().isdigit()
            or len(right.strip()) > 18
        ):
            raise _wrong(path, number, f"{_shown(line)} instead of 'ngram {len(counts) + 1}=NUMBER' or \\1-grams:")
        counts.append(int(right))
    raise AssertionError("the last line is END")


def _words(lines: Iterator[tuple[int, str]], path: Path, counts: tuple[int, ...]) -> dict[str, float]:
    found: dict[str, float] = {}
    for number, line in lines:
        if not line.strip():
            continue
        if line.startswith("\\"):
            break
        cells = line.split()
        try:
            value = [float(cell) for cell in (cells[0], *cells[2:])]
        except ValueError:
            value = []
        if len(cells) not in (2, 3) or not value or not all(map(math.isfinite, value)) or value[0] > 0:
            raise _wrong(path, number, f"{_shown(line)} instead of 'log10 probability, word, log10 back-off'")
        if cells[1] in found:
            raise _wrong(path, number, f"the word {cells[1]!r} a second time")
        found[cells[1]] = value[0]
    if len(found) != counts[0]:
        raise _wrong(path, number, f"{len(found)} words where the header promises {counts[0]}")
    if "<s>" not in found or "</s>" not in found:
        raise DataError(f"{path} has no <s> or no </s>", fix="build it from whole sentences", reason="not_arpa")
    return found


def _shown(line: str) -> str:
    return "the end of the file" if line == END else repr(line[:40])


def _wrong(path: Path, number: int, what: str) -> DataError:
    return DataError(
        f"{path}:{number}: {what}", fix="give an ARPA file, such as `asrkit lm build` writes", reason="not_arpa"
    )
