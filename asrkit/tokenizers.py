"""Tokenizers: normalized text <-> label ids, blank always 0, over closed sets of characters or symbols.

A tokenizer is data: `to_config` and `files` go into a model bundle, `from_files` builds it again and checks the
fingerprint. Subword pieces are in `asrkit.subwords`.
"""

from __future__ import annotations

import hashlib
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from asrkit.errors import DataError, RecipeError, StorageError, nearest

BLANK = "<blank>"
BLANK_IN_FILE = "<blk>"  # the name that sherpa-onnx and icefall look for
SPACE_MARK = "▁"  # U+2581, how the space is written where a space would not show


def name_symbols(symbols: Iterable[str], limit: int = 20) -> str:
    """Symbols for a message, the most frequent first: `'à' (U+00E0) 4 times, 'ç' (U+00E7) once`."""
    counts = sorted(Counter(symbols).items(), key=lambda item: (-item[1], item[0]))
    words = []
    for symbol, count in counts[:limit]:
        code = f" (U+{ord(symbol):04X})" if len(symbol) == 1 else ""
        words.append(f"{symbol!r}{code} {'once' if count == 1 else f'{count} times'}")
    if len(counts) > limit:
        words.append(f"and {len(counts) - limit} more")
    return ", ".join(words)


class Tokenizer(ABC):
    """Contract of the kind `tokenizers`; a guest may inherit from it or only offer the same names.

    `labels` has V entries, `labels[0]` is the blank. Texts are normalized (see `asrkit.text`) before they come here.
    """

    asrkit_api = 1
    name: str
    labels: list[str]
    separator = " "  # between the words of a decoded text

    @property
    def size(self) -> int:
        """V: the number of labels, blank included."""
        return len(self.labels)

    @abstractmethod
    def unknown(self, text: str) -> list[str]:
        """Every occurrence, in order, of a symbol of `text` that has no label; empty if `text` can be encoded."""

    @abstractmethod
    def _encode(self, text: str) -> list[int]:
        """The ids of a text without unknown symbols."""

    @abstractmethod
    def _decode(self, ids: list[int]) -> str:
        """The text of valid ids without blanks."""

    @abstractmethod
    def _starts_word(self, label: int) -> bool:
        """Whether this label begins a new word."""

    @abstractmethod
    def files(self) -> dict[str, bytes]:
        """File name -> content: all that is needed to build the tokenizer again."""

    @classmethod
    @abstractmethod
    def _from_bytes(cls, content: bytes) -> Self:
        """The tokenizer of the one file that `files` gives."""

    def encode(self, text: str) -> list[int]:
        """Label ids (L,), never 0. Raises DataError (`unknown_character`) naming the symbols that have no label."""
        unknown = self.unknown(text)
        if unknown:
            raise DataError(
                f"no label for {name_symbols(unknown)} in {text!r}",
                possible=f"the {self.size - 1} labels of the {self.name} tokenizer",
                fix="apply the text rules first, or drop or map these symbols",
                reason="unknown_character",
            )
        return self._encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of label ids (L,) that are already collapsed: no repeats, no blanks.

        Raises DataError (`label_id`) for a blank or an id outside 1..V-1.
        """
        ids = [int(i) for i in ids]
        wrong = [i for i in ids if not 0 < i < self.size]
        if wrong:
            raise DataError(
                f"label id {wrong[0]} cannot be decoded",
                possible=f"1 to {self.size - 1} (0 is the blank)",
                fix="collapse repeats and remove blanks first",
                reason="label_id",
            )
        return self._decode(ids)

    def word_spans(self, ids: Sequence[int]) -> list[tuple[str, int, int]]:
        """The words of label ids (L,) with the positions they cover: (word, first, one past the last)."""
        spans: list[list[int]] = []
        for position, label in enumerate(ids):
            if not spans or self._starts_word(int(label)):
                spans.append([position, position])
            spans[-1][1] = position + 1
        words = [(self.decode(ids[start:end]).strip(), start, end) for start, end in spans]
        return [span for span in words if span[0]]

    @property
    def fingerprint(self) -> str:
        """sha256 of the tokenizer's file, as hex digits."""
        return hashlib.sha256(next(iter(self.files().values()))).hexdigest()

    def to_config(self) -> dict[str, Any]:
        """JSON data for a model's config: name, size, fingerprint and the file that belongs to it."""
        return {
            "name": self.name,
            "size": self.size,
            "fingerprint": self.fingerprint,
            "file": next(iter(self.files())),
        }

    @classmethod
    def from_files(cls, config: Mapping[str, Any], files: Mapping[str, bytes]) -> Self:
        """Build it again from `to_config()` and `files()`.

        Raises StorageError: `tokenizer_file` if the file is absent or malformed, `tokenizer_mismatch` if it is not
        the one that the config describes.
        """
        name = str(config.get("file", ""))
        if name not in files:
            raise StorageError(
                f"the {cls.name} tokenizer's file {name!r} is not there",
                possible=nearest(name, files) if files else "no files were given",
                reason="tokenizer_file",
            )
        tokenizer = cls._from_bytes(files[name])
        found = tokenizer.to_config()
        for key in ("size", "fingerprint"):
            if config.get(key) != found[key]:
                raise StorageError(
                    f"{name}: {key} is {found[key]}, the config says {config.get(key)}",
                    fix="restore the file that the model was trained with",
                    reason="tokenizer_mismatch",
                )
        return tokenizer


