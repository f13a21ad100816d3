"""Errors that say what was given, what is possible, and the fix; each kind has its own exit code."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# What moves a cursor, colours a terminal or turns its text around: C0, DEL, C1, line separators, directions of text.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def printable(text: str, keep: str = "") -> str:
    """Foreign text for a terminal: its control characters as escapes (`\\u001b`, which JSON reads too), all else as it
    is; `keep`: control characters that may pass.

    File names, transcripts and cells of tables come from strangers, and a terminal obeys what is printed.
    """
    return _CONTROLS.sub(lambda match: match[0] if match[0] in keep else f"\\u{ord(match[0]):04x}", text)


class AsrkitError(Exception):
    """Base of all errors that asrkit raises on purpose.

    `str(error)` is one line: what was given, what is possible, the fix. `reason` is a short stable code for
    reports and tests (`unknown_encoder`, `truncated`, ...); `exit_code` is what the command line returns.
    """

    exit_code = 1

    def __init__(self, what: str, *, possible: str | None = None, fix: str | None = None, reason: str = "") -> None:
        self.what, self.possible, self.fix, self.reason = what, possible, fix, reason
        parts = [what.rstrip(".")]
        if possible:
            parts.append(f"possible: {possible.rstrip('.')}")
        if fix:
            parts.append(f"fix: {fix.rstrip('.')}")
        super().__init__(printable("; ".join(parts).replace("\n", " ")))


class RecipeError(AsrkitError):
    """A recipe, an option or a combination of them that cannot work (exit 2)."""

    exit_code = 2


class DataError(AsrkitError):
    """Audio, text or tables that are missing or not what they should be (exit 3)."""

    exit_code = 3


class AudioError(DataError):
    """One clip that cannot be used; `reason` says why (`missing`, `empty_file`, `not_audio`, ...)."""


class NumericError(AsrkitError):
    """Training met numbers that cannot be trained on (exit 4)."""

    exit_code = 4


class StorageError(AsrkitError):
    """Something could not be read from or written to disk (exit 5)."""

    exit_code = 5


class InUseError(AsrkitError):
    """Another process holds the run folder (exit 6)."""

    exit_code = 6


class TrustError(AsrkitError):
    """Foreign content that would run code or leave its folder (exit 7)."""

    exit_code = 7


class StoppedError(AsrkitError):
    """Stopped by a signal with a checkpoint saved; the same command goes on (exit 75)."""

    exit_code = 75


def nearest(name: str, names: Iterable[str]) -> str:
    """The options as text, with the nearest one first in mind: "none, layer_norm (did you mean 'layer_norm'?)"."""
    names = sorted(names)
    lower = {option.lower(): option for option in names}
    close = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    hint = f" (did you mean {lower[close[0]]!r}?)" if close else ""
    return ", ".join(names) + hint
