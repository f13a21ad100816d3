"""Sentences -> counts of n-grams, as arrays: a million sentences cost what their numbers weigh, not Python objects."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from asrkit.errors import DataError

UNK, BOS, EOS = "<unk>", "<s>", "</s>"
SPECIAL = (UNK, BOS, EOS)  # ids 0, 1, 2
CHUNK = 1 << 22  # positions of the text that are sorted at once


@dataclass(frozen=True)
class Level:
    """All n-grams of one order, K of them, sorted by (context, word).

    context (K,): row of w_1..w_{n-1} in the level below; suffix (K,): row of w_2..w_n there; word (K,): id of w_n;
    count (K,): occurrences in the text; at_start (K,): whether w_1 is <s>. Of single words context and suffix are 0.
    """

    context: np.ndarray
    suffix: np.ndarray
    word: np.ndarray
    count: np.ndarray
    at_start: np.ndarray

    def __len__(self) -> int:
        return len(self.word)


class Text:
    """Sentences as one row of word ids, each between one <s> and one </s>."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {word: i for i, word in enumerate(SPECIAL)}
        self._tokens = array("i")
        self.sentences = 0

    def add(self, words: Sequence[str]) -> None:
        """One sentence. Raises DataError (`special_word`) if a word is a mark of the model itself."""
        ids = self.ids
        row = [ids.setdefault(word, len(ids)) for word in words]
        if row and min(row) < len(SPECIAL):
            raise DataError(
                f"sentence {self.sentences + 1} has the word {min(words, key=lambda w: ids[w])!r}",
                fix=f"{', '.join(SPECIAL)} are marks of the language model; take them out of the text",
                reason="special_word",
            )
        self._tokens.append(1)
        self._tokens.extend(row)
        self._tokens.append(2)
        self.sentences += 1

    @property
    def words(self) -> list[str]:
        """The vocabulary by id: <unk>, <s>, </s>, then words as they were first seen."""
        return list(self.ids)

    def tokens(self) -> np.ndarray:
        """Ids (N,) of the whole text, without a copy."""
        return np.frombuffer(self._tokens, dtype=np.int32)


def read_text(sentences: Iterable[Sequence[str]]) -> Text:
    """Sentences, each its words in order. Raises DataError (`no_text`) without a single word."""
    text = Text()
    for words in sentences:
        if words:
            text.add(words)
    if not text.sentences:
        raise DataError("the text has no words", fix="give sentences, one per line", reason="no_text")
    return text


def count_ngrams(text: Text, order: int, told: Callable[[int], None] = lambda n: None) -> list[Level]:
    """The levels of order 1 to `order`; an n-gram lies within one sentence, its marks included.

    `told(n)` is called when order n is done. An order that no sentence is long enough for has an empty level.
    """
    tokens = text.tokens()
    count = np.bincount(tokens, minlength=len(text.ids)).astype(np.int64)
    zeros = np.zeros(len(count), np.int32)
    words = np.arange(len(count), dtype=np.int32)
    levels = [Level(zeros, zeros, words, count, words == 1)]
    told(1)
    left = _words_left(tokens)
    rows = tokens  # of the n-gram that begins here, in the level below
    for n in range(2, order + 1):
        keys, count, first = _distinct(rows, tokens, left, n)
        context, word = (keys >> 32).astype(np.int32), (keys & 0xFFFFFFFF).astype(np.int32)
        suffix = rows[first + 1]
        levels.append(Level(context, suffix, word, count, levels[-1].at_start[context]))
        if n < order:
            rows = _rows(keys, rows, tokens, left, n)
        told(n)
    return levels


def _words_left(tokens: np.ndarray) -> np.ndarray:
    """How many tokens there are from each position to the end of its sentence, itself included; at most 127."""
    ends = np.flatnonzero(tokens == 2)
    left = np.empty(len(tokens), np.int8)
    start = 0
    for first in range(0, len(ends), 1 << 16):
        some = ends[first : first + (1 << 16)]
        lengths = np.diff(some, prepend=start - 1)
        left[start : some[-1] + 1] = np.minimum(np.repeat(some, lengths) - np.arange(start, some[-1] + 1) + 1, 127)
        start = int(some[-1]) + 1
    return left


def _distinct(rows: np.ndarray, tokens: np.ndarray, left: np.ndarray, n: int) -> tuple[np.ndarray, ...]:
    """Sorted keys (K,) of the n-grams of the text, their counts, and where each stands first."""
    keys, count, first = (np.empty(0, np.int64) for _ in range(3))
    for start in range(0, len(tokens), CHUNK):
        places = start + np.flatnonzero(left[start : start + CHUNK] >= n)
        new, at, times = np.unique(_keys(rows, tokens, places, n), return_index=True, return_counts=True)
        if not len(keys):
            keys, count, first = new, times, places[at]
            continue
        merged, where = np.unique(np.concatenate([keys, new]), return_inverse=True)
        total = np.zeros(len(merged), np.int64)
        earliest = np.empty(len(merged), np.int64)
        total[where[: len(keys)]] = count
        np.add.at(total, where[len(keys) :], times)
        earliest[where[len(keys) :]] = places[at]
        earliest[where[: len(keys)]] = first
        keys, count, first = merged, total, earliest
    return keys, count, first


def _rows(keys: np.ndarray, rows: np.ndarray, tokens: np.ndarray, left: np.ndarray, n: int) -> np.ndarray:
    """For every position the row of its n-gram in the level of order n; 0 where there is none."""
    found = np.zeros(len(tokens), np.int32)
    for start in range(0, len(tokens), CHUNK):
        places = start + np.flatnonzero(left[start : start + CHUNK] >= n)
        found[places] = np.searchsorted(keys, _keys(rows, tokens, places, n))
    return found


def _keys(rows: np.ndarray, tokens: np.ndarray, places: np.ndarray, n: int) -> np.ndarray:
    """One number for each n-gram: the row of its first n - 1 words, and its last word."""
    return (rows[places].astype(np.int64) << 32) | tokens[places + n - 1]
