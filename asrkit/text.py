"""Text: the rules that turn a transcript into what the model should write, and the door to the tokenizers.

Rules (`Spanish`, `Verbatim`) say what a sentence looks like after normalization and never drop a character that they do
not name; tokenizers (`asrkit.tokenizers`) turn that text into label ids and back, with the blank always at id 0.
"""

from __future__ import annotations

import inspect
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from asrkit import registry
from asrkit.errors import RecipeError, nearest
from asrkit.subwords import SentencePieceTokenizer
from asrkit.tokenizers import CharacterTokenizer, SymbolTokenizer, Tokenizer

__all__ = [
    "CharacterTokenizer",
    "SentencePieceTokenizer",
    "Spanish",
    "SymbolTokenizer",
    "TextRules",
    "Tokenizer",
    "Verbatim",
    "fit_tokenizer",
]

# Marks that are not spoken. What a reader would say (%, &, +, =, /, @, º, €, digits) is left for the alphabet check.
PUNCTUATION = '.,;:?!¿¡…"«»“”„‟‹›()[]{}_-\u2010\u2011\u2012\u2013\u2014\u2015'
APOSTROPHES = "'\u2018\u2019\u201a\u201b\u02bc"
INVISIBLE = "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"


class TextRules(Protocol):
    """What a class of the kind `text` offers: a function from sentence to text, and the alphabet it aims at.

    Calling it twice changes nothing more. `alphabet` is None where the alphabet comes from the train split.
    """

    alphabet: str | None

    def __call__(self, text: str) -> str: ...


class Spanish:
    """Spanish as it is spoken: lower case letters and single spaces.

    In this order:

    1. Unicode NFC, so that `n` + U+0303 is the one letter `ñ`.
    2. Lower case. Accents, `ñ` and `ü` are kept: they carry sound and meaning.
    3. Removed: apostrophes and single quotes (' ‘ ’ ‚ ‛ ʼ), soft hyphen, zero-width characters, directional marks.
    4. Turned into a space: . , ; : ? ! ¿ ¡ … " « » “ ” „ ‟ ‹ › ( ) [ ] { } _ and hyphens and dashes (- ‐ ‑ ‒ – — ―).
    5. Any run of white space is one space; none at either end. NFC again.

    All other characters stay as they are: digits, % & + = / @ # $ € º ª, foreign letters. They are outside `alphabet`,
    so that the tokenizer's check names and counts them instead of this function losing them.
    """

    asrkit_api = 1
    alphabet: str | None = " abcdefghijklmnopqrstuvwxyzáéíñóúü"

    _table = str.maketrans(dict.fromkeys(PUNCTUATION, " ") | dict.fromkeys(APOSTROPHES + INVISIBLE, ""))

    def __call__(self, text: str) -> str:
        """The normalized text of one sentence; may be empty."""
        text = unicodedata.normalize("NFC", text).lower().translate(self._table)
        return unicodedata.normalize("NFC", " ".join(text.split()))


class Verbatim:
    """The text as written: Unicode NFC, runs of white space become one space, none at either end. Nothing else.

    For phone strings, other languages, and text that was normalized before. The alphabet comes from the train split.
    """

    asrkit_api = 1
    alphabet: str | None = None

    def __call__(self, text: str) -> str:
        """The text of one sentence; may be empty."""
        return unicodedata.normalize("NFC", " ".join(text.split()))


def fit_tokenizer(
    name: str, texts: Iterable[str], options: Mapping[str, Any] | None = None, rules: TextRules | None = None
) -> Tokenizer:
    """The tokenizer registered as `name`, fitted to the normalized texts of the train split only.

    `options` are the keyword arguments of the tokenizer's `fit`. A tokenizer that takes an `alphabet` gets that of
    `rules` unless `options` has one; `alphabet: null` asks for the characters of the train split. Raises RecipeError
    for an unknown name, an unknown option or one that is missing.
    """
    cls = registry.load("tokenizers", name)
    given = dict(options or {})
    parameters = dict(list(inspect.signature(cls.fit).parameters.items())[1:])  # the first one takes the texts
    if "alphabet" in parameters and rules is not None:
        given.setdefault("alphabet", rules.alphabet)
    unknown = sorted(given.keys() - parameters.keys())
    if unknown:
        possible = ", ".join(nearest(option, parameters) for option in unknown) if parameters else "no options at all"
        raise RecipeError(
            f"tokenizer {name!r} has no option {', '.join(map(repr, unknown))}",
            possible=possible,
            reason="unknown_option",
        )
    missing = [key for key, p in parameters.items() if p.default is inspect.Parameter.empty and key not in given]
    if missing:
        raise RecipeError(
            f"tokenizer {name!r} needs the option {', '.join(map(repr, missing))}",
            possible=", ".join(parameters),
            reason="missing_option",
        )
    return cls.fit(texts, **given)
