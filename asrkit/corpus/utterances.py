"""What every corpus reader yields: utterances, and the other cells of their rows in little memory."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


class Cells(Mapping[str, str]):
    """The cells of a row by column name, as a read-only mapping; an absent column is a KeyError, an empty cell "".

    One tuple of names is shared by all rows and equal cells by all of their rows: a dict for each of 360,000 rows
    would take several times the memory.
    """

    __slots__ = ("_names", "_values")

    def __init__(self, names: tuple[str, ...] = (), values: Iterable[str] = ()) -> None:
        self._names = names
        # Python shares the shortest by itself; what is as long as a sha256 (sentence_id) is unique.
        self._values = tuple([sys.intern(value) if 1 < len(value) < 64 else value for value in values])
        if len(self._names) != len(self._values):
            raise ValueError(f"{len(self._names)} names for {len(self._values)} values")

    def __getitem__(self, name: str) -> str:
        try:
            return self._values[self._names.index(name)]
        except ValueError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __hash__(self) -> int:
        return hash((self._names, self._values))

    def __repr__(self) -> str:
        return f"Cells({dict(self)})"


NO_CELLS = Cells()


@dataclass(frozen=True, slots=True)
class Utterance:
    """One stretch of speech and what was said.

    id is a name within its split; the same id in another split says nothing. text is the sentence as the corpus has it,
    in Unicode NFC; speaker is "" where unknown. start and end are seconds in the audio file (end None: to its end);
    seconds is the duration that the corpus claims, None where it claims none. extra has the other columns of the row
    (Common Voice: age, gender, accents, variant, segment, sentence_id, up_votes, ...); it does not count when
    utterances are compared.
    """

    id: str
    audio: Path
    text: str
    speaker: str
    split: str
    start: float = 0.0
    end: float | None = None
    seconds: float | None = None
    extra: Mapping[str, str] = field(default=NO_CELLS, compare=False, repr=False)


def claim_seconds(utterance: Utterance, seconds: float | None) -> None:
    """Write the duration that the corpus claims into an utterance that its reader has just made.

    For readers only: a copy of each of 360,000 utterances takes seconds.
    """
    object.__setattr__(utterance, "seconds", seconds)


@contextmanager
def paused_collector() -> Iterator[None]:
    """No garbage collection while a table is read: nothing in it is garbage, and looking for some costs a fifth."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
