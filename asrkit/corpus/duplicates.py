"""One utterance for each id of a table."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from asrkit.corpus.data_report import DataReport
from asrkit.corpus.utterances import Utterance
from asrkit.errors import DataError


def without_duplicates(found: Iterable[tuple[int, Utterance]], table: Path, report: DataReport) -> dict[int, Utterance]:
    """(line, utterance) pairs to line -> utterance, one for each id; the others are reported as `duplicate`.

    Rows that differ only in other cells (votes, segment, variant) are the same row too: whatever their order, the one
    with more filled cells stays, and of equally full ones the one whose cells sort first.

    Raises DataError for two rows of one id that differ (`conflicting_rows`) and for no rows at all (`empty_table`).
    """
    places: dict[str, int] = {}
    kept: list[tuple[int, Utterance]] = []
    for line, utterance in found:
        place = places.setdefault(utterance.id, len(kept))
        if place == len(kept):
            kept.append((line, utterance))
            continue
        first, other = kept[place]
        if other != utterance:
            raise DataError(
                f"{table.name}:{line} and line {first} disagree about {utterance.id!r}",
                fix="keep one of the two rows",
                reason="conflicting_rows",
            )
        if _fullness(utterance) < _fullness(other):
            kept[place] = (line, utterance)
            line, utterance, first = first, other, line
        report.exclude(utterance, "duplicate", line=line, first_line=first)
    if not kept:
        raise DataError(f"{table.name}: no rows for this split", reason="empty_table")
    return dict(kept)


def _fullness(utterance: Utterance) -> tuple[int, list[tuple[str, str]]]:
    """The less, the fuller are the other cells of the row."""
    return -sum(map(bool, utterance.extra.values())), sorted(utterance.extra.items())
