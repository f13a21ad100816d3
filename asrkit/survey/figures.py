"""The figures of one split: histograms, groups of speakers, the alphabet, repeated sentences, odd clips."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

import numpy as np

from asrkit.corpus import Utterance
from asrkit.corpus.selection import split_hash
from asrkit.survey.audio import AudioFigures

LENGTH_EDGES = tuple(float(second) for second in range(21))
RATE_EDGES = tuple(float(rate) for rate in range(0, 41, 2))
CLIP_EDGES = (1.0, 2.0, 3.0, 6.0, 11.0, 21.0, 51.0, 101.0, 201.0, 501.0, 1001.0)
AGES = ("teens", "twenties", "thirties", "fourties", "fifties", "sixties", "seventies", "eighties", "nineties")
TOP = 10  # repeated sentences, fastest and slowest clips


@dataclass
class Histogram:
    """counts[i] values lie in edges[i] <= x < edges[i + 1]; the last count has all from the last edge upward.

    low, median, high: the values at 5, 50 and 95 %; None where there are no values.
    """

    edges: list[float]
    counts: list[int]
    low: float | None = None
    median: float | None = None
    high: float | None = None

    @property
    def even(self) -> bool:
        """Whether all bins have one width; the others count whole numbers."""
        return len({b - a for a, b in pairwise(self.edges)}) == 1

    @classmethod
    def of(cls, values: Iterable[float], edges: Sequence[float]) -> Histogram:
        """The histogram of values of which none is below edges[0]."""
        array = np.fromiter(values, dtype=np.float64)
        counts = np.bincount(np.searchsorted(edges, array, side="right") - 1, minlength=len(edges)).tolist()
        if not len(array):
            return cls(list(edges), counts)
        return cls(list(edges), counts, *(float(x) for x in np.quantile(array, [0.05, 0.5, 0.95])))


@dataclass
class Group:
    """Kept clips of one accent, gender or age; hours are None where no length is known."""

    clips: int
    speakers: int
    hours: float | None


@dataclass
class SplitFigures:
    """One split. rows = kept + the sum of excluded; all but rows, excluded, alphabet and outside is of the kept clips.

    Texts and characters are those after the text rules. alphabet: how often each character stands in all rows;
    outside: those that the alphabet of the rules does not have. hours: None where no length is known; where
    lengths_known < kept the others count with the mean length, and hours_estimated says so. A clip with several
    accents (`a|b`) counts in each; "" is who did not say. repeated: sentences of several clips, the most frequent.
    """

    rows: int
    kept: int
    excluded: dict[str, int]
    split_hash: str
    speakers: int
    unknown_speaker: int
    hours: float | None
    hours_estimated: bool
    lengths_known: int
    seconds: Histogram
    characters_per_second: Histogram
    clips_per_speaker: Histogram
    sentences: int
    repeated: list[dict[str, Any]]
    alphabet: dict[str, int]
    outside: list[dict[str, Any]]
    accents: dict[str, Group]
    gender: dict[str, Group]
    age: dict[str, Group]
    fastest: list[dict[str, Any]]
    slowest: list[dict[str, Any]]
    audio: AudioFigures


def split_figures(
    kept: Sequence[tuple[Utterance, str]],
    texts: Sequence[str],
    length_of: Callable[[Utterance], float | None],
    alphabet: str | None,
    rows: int,
    excluded: dict[str, int],
    audio: AudioFigures,
) -> SplitFigures:
    """The figures of the kept (utterance, text) of a split; `texts` are those of all its rows."""
    utterances = [utterance for utterance, _ in kept]
    lengths = [length_of(u) for u in utterances]
    known = [seconds for seconds in lengths if seconds is not None]
    mean = fmean(known) if known else None
    hours = [None if mean is None else (mean if seconds is None else seconds) / 3600 for seconds in lengths]
    rated = sorted(
        (
            (len(text) / seconds, u.id, seconds, text)
            for (u, text), seconds in zip(kept, lengths, strict=True)
            if seconds
        ),
    )
    speakers = Counter(u.speaker for u in utterances if u.speaker)
    sentences = Counter(text for _, text in kept)
    characters = Counter("".join(texts))
    repeated = sorted(((n, text) for text, n in sentences.items() if n > 1), key=lambda pair: (-pair[0], pair[1]))
    return SplitFigures(
        rows=rows,
        kept=len(kept),
        excluded=excluded,
        split_hash=split_hash(utterances),
        speakers=len(speakers),
        unknown_speaker=len(utterances) - speakers.total(),
        hours=None if mean is None else sum(h for h in hours if h is not None),
        hours_estimated=0 < len(known) < len(kept),
        lengths_known=len(known),
        seconds=Histogram.of(known, LENGTH_EDGES),
        characters_per_second=Histogram.of((rate for rate, *_ in rated), RATE_EDGES),
        clips_per_speaker=Histogram.of(speakers.values(), CLIP_EDGES),
        sentences=len(sentences),
        repeated=[{"text": text, "clips": n} for n, text in repeated[:TOP]],
        alphabet=dict(sorted(characters.items(), key=lambda pair: (-pair[1], pair[0]))),
        outside=_outside(characters, alphabet),
        accents=_groups(utterances, hours, lambda u: [part.strip() for part in u.extra.get("accents", "").split("|")]),
        gender=_groups(utterances, hours, lambda u: [u.extra.get("gender", "")]),
        age=_groups(utterances, hours, lambda u: [u.extra.get("age", "")]),
        fastest=[_odd(*item) for item in rated[: -TOP - 1 : -1]],
        slowest=[_odd(*item) for item in rated[:TOP]],
        audio=audio,
    )


def _outside(characters: Counter[str], alphabet: str | None) -> list[dict[str, Any]]:
    """The characters that are not in the alphabet, with code point, Unicode name and count, the most frequent first."""
    found = [] if alphabet is None else [(n, c) for c, n in characters.items() if c not in alphabet]
    return [
        {"character": c, "code": f"U+{ord(c):04X}", "name": unicodedata.name(c, ""), "count": n}
        for n, c in sorted(found, key=lambda pair: (-pair[0], pair[1]))
    ]


def _groups(
    utterances: Sequence[Utterance], hours: Sequence[float | None], values_of: Callable[[Utterance], list[str]]
) -> dict[str, Group]:
    """Value -> its clips, the largest group first."""
    groups: dict[str, Group] = {}
    speakers: defaultdict[str, set[str]] = defaultdict(set)
    for utterance, length in zip(utterances, hours, strict=True):
        for value in dict.fromkeys(values_of(utterance)):
            group = groups.setdefault(value, Group(0, 0, None))
            group.clips += 1
            if length is not None:
                group.hours = (group.hours or 0.0) + length
            if utterance.speaker:
                speakers[value].add(utterance.speaker)
    for value, group in groups.items():
        group.speakers = len(speakers[value])
    return dict(sorted(groups.items(), key=lambda pair: (-pair[1].clips, pair[0])))


def _odd(rate: float, identity: str, seconds: float, text: str) -> dict[str, Any]:
    return {"id": identity, "characters_per_second": round(rate, 2), "seconds": round(seconds, 3), "text": text}
