"""The words that a search may write, and their spellings in labels as a tree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from asrkit.disk import unreadable
from asrkit.errors import DataError, RecipeError
from asrkit.lm.counts import SPECIAL
from asrkit.lm.kenlm import flashlight
from asrkit.tokenizers import Tokenizer


def space_label(tokenizer: Tokenizer) -> int | None:
    """The id of the label that stands between words; None of a tokenizer that has none."""
    return tokenizer.labels.index(" ") if " " in tokenizer.labels else None


def read_lexicon(path: Path) -> list[str]:
    """The words of a file, one a line; what follows a word on its line (its spelling, a count) is not looked at.

    Raises DataError: `missing_lexicon`, `not_utf8`, `no_words`.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file", fix="give a file with one word a line", reason="missing_lexicon")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8", fix="convert it first", reason="not_utf8") from error
    except OSError as error:
        raise unreadable(error, path) from error
    words = list(dict.fromkeys(line.split()[0] for line in lines if line.strip()))
    if not words:
        raise DataError(f"{path} has no words", fix="give a file with one word a line", reason="no_words")
    return words


def spellings(words: Iterable[str], tokenizer: Tokenizer, source: str) -> dict[str, list[int]]:
    """Word -> its labels and the space after it; words that the labels cannot write are left out.

    Raises RecipeError (`no_space`) for a tokenizer without a space, DataError (`no_words`) if no word is left.
    """
    space = space_label(tokenizer)
    if space is None:
        raise RecipeError(
            f"words of {source} cannot be spelled by the {tokenizer.name} tokenizer, which has no label for the space",
            fix="build a language model of its labels: asrkit lm build TEXT --model RUN --unit labels",
            reason="no_space",
        )
    words = [word for word in words if word not in SPECIAL]
    found = {word: [*tokenizer.encode(word), space] for word in words if not tokenizer.unknown(word)}
    if not found:
        raise DataError(
            f"{source}: none of its {len(words)} words can be written with the labels of the model",
            fix="build it with the text rules of the model: asrkit lm build TEXT --model RUN",
            reason="no_words",
        )
    return found


def spelling_tree(spelled: list[list[int]], scores: list[float], labels: int, root: int) -> Any:
    """The tree of all spellings; each node knows the best score below it, so that the search hears of a likely word at
    its first letter."""
    decoder = flashlight("decoder")
    tree = decoder.Trie(labels, root)
    for index, (spelling, score) in enumerate(zip(spelled, scores, strict=True)):
        tree.insert(spelling, index, score)
    tree.smear(decoder.SmearingMode.MAX)
    return tree


def check_hot_words(hot: Mapping[str, float], tokenizer: Tokenizer) -> None:
    """Raises RecipeError (`hot_word`) for one that is no single word of the model's labels."""
    for word in hot:
        unknown = tokenizer.unknown(word) if word.strip() else []
        if not word.strip() or len(word.split()) != 1 or unknown:
            why = f"it has {', '.join(map(repr, unknown))}" if unknown else "it is not one word"
            raise RecipeError(
                f"hot word {word!r}: {why}", fix="write it as the model writes text, in lower case", reason="hot_word"
            )