class _TableTokenizer(Tokenizer):
    """A closed list of symbols, written as `tokens.txt`: one `symbol id` per line, as sherpa-onnx reads it."""

    def __init__(self, symbols: Sequence[str]) -> None:
        for symbol in symbols:
            self._check(symbol)
        if not symbols:
            raise DataError(
                f"the {self.name} tokenizer has no symbols", fix="give texts or symbols", reason="no_symbols"
            )
        self.labels = [BLANK, *symbols]
        self._ids = {symbol: i for i, symbol in enumerate(self.labels) if i}
        if len(self._ids) != len(symbols):
            twice = [symbol for symbol, count in Counter(symbols).items() if count > 1]
            raise DataError(f"symbols given twice: {name_symbols(twice)}", reason="duplicate_symbol")

    def _check(self, symbol: str) -> None:
        """Refuse what could not be written to and read from tokens.txt."""
        odd = any((c.isspace() and symbol != " ") or unicodedata.category(c) in ("Cc", "Cs") for c in symbol)
        if odd or not symbol or symbol in (BLANK, BLANK_IN_FILE, SPACE_MARK):
            code = f" (U+{ord(symbol):04X})" if len(symbol) == 1 else ""
            raise DataError(
                f"{symbol!r}{code} cannot be a symbol of the {self.name} tokenizer",
                possible=f"anything but white space, control characters, {BLANK}, {BLANK_IN_FILE} and {SPACE_MARK}",
                fix="normalize the texts, or map it to something else",
                reason="bad_symbol",
            )

    def files(self) -> dict[str, bytes]:
        """`tokens.txt`."""
        written = [BLANK_IN_FILE, *self.labels[1:]]
        lines = [f"{SPACE_MARK if symbol == ' ' else symbol} {i}\n" for i, symbol in enumerate(written)]
        return {"tokens.txt": "".join(lines).encode()}

    @classmethod
    def _from_bytes(cls, content: bytes) -> Self:
        symbols = []
        try:
            lines = content.decode().removesuffix("\n").split("\n")
        except UnicodeDecodeError as error:
            raise StorageError("tokens.txt is not UTF-8", reason="tokenizer_file") from error
        for number, line in enumerate(lines):
            symbol, _, label = line.rpartition(" ")
            if label != str(number) or (symbol == BLANK_IN_FILE) != (number == 0):
                raise StorageError(
                    f"tokens.txt:{number + 1}: {line!r} is not 'symbol {number}'",
                    possible=f"{BLANK_IN_FILE} 0 first, then ids in order",
                    reason="tokenizer_file",
                )
            symbols.append(" " if symbol == SPACE_MARK else symbol)
        return cls(symbols[1:])


class CharacterTokenizer(_TableTokenizer):
    """One label per character (Unicode code point after NFC), the space among them; sorted, closed."""

    name = "characters"

    def __init__(self, alphabet: Iterable[str]) -> None:
        if not isinstance(alphabet, str):
            alphabet = "".join(unicodedata.normalize("NFC", part) for part in alphabet)
        super().__init__(sorted(set(unicodedata.normalize("NFC", alphabet))))

    @classmethod
    def fit(cls, texts: Iterable[str], alphabet: Iterable[str] | None = None) -> Self:
        """The given alphabet, or else the characters of the texts; the order never depends on hashing."""
        return cls(texts if alphabet is None else alphabet)

    def unknown(self, text: str) -> list[str]:
        """Every character of `text` that is outside the alphabet, in order. A decomposed letter (NFD) is outside."""
        return [character for character in text if character not in self._ids]

    def _encode(self, text: str) -> list[int]:
        return [self._ids[character] for character in text]

    def _decode(self, ids: list[int]) -> str:
        return "".join(self.labels[i] for i in ids)

    def _starts_word(self, label: int) -> bool:
        return self.labels[label] == " "

    def word_spans(self, ids: Sequence[int]) -> list[tuple[str, int, int]]:
        """The words of label ids (L,) with the positions of their letters: (word, first, one past the last)."""
        spans = []
        for word, start, end in super().word_spans(ids):
            spans.append((word, start + (self.labels[int(ids[start])] == " "), end))
        return spans


class SymbolTokenizer(_TableTokenizer):
    """One label per symbol of a text whose symbols stand between white space (phones: `vcl d r aa cl p`)."""

    name = "symbols"

    def __init__(self, symbols: Iterable[str]) -> None:
        super().__init__([unicodedata.normalize("NFC", symbol) for symbol in symbols])

    def _check(self, symbol: str) -> None:
        super()._check("" if symbol == " " else symbol)

    @classmethod
    def fit(cls, texts: Iterable[str], order: str = "sorted", symbols: str | Iterable[str] | None = None) -> Self:
        """The given `symbols` (a list, or a text with white space between), or else those of the texts.

        These are `sorted`, or in the order `first_seen`.
        """
        if symbols is not None:
            return cls(symbols.split() if isinstance(symbols, str) else symbols)
        seen = list(dict.fromkeys(symbol for text in texts for symbol in text.split()))
        if order not in ("sorted", "first_seen"):
            raise RecipeError(
                f"order {order!r} of symbols",
                possible=nearest(order, ("sorted", "first_seen")),
                reason="unknown_option",
            )
        return cls(sorted(seen) if order == "sorted" else seen)

    def unknown(self, text: str) -> list[str]:
        """Every symbol of `text` that has no label, in order."""
        return [symbol for symbol in text.split() if symbol not in self._ids]

    def _encode(self, text: str) -> list[int]:
        return [self._ids[symbol] for symbol in text.split()]

    def _decode(self, ids: list[int]) -> str:
        return " ".join(self.labels[i] for i in ids)

    def _starts_word(self, label: int) -> bool:
        return True
