"""The few clips of a split that the checks look at: those that can be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from asrkit.batching import Batch, collate
from asrkit.diagnostics.floor import evenly
from asrkit.errors import AsrkitError, DataError
from asrkit.preparation.splits import Split

TRIES = 40  # neighbours by length of a clip that cannot be read: with so many broken ones it is not the clip


def middle_clips(split: Split, clips: int) -> Batch:
    """So many clips of middle length."""
    first = max(0, len(split) // 2 - clips // 2)
    return _batch(split, range(first, min(first + clips, len(split))))


def some_clips(split: Split, clips: int) -> Batch:
    """So many clips, evenly from the shortest to the longest."""
    return _batch(split, evenly(list(range(len(split))), clips))


def _batch(split: Split, places: Sequence[int]) -> Batch:
    """The clips at these places of the split sorted by length; in place of one that cannot be read, which training
    leaves out as well, one of about its length. Raises DataError (`unreadable`) where there is none."""
    order, used = sorted(range(len(split)), key=split.frames.__getitem__), set(places)
    return collate([_readable(split, order, place, used) for place in places])


def _readable(split: Split, order: Sequence[int], place: int, used: set[int]) -> Any:
    why = ""
    for other in [place, *(place + step * sign for step in range(1, TRIES) for sign in (1, -1))]:
        if not 0 <= other < len(order) or (other != place and other in used):
            continue
        try:
            item = split[order[other]]
        except AsrkitError:
            raise
        except Exception as error:
            why = why or f"{type(error).__name__}: {error}"
            continue
        used.add(other)
        return item
    identity = split.utterances[order[place]].id
    raise DataError(
        f"neither {identity} nor its neighbours by length can be read ({why})", reason="unreadable",
        fix="look at the corpus with `asrkit data check`",
    )  # fmt: skip
