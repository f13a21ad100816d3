"""KenLM as it comes inside flashlight-text: the reader of ARPA and binary files that the beam search asks."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from asrkit.errors import DataError, RecipeError
from asrkit.lm.arpa import is_kenlm_binary, read_unigrams

KENLM_ORDER = 6  # what flashlight-text's wheels are compiled for


def flashlight(module: str) -> Any:
    """A module of flashlight-text, such as `decoder`; RecipeError with the install line where it is not installed."""
    import importlib

    try:
        return importlib.import_module(f"flashlight.lib.text.{module}")
    except ImportError as error:
        raise RecipeError(
            f"the beam decoder needs flashlight-text ({error})", fix="pip install 'asrkit[lm]'", reason="missing_extra"
        ) from error


def lm_words(path: Path) -> dict[str, float] | None:
    """log10 p by word of an ARPA file, marks included; None of a KenLM binary, which does not say its words.

    Raises DataError for what is neither, RecipeError (`lm_order`) for n-grams that KenLM cannot read here.
    """
    if is_kenlm_binary(path):
        return None
    unigrams = read_unigrams(path)
    if not 2 <= unigrams.order <= KENLM_ORDER:
        raise RecipeError(
            f"{path} has n-grams up to order {unigrams.order}",
            possible=f"2 to {KENLM_ORDER}, what KenLM inside flashlight-text is compiled for",
            fix=f"build it with --order {min(max(unigrams.order, 2), KENLM_ORDER)}",
            reason="lm_order",
        )
    return unigrams.log_probs


def load_kenlm(path: Path, entries: Sequence[str]) -> Any:
    """A flashlight KenLM that scores `entries` by their index, in log10; an entry that it does not know as <unk>.

    Raises DataError (`not_arpa`) with what KenLM says about the file.
    """
    flashlight("decoder")
    dictionary = flashlight("dictionary").Dictionary()
    for entry in entries:
        dictionary.add_entry(entry)
    try:
        with _quiet():
            return flashlight("decoder.kenlm").KenLM(str(path), dictionary)
    except RuntimeError as error:
        said = " ".join(str(error).splitlines()[-1:])
        raise DataError(
            f"{path}: {said}", fix="build it again, or copy it whole: it may be cut off", reason="not_arpa"
        ) from error


_stderr = threading.Lock()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """KenLM draws its own progress bar on file descriptor 2; it is dropped."""
    with _stderr:
        try:
            saved = os.dup(2)
        except OSError:  # a process without stderr has nothing to keep clean
            yield
            return
        sys.stderr.flush()
        with tempfile.TemporaryFile() as nowhere:
            os.dup2(nowhere.fileno(), 2)
            try:
                yield
            finally:
                os.dup2(saved, 2)
                os.close(saved)
