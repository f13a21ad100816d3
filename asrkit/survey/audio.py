"""What only the audio files tell: which clips cannot be used, how long they are, their rates, what a listener notes.

Sizes are looked at for every clip. Decoding costs milliseconds a clip, so it may be done for a sample: the clips whose
sha256 of the id is lowest, which is the same sample in any order of rows and on any machine. No more is decoded of a
clip than preparing it would: `max_seconds`, or ten minutes of one of the test split.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from asrkit.audio import LONGEST, MISSING
from asrkit.corpus import Utterance
from asrkit.corpus.selection import DataReport
from asrkit.corpus.subset import header
from asrkit.disk import unreadable
from asrkit.threads import one_torch_thread

if TYPE_CHECKING:
    from asrkit.features import FeatureExtractor

CHUNK = 512
Key = tuple[Path, float, float | None]


@dataclass(frozen=True, slots=True)
class Clip:
    """One decoded clip. `reason` says why it cannot be used, "" if it can; digest is the sha256 of the file; at most
    `limit` seconds of it were decoded."""

    seconds: float = 0.0
    rate: int = 0
    notes: tuple[str, ...] = ()
    reason: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)
    digest: str = ""
    limit: float = 0.0


_NOT_DECODED = Clip()


@dataclass
class AudioFigures:
    """Decoded clips of one split: how many, notes (clipped, low_rate, anti_phase) and source rates.

    unusable: how many of them cannot be used, by reason. Missing and empty files, and clips that are too long by the
    length that the corpus claims, are known without decoding and not among them.

    same_audio: clips whose file has the same bytes as another clip's of the split.
    """

    decoded: int = 0
    unusable: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    sample_rates: dict[str, int] = field(default_factory=dict)
    same_audio: int = 0


class Listener:
    """Decodes clips in threads and remembers them, since the tables of a release name the same clips.

    decode: clips of every split, None for all. only_unknown: none where the corpus claims the length. Longer than
    `max_seconds` is unusable, as in training; in the test split, longer than `LONGEST`.
    """

    def __init__(self, decode: int | None, only_unknown: bool, max_seconds: float, progress: bool) -> None:
        self.decode, self.only_unknown = decode, only_unknown
        self.max_seconds, self.progress = max_seconds, progress
        self.clips: dict[Key, Clip] = {}

    @property
    def digests(self) -> dict[Path, str]:
        """File -> sha256, of the decoded clips."""
        return {key[0]: clip.digest for key, clip in self.clips.items() if clip.digest}

    def seconds(self, utterance: Utterance) -> float | None:
        """As decoded; else as the corpus claims; else None."""
        clip = self.clips.get(_key(utterance)) if self.clips else None
        return clip.seconds if clip and clip.seconds else utterance.seconds

    def chosen(self, utterances: Sequence[Utterance]) -> list[Utterance]:
        """The clips of a split that are decoded if their texts can be used."""
        return sample([u for u in utterances if not (self.only_unknown and u.seconds is not None)], self.decode)

    def listen(
        self, utterances: Sequence[Utterance], split: str, report: DataReport, chosen: set[str], fetched: bool = False
    ) -> tuple[list[Utterance], AudioFigures]:
        """The usable clips of one split, as far as known, and the figures; the others are excluded in `report`.

        chosen: ids of the clips to decode. fetched: only these were taken out of an archive, so only they are looked
        at.
        """
        present = []
        for utterance in utterances:
            if reason := "" if fetched and utterance.id not in chosen else _no_file(utterance):
                report.exclude(utterance, reason)
            else:
                present.append(utterance)
        limit = LONGEST if split == "test" else self.max_seconds
        self._decode([u for u in present if u.id in chosen and self._clip(u, limit) is None], split, limit)
        usable: list[Utterance] = []
        unusable: Counter[str] = Counter()
        for utterance in present:
            clip = self._clip(utterance, limit) or _NOT_DECODED
            reason, numbers = clip.reason, clip.numbers
            seconds = self.seconds(utterance)
            if reason == "too_long" or (not reason and seconds is not None and seconds > limit):
                longest = float(numbers.get("seconds", seconds or 0.0))
                reason, numbers = "too_long", {"seconds": round(longest, 3), "max_seconds": limit}
            if not reason:
                usable.append(utterance)
                continue
            report.exclude(utterance, reason, **numbers)
            if clip.reason or utterance.seconds is None:
                unusable[reason] += 1
        decoded = [found for u in present if (found := self._clip(u, limit)) is not None]
        return usable, _count(decoded, unusable)

    def _clip(self, utterance: Utterance, limit: float) -> Clip | None:
        """This clip as decoded, None if it was not; cut at less than this limit, it was not either."""
        clip = self.clips.get(_key(utterance)) if self.clips else None
        return None if clip is None or (clip.reason == "too_long" and clip.limit < limit) else clip

    def _decode(self, utterances: Sequence[Utterance], split: str, limit: float) -> None:
        if not utterances:
            return
        bar = tqdm(total=len(utterances), desc=f"decode {split}", unit="clip", disable=not self.progress, leave=False)
        with one_torch_thread(), ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool, bar:
            for start in range(0, len(utterances), CHUNK):
                part = utterances[start : start + CHUNK]
                for utterance, clip in zip(part, pool.map(partial(inspect, limit=limit), part), strict=True):
                    self.clips[_key(utterance)] = clip
                    bar.update()


def _count(clips: Sequence[Clip], unusable: Counter[str]) -> AudioFigures:
    rates = Counter(clip.rate for clip in clips if clip.rate)
    digests = Counter(clip.digest for clip in clips if clip.digest)
    return AudioFigures(
        decoded=len(clips),
        unusable=dict(sorted(unusable.items())),
        notes=dict(sorted(Counter(note for clip in clips for note in clip.notes).items())),
        sample_rates={str(rate): rates[rate] for rate in sorted(rates)},
        same_audio=sum(count for count in digests.values() if count > 1),
    )


def sample(utterances: Sequence[Utterance], count: int | None) -> list[Utterance]:
    """`count` of them (None: all), chosen by the hash of their ids, in file order."""
    if count is None or count >= len(utterances):
        return list(utterances)
    order = sorted(range(len(utterances)), key=lambda i: hashlib.sha256(utterances[i].id.encode()).digest())
    return [utterances[i] for i in sorted(order[:count])]


def inspect(utterance: Utterance, limit: float) -> Clip:
    """Decode at most so many seconds of one clip and judge it as the preparation does (`asrkit.preparation.clips`)."""
    from asrkit.preparation.clips import Limits, waveform_of

    outcome = waveform_of(utterance, _extractor(), Limits(limit))
    numbers = outcome.numbers
    if outcome.reason == "too_long" and utterance.end is None:  # how long it is, its header says
        numbers = numbers | {"seconds": max(numbers["seconds"], header(utterance.audio)[0] - utterance.start)}
    if outcome.values is None:
        return Clip(reason=outcome.reason, numbers=numbers, limit=limit)
    whole = utterance.start == 0 and utterance.end is None
    return Clip(
        seconds=len(outcome.values) / _extractor().sample_rate,
        rate=header(utterance.audio)[1],
        notes=tuple(note for note, _ in outcome.notes),
        digest=_digest(utterance.audio) if whole else "",
        limit=limit,
    )


@lru_cache(maxsize=1)
def _extractor() -> FeatureExtractor:
    """The default one: its rate is what `low_rate` and its frame what `too_short` are judged by."""
    from asrkit.features import Fbank

    return Fbank()


def _key(utterance: Utterance) -> Key:
    return utterance.audio, utterance.start, utterance.end


def _no_file(utterance: Utterance) -> str:
    try:
        return "" if os.stat(utterance.audio).st_size else "empty_file"
    except OSError as error:
        if error.errno in MISSING:
            return "missing"
        raise unreadable(error, utterance.audio) from error


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(error, path) from error
