"""One utterance -> what is kept of its audio, or the reason code why there is nothing to keep, with numbers.

Decides about decoded audio: `truncated` (the header or the corpus claims another length, off by over 2 % and over
0.1 s), `silent` (peak below -60 dB of full scale), `too_long`, `too_short` (not one frame), `nonfinite`, and whatever
`asrkit.audio` raises. What may be used but should be known is a note: `clipped`, `low_rate`, `anti_phase`, and
`truncated` where the recipe keeps such clips. A file that the disk, or a missing permission, keeps from us raises
StorageError: that says nothing about the clip, so it must not be kept as an exclusion.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from asrkit.audio import SILENT_PEAK, Audio, is_truncated, read_audio
from asrkit.corpus import Utterance
from asrkit.errors import AudioError, RecipeError, nearest
from asrkit.features import FeatureExtractor
from asrkit.preparation.shards import Outcome

FULL_SCALE = 32768  # of int16
TRUNCATED = ("drop", "keep")
TOGETHER = 30.0  # seconds: longer clips (scored ones may have ten minutes) are worked on one at a time, or memory goes
_alone = threading.Lock()
NOTES = ("clipped", "low_rate", "anti_phase")


@dataclass(frozen=True)
class Limits:
    """What may be used: at most `max_seconds`; `on_truncated` is drop or keep (what is left of such a clip)."""

    max_seconds: float
    on_truncated: str = "drop"

    def __post_init__(self) -> None:
        if self.on_truncated not in TRUNCATED:
            raise RecipeError(
                f"data.on_truncated = {self.on_truncated!r}",
                possible=nearest(str(self.on_truncated), TRUNCATED),
                reason="on_truncated",
            )


class _Unusable(Exception):
    """Carries a reason code and numbers to the end of `_prepared`."""

    def __init__(self, reason: str, **numbers: Any) -> None:
        self.reason, self.numbers = reason, numbers


def features_of(utterance: Utterance, extractor: FeatureExtractor, limits: Limits) -> Outcome:
    """Features (T, F) float16."""

    def compute(audio: Audio) -> np.ndarray:
        samples = torch.from_numpy(audio.samples)
        with torch.inference_mode():
            frames, lengths = extractor(samples.unsqueeze(0), torch.tensor([len(samples)]))
        values = frames[0, : int(lengths[0])].to(torch.float16).numpy()
        if not np.isfinite(values).all():
            raise _Unusable("nonfinite", seconds=round(audio.seconds, 4))
        return values

    return _prepared(utterance, extractor, limits, compute)


def waveform_of(utterance: Utterance, extractor: FeatureExtractor, limits: Limits) -> Outcome:
    """Samples (S, 1) int16, full scale 32768, for a run that computes its features itself."""

    def compute(audio: Audio) -> np.ndarray:
        return to_int16(audio.samples)[:, None]

    return _prepared(utterance, extractor, limits, compute)


def to_int16(samples: np.ndarray) -> np.ndarray:
    """(S,) float32, full scale 1 -> (S,) int16; what lies beyond full scale is cut there."""
    return np.clip(np.rint(samples * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


def _prepared(
    utterance: Utterance, extractor: FeatureExtractor, limits: Limits, compute: Callable[[Audio], np.ndarray]
) -> Outcome:
    def outcome(audio: Audio) -> Outcome:
        notes = _judge(audio, utterance, extractor, limits)
        return Outcome(utterance.id, compute(audio), notes=tuple(notes))

    try:
        together = min(limits.max_seconds, TOGETHER)
        audio = _read(utterance, extractor.sample_rate, together)
        if together == limits.max_seconds or not ("cut" in audio.notes or (audio.claimed_seconds or 0.0) >= together):
            return outcome(audio)
        del audio
        with _alone:
            return outcome(_read(utterance, extractor.sample_rate, limits.max_seconds))
    except _Unusable as why:
        return Outcome(utterance.id, None, why.reason, why.numbers)
    except AudioError as error:
        return Outcome(utterance.id, None, error.reason or "not_audio", {"detail": error.what})


def _read(utterance: Utterance, rate: int, seconds: float) -> Audio:
    return read_audio(
        utterance.audio,
        rate,
        start=utterance.start,
        end=utterance.end,
        max_seconds=seconds + 0.001,  # a little more than allowed tells a long clip from a fitting one
        keep_truncated=True,
    )


def _judge(
    audio: Audio, utterance: Utterance, extractor: FeatureExtractor, limits: Limits
) -> list[tuple[str, dict[str, Any]]]:
    """The notes about a clip that can be used; raises `_Unusable` for the others."""
    seconds = round(audio.seconds, 4)
    notes: list[tuple[str, dict[str, Any]]] = []
    if audio.seconds > limits.max_seconds:
        raise _Unusable("too_long", seconds=max(seconds, utterance.seconds or 0.0), max_seconds=limits.max_seconds)
    if (claim := _broken_claim(audio, utterance)) is not None:
        if limits.on_truncated == "drop":
            raise _Unusable("truncated", seconds=seconds, **claim)
        notes.append(("truncated", {"seconds": seconds, **claim}))
    peak = float(np.abs(audio.samples).max())
    if peak < SILENT_PEAK:
        raise _Unusable("silent", seconds=seconds, peak_db=round(20 * math.log10(peak), 1) if peak else None)
    if extractor.num_frames(len(audio.samples)) == 0:
        raise _Unusable("too_short", seconds=seconds)
    facts: dict[str, dict[str, Any]] = {
        "low_rate": {"source_rate": audio.source_rate},
        "clipped": {"peak": round(peak, 3)},
    }
    notes += [(note, facts.get(note, {})) for note in NOTES if note in audio.notes]
    return notes


def _broken_claim(audio: Audio, utterance: Utterance) -> dict[str, Any] | None:
    """Which promise about the length does not hold: the corpus's or the header's. None: all that were made do."""
    claimed = utterance.seconds
    if claimed is not None and "cut" not in audio.notes and is_truncated(audio.seconds, claimed):
        return {"claimed_seconds": claimed, "by": "corpus"}
    if "truncated" in audio.notes:
        return {
            "claimed_seconds": audio.claimed_seconds,
            "by": "decoder" if audio.claimed_seconds is None else "header",
        }
    return None
