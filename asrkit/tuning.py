"""The weights of a search, found on dev: decoded again and again from log-probabilities that are computed once."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asrkit.beam import BeamDecoder
from asrkit.decoders import Decoder, GreedyDecoder
from asrkit.evaluation import outputs
from asrkit.model import CTCModel
from asrkit.preparation import Split
from asrkit.scoring import Errors, score, totals
from asrkit.tokenizers import Tokenizer

STARTS = (0.25, 0.5, 1.0, 1.5)  # LM weights that are tried first, with each of these
BONUSES = (0.0, 1.5)
STEPS = (0.5, 0.25, 0.125)  # then around the best one, ever closer; the bonus in steps twice as long
LIMIT = 60  # decodings at most


@dataclass(frozen=True)
class Clip:
    """One utterance of dev: log-probabilities (T', V) and its reference."""

    id: str
    speaker: str
    log_probs: Tensor
    reference: str


@dataclass(frozen=True)
class Trial:
    """What one pair of weights comes to on dev."""

    lm_weight: float
    word_bonus: float
    words: Errors
    characters: Errors

    @property
    def key(self) -> tuple[int, int, float, float]:
        """Fewer word errors first, then fewer character errors, then the smaller weights."""
        return self.words.total, self.characters.total, self.lm_weight, abs(self.word_bonus)


def dev_clips(
    model: CTCModel, split: Split, count: int | None = None, device: str = "cpu", progress: bool = False
) -> list[Clip]:
    """The utterances of a split with their outputs; `count`: so many of them, drawn the same way every time."""
    rows = list(range(len(split.utterances)))
    chosen = set(rows if count is None or count >= len(rows) else random.Random(0).sample(rows, count))
    found = {}
    for batch, log_probs, lengths in outputs(model, split, device, progress):
        for place, row in enumerate(batch):
            if row in chosen:
                one = split.utterances[row]
                real = log_probs[place, : int(lengths[place])].clone()
                found[row] = Clip(one.id, one.speaker, real, split.texts[row])
    return [found[row] for row in sorted(found)]


def try_greedy(clips: Sequence[Clip], tokenizer: Tokenizer) -> Trial:
    """What the model says without a search."""
    return Trial(0.0, 0.0, *_errors(clips, GreedyDecoder(), tokenizer))


def try_weights(
    clips: Sequence[Clip], decoder: BeamDecoder, tokenizer: Tokenizer, lm_weight: float, word_bonus: float
) -> Trial:
    """Decode all clips with these weights and count the errors."""
    decoder.set_weights(lm_weight, word_bonus)
    return Trial(lm_weight, word_bonus, *_errors(clips, decoder, tokenizer))


def _errors(clips: Sequence[Clip], decoder: Decoder, tokenizer: Tokenizer) -> tuple[Errors, Errors]:
    rows = []
    for clip in clips:
        [[best, *_]] = decoder(clip.log_probs[None], torch.tensor([len(clip.log_probs)]))
        rows.append((clip.id, clip.speaker, clip.reference, tokenizer.decode(best.labels)))
    scores = score(rows, symbols=tokenizer.name == "symbols")
    return totals(scores, "words"), totals(scores, "characters")


def tune(
    clips: Sequence[Clip],
    decoder: BeamDecoder,
    tokenizer: Tokenizer,
    told: Callable[[Trial], None] = lambda trial: None,
) -> list[Trial]:
    """All weights that were tried, the best first: a coarse grid, then steps along both axes from the best, halved
    where none helps. `told(trial)` is called after each. Without a lexicon there is no word bonus to find."""
    seen: dict[tuple[float, float], Trial] = {}

    def look(lm_weight: float, word_bonus: float) -> None:
        if lm_weight >= 0 and (lm_weight, word_bonus) not in seen and len(seen) < LIMIT:
            seen[lm_weight, word_bonus] = try_weights(clips, decoder, tokenizer, lm_weight, word_bonus)
            told(seen[lm_weight, word_bonus])

    bonuses = BONUSES if decoder.uses_lexicon else (0.0,)
    for lm_weight, word_bonus in itertools.product(STARTS, bonuses):
        look(lm_weight, word_bonus)
    for step in STEPS:
        best = None
        while best != (best := min(seen.values(), key=lambda trial: trial.key)):
            for sign in (-1, 1):
                look(best.lm_weight + sign * step, best.word_bonus)
                if decoder.uses_lexicon:
                    look(best.lm_weight, best.word_bonus + 2 * sign * step)
    return sorted(seen.values(), key=lambda trial: trial.key)
