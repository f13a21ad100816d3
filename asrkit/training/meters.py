"""Sums over a stage of training, and the figures they give. Weighted by labels and frames, never means of batch
means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from asrkit.decoders import best_paths
from asrkit.scoring import count_errors


@dataclass
class Meter:
    """Running sums; `asdict` of it goes into a checkpoint, so a resumed epoch reports what an uninterrupted one
    does."""

    nll: float = 0.0
    labels: int = 0
    utterances: int = 0
    frames: int = 0
    output_frames: int = 0
    blank_frames: int = 0
    empty: int = 0
    characters: int = 0
    character_errors: int = 0
    words: int = 0
    word_errors: int = 0
    updates: int = 0
    grad_norm: float = 0.0
    layer_norms: dict[str, float] = field(default_factory=dict)
    lr: float = 0.0
    refused: int = 0
    skipped: int = 0
    objective: float = 0.0  # what was minimized, where that is not the CTC loss alone

    def add_loss(self, nll: Tensor, labels: int, frames: int) -> None:
        """One batch: nll (B,) in nats."""
        self.nll += float(nll.sum())
        self.labels += labels
        self.utterances += len(nll)
        self.frames += frames

    def add_outputs(self, log_probs: Tensor, lengths: Tensor, references: Sequence[str], tokenizer: Any) -> None:
        """Greedy outputs of one batch (B, T', V) against the reference texts."""
        paths, blanks = best_paths(log_probs.detach(), lengths)
        self.blank_frames += blanks
        self.output_frames += int(lengths.sum())
        for path, reference in zip(paths, references, strict=True):
            hypothesis = tokenizer.decode(path)
            words = count_errors(reference.split(), hypothesis.split())
            # A phone is a word and a character at once.
            characters = words if tokenizer.name == "symbols" else count_errors(reference, hypothesis)
            self.characters += characters.reference
            self.character_errors += characters.total
            self.words += words.reference
            self.word_errors += words.total
            self.empty += not hypothesis

    def add_update(self, grad_norm: float, by_layer: dict[str, float], lr: float) -> None:
        """One optimizer step: gradient norms before clipping, of all and of each layer, and its learning rate."""
        self.updates += 1
        self.grad_norm += grad_norm
        for layer, norm in by_layer.items():
            self.layer_norms[layer] = self.layer_norms.get(layer, 0.0) + norm
        self.lr = lr

    def summary(self) -> dict[str, Any]:
        """loss: nats per label. cer, wer: corpus rates. blank, empty: shares of frames and of utterances.

        grad_norm, grad_norm_by_layer: means over the updates. lr: of the last update.
        """
        figures: dict[str, Any] = {
            "loss": self.nll / max(self.labels, 1),
            "cer": self.character_errors / max(self.characters, 1),
            "wer": self.word_errors / max(self.words, 1),
            "blank": self.blank_frames / max(self.output_frames, 1),
            "empty": self.empty / max(self.utterances, 1),
            "utterances": self.utterances,
            "frames": self.frames,
        }
        if self.updates:
            figures |= {"grad_norm": self.grad_norm / self.updates, "updates": self.updates, "lr": self.lr}
            figures["grad_norm_by_layer"] = {name: norm / self.updates for name, norm in self.layer_norms.items()}
        if self.refused:
            figures["refused_batches"] = self.refused
        if self.skipped:
            figures["skipped_updates"] = self.skipped
        if self.objective:
            figures["objective"] = self.objective / max(self.labels, 1)
        return figures

    def state(self) -> dict[str, Any]:
        """The sums as JSON data; `Meter(**state)` goes on from them."""
        return asdict(self)
