"""Nested subsets of a corpus by hours: `data.hours=10` is contained in 50, and that in 100.

The rule, so that anyone can rebuild a subset from the table alone:

1. A speaker's clips are ordered by sha256 of the JSON list [subset seed, "clip", clip id] (Python's `json.dumps`).
2. Speakers are ordered by sha256 of [subset seed, "speaker", name]. A clip of unknown speaker is a speaker of its own,
   ordered by the hash of rule 1.
3. Round k takes the k-th clip of every speaker that has one, in the order of the speakers.
4. The subset is the shortest beginning of this sequence that holds the hours asked for.

So the order of rows, PYTHONHASHSEED and the training seed change nothing; two speakers differ by one clip at most
unless one has no more; and all subsets of one seed are beginnings of one sequence, which is why they are nested.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from asrkit.errors import DataError, RecipeError

if TYPE_CHECKING:
    from asrkit.corpus import Utterance

FIRST_TYPICAL, MIN_TYPICAL = 5.0, 0.5  # seconds a clip, for how many clips are fetched at a time
Seconds = Callable[["Utterance"], float]


def subset(
    utterances: Sequence[Utterance],
    hours: float | None,
    seed: int = 0,
    seconds: Seconds | None = None,
    fetch: Callable[[list[Utterance]], None] | None = None,
) -> list[Utterance]:
    """The utterances of the first `hours` of the sequence above, in the order in which they were given; None: all.

    The last clip may go over the hours, by its own length at most. `seconds` gives an utterance's length; the default
    is `clip_seconds`. It is asked only until the hours are full. `fetch` brings clips whose length the corpus does not
    claim to the disk, some at a time (an archive's). Ids must differ, as they do within a split. Raises RecipeError for
    hours that are no positive number (`hours`), DataError where there are fewer (`too_few_hours`).
    """
    if hours is None:
        return list(utterances)
    if isinstance(hours, bool) or not isinstance(hours, int | float) or not 0 < hours < math.inf:
        raise RecipeError(f"data.hours is {hours!r}", possible="hours > 0, or null for all", reason="hours")
    measure = seconds or clip_seconds
    wanted, total = hours * 3600, 0.0
    order = sequence(utterances, seed)
    taken = there = 0
    while taken < len(order) and total < wanted:
        utterance = utterances[order[taken]]
        if fetch and taken >= there and utterance.seconds is None:
            typical = max(total / taken, MIN_TYPICAL) if taken else FIRST_TYPICAL
            there = taken + math.ceil((wanted - total) / typical)
            fetch([utterances[place] for place in order[taken:there]])
        total += measure(utterance)
        taken += 1
    if total < wanted:
        raise DataError(
            f"data.hours is {hours:g}, but these {len(utterances)} clips hold {total / 3600:.3f} hours",
            fix="ask for fewer, or for all with --data.hours=null",
            reason="too_few_hours",
        )
    return [utterances[place] for place in sorted(order[:taken])]


def sequence(utterances: Sequence[Utterance], seed: int = 0) -> list[int]:
    """Positions of all utterances in the order in which subsets take them (rules 1 to 3)."""
    owners = {name: _hash(seed, "speaker", name) for name in {u.speaker for u in utterances} - {""}}
    speakers: dict[str, list[tuple[str, int]]] = {}
    for position, utterance in enumerate(utterances):
        clip = _hash(seed, "clip", utterance.id)
        speakers.setdefault(owners.get(utterance.speaker, clip), []).append((clip, position))
    rounds = [
        (turn, owner, position) for owner, clips in speakers.items() for turn, (_, position) in enumerate(sorted(clips))
    ]
    return [position for _, _, position in sorted(rounds)]


def clip_seconds(utterance: Utterance) -> float:
    """Seconds that the corpus claims; where it claims none, those that the audio file's header does.

    A file that cannot be opened counts 0 seconds: it takes none of the hours, and preparing it gives the reason.
    """
    if utterance.seconds is not None:
        return utterance.seconds
    total, _ = header(utterance.audio)
    end = total if utterance.end is None else min(utterance.end, total)
    return max(0.0, end - utterance.start)


def header(audio: Path) -> tuple[float, int]:
    """Seconds and sample rate of an audio file by its header, without decoding it; zeros where it says nothing."""
    import soundfile

    from asrkit.audio.soundfile_reader import quiet_decoders

    try:
        with quiet_decoders():
            found = soundfile.info(str(audio))
    except (soundfile.LibsndfileError, OSError, TypeError):
        return 0.0, 0
    frames, rate = int(found.frames), int(found.samplerate)
    return (frames / rate if 0 < frames < 1 << 62 and rate else 0.0), rate


def _hash(seed: int, kind: str, name: str) -> str:
    return hashlib.sha256(json.dumps([seed, kind, name]).encode()).hexdigest()
