"""A trained model against the references of a split: WER, CER, intervals over speakers, and the worst utterances."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from asrkit.batching import Batch, BatchSampler, collate
from asrkit.ctc import BLANK
from asrkit.decoders import Decoder, GreedyDecoder
from asrkit.exhaustion import in_parts
from asrkit.masking import frame_mask
from asrkit.model import CTCModel
from asrkit.preparation import Split
from asrkit.scoring import Errors, Interval, Score, alignment_text, bootstrap_interval, score, totals, worst


@dataclass(frozen=True)
class Evaluation:
    """Scores of one split; rates are corpus totals, intervals resample whole speakers."""

    split: str
    split_hash: str
    scores: list[Score]
    words: Errors
    characters: Errors
    wer_interval: Interval
    cer_interval: Interval
    blank: float
    empty: float
    seconds: float

    def figures(self) -> dict[str, Any]:
        """The figures as JSON data."""
        return {
            "split": self.split,
            "split_hash": self.split_hash,
            "utterances": len(self.scores),
            "speakers": len({s.speaker for s in self.scores}),
            "wer": self.words.rate,
            "wer_interval": _ends(self.wer_interval),
            "cer": self.characters.rate,
            "cer_interval": _ends(self.cer_interval),
            "interval_by": self.cer_interval.by,
            "words": _counts(self.words),
            "characters": _counts(self.characters),
            "blank_frames": self.blank,
            "empty_outputs": self.empty,
            "audio_seconds": self.seconds,
        }

    def text(self, shared: str, excluded: str, worst_count: int = 5) -> str:
        """The figures for a person, with the worst utterances aligned."""
        lines = [
            f"{self.split}: {len(self.scores)} utterances, {self.seconds / 60:.1f} min, "
            f"{len({s.speaker for s in self.scores})} speakers ({self.split_hash[:12]}); {excluded}; {shared}",
            f"CER {self.characters.rate:7.2%} {self.cer_interval}  {_describe(self.characters)}",
            f"WER {self.words.rate:7.2%} {self.wer_interval}  {_describe(self.words)}",
            f"blank frames {self.blank:.1%}, empty outputs {self.empty:.1%}",
        ]
        for one in worst(self.scores, worst_count, unit="characters"):
            lines += ["", f"{one.id}: CER {one.characters.rate:.1%}, WER {one.words.rate:.1%}"]
            lines.append(alignment_text(one.reference.split(), one.hypothesis.split()))
        return "\n".join(lines)


def _ends(interval: Interval) -> list[float] | None:
    """JSON has no NaN: a single utterance has no interval."""
    return None if math.isnan(interval.low) else [interval.low, interval.high]


def _counts(errors: Errors) -> dict[str, int]:
    return {
        "substitutions": errors.substitutions,
        "deletions": errors.deletions,
        "insertions": errors.insertions,
        "reference": errors.reference,
    }


def _describe(errors: Errors) -> str:
    return (
        f"{errors.total} of {errors.reference} ({errors.substitutions} substituted, {errors.deletions} deleted, "
        f"{errors.insertions} inserted)"
    )


def outputs(
    model: CTCModel, split: Split, device: str = "cpu", progress: bool = False
) -> Iterator[tuple[Sequence[int], Tensor, Tensor]]:
    """Rows of the split, their log-probabilities (B, T', V) and lengths (B,) on the CPU, shortest utterances first."""
    model.eval().to(device)
    sampler = BatchSampler(split.frames, 40_000, None, "ascending")
    loader = DataLoader(split, batch_sampler=sampler, collate_fn=collate)

    @torch.inference_mode()
    def look(batch: Batch) -> tuple[Tensor, Tensor]:
        log_probs, lengths = model.acoustic(batch.features.to(device), batch.lengths.to(device))
        return log_probs, lengths

    for batch in tqdm(loader, desc=f"evaluate {split.name}", unit="batch", disable=not progress, leave=False):
        for part, (log_probs, lengths) in in_parts(batch, look):
            yield part.rows, log_probs.cpu(), lengths.cpu()


def evaluate(
    model: CTCModel,
    tokenizer: Any,
    split: Split,
    *,
    decoder: Decoder | None = None,
    device: str = "cpu",
    progress: bool = False,
) -> Evaluation:
    """Outputs of a model on a split, in batches of similar length that change no output; greedy by default."""
    decoder = decoder or GreedyDecoder()
    hypotheses: dict[int, str] = {}
    blanks = frames = 0
    for rows, log_probs, lengths in outputs(model, split, device, progress):
        blank = (log_probs.argmax(-1) == BLANK) & frame_mask(lengths, log_probs.shape[1])
        blanks, frames = blanks + int(blank.sum()), frames + int(lengths.sum())
        paths = [best[0].labels for best in decoder(log_probs, lengths)]
        hypotheses.update((row, tokenizer.decode(path)) for row, path in zip(rows, paths, strict=True))
    scores = score(
        (
            (utterance.id, utterance.speaker, split.texts[row], hypotheses[row])
            for row, utterance in enumerate(split.utterances)
        ),
        symbols=tokenizer.name == "symbols",
    )
    return Evaluation(
        split=split.name,
        split_hash=split.hash,
        scores=scores,
        words=totals(scores, "words"),
        characters=totals(scores, "characters"),
        wer_interval=bootstrap_interval(scores, "words"),
        cer_interval=bootstrap_interval(scores, "characters"),
        blank=blanks / max(frames, 1),
        empty=sum(not s.hypothesis for s in scores) / max(len(scores), 1),
        seconds=sum(split.frames) * model.features.frame_seconds,
    )
