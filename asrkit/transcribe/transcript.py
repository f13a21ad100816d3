"""What was heard: words with their times, and the transcript of one input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from asrkit.errors import AsrkitError, RecipeError, nearest
from asrkit.transcribe.formats import FORMATS


@dataclass(frozen=True)
class Word:
    """One word with its start and end in seconds and its confidence, the mean posterior of its labels in [0, 1]."""

    word: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True)
class Transcript:
    """What was heard in one input. `status` is "ok", or the reason code of the error that `message` states with its
    fix.

    `seconds` is the duration of the input; words are in the order of time. Silence is ok and has no text; the message
    then gives its peak.
    """

    source: str
    text: str
    words: tuple[Word, ...] = ()
    seconds: float = 0.0
    status: str = "ok"
    message: str = ""

    @classmethod
    def failed(cls, source: str, error: AsrkitError, text: str = "") -> Self:
        """For an input of which nothing was made: the error's reason is the status, the message says the fix too."""
        message = f"{error.what}; fix: {error.fix}" if error.fix else error.what
        return cls(source, text, status=error.reason or "error", message=message)

    def to(self, form: str) -> str:
        """The transcript as `txt`, `srt`, `vtt`, `tsv`, `json`, `jsonl`, `ctm` or `TextGrid` (formats.py).

        Raises RecipeError (`format`) for any other.
        """
        write = FORMATS.get(form)
        if write is None:
            raise RecipeError(f"format {form!r}", possible=nearest(form, FORMATS), reason="format")
        return write(self)
