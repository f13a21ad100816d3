"""The diagnosis that is always on: cheap checks of the first batch and after every epoch of a training run.

It changes nothing: no random number is drawn from the run's generators, no statistic and no mode is left changed. It
depends on the weights alone, so a resumed run writes what an uninterrupted one does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from asrkit.batching import Batch
from asrkit.defects import FaultyLoss, defects_of, forget
from asrkit.diagnostics.batch import check_ctc_batch, check_loss
from asrkit.diagnostics.clips import middle_clips
from asrkit.diagnostics.findings import Finding, gather
from asrkit.diagnostics.floor import Floor, input_blind_floor
from asrkit.diagnostics.hooks import outputs_of, watched
from asrkit.diagnostics.model import check_features, judge_layers, measure_layers
from asrkit.diagnostics.norms import mismatches, running_norms
from asrkit.diagnostics.probes import Probe, evaluation, untouched
from asrkit.diagnostics.progress import RECENT, judge_epochs
from asrkit.diagnostics.scales import check_scales
from asrkit.hearing import phase
from asrkit.model import CTCModel
from asrkit.objective import has_label_prior
from asrkit.preparation import Split
from asrkit.threads import one_torch_thread

CLIPS = 2  # of the batch that is looked at after every epoch; each goes through the model twice, forward only
Say = Callable[[Finding], None]


class Monitor:
    """Watches one run. `say` hears of each finding of severity error once."""

    def __init__(self, recipe: dict[str, Any], model: CTCModel, split: Split, say: Say | None = None) -> None:
        self.model, self.split, self.say = model.acoustic, split, say
        self.num_labels = model.acoustic.head.linear.out_features
        self.loss = FaultyLoss(recipe, model.features.size)
        self.batch_statistics = bool(getattr(model.acoustic.encoder, "batch_statistics", False))
        self.defects = defects_of(recipe)
        self.prior, self.accumulation = has_label_prior(recipe), int(recipe["training"]["accumulation"])
        self.epochs: list[dict[str, Any]] = []
        self.recent: deque[float] = deque(maxlen=RECENT)  # losses of updates
        self._said: set[tuple[str, str | None]] = set()
        self._floor: Floor | None = None
        self._first = True
        self._frames = split.frames  # now, before the epochs: augmentation changes them
        self._batch = middle_clips(split, CLIPS)

    @property
    def floor(self) -> float | None:
        """Nats per label of the best model that hears nothing, on a sample of the train split; computed once."""
        if self._floor is None:
            counts = torch.tensor(self._frames)
            lengths = self.model.encoder.num_frames(counts)
            lengths = self.loss.lengths(lengths, int(lengths.max()))
            self._floor = input_blind_floor(self.split.labels, lengths.tolist(), self.num_labels)
        return None if self._floor is None else self._floor.loss

    def first_batch(self, batch: Batch, log_probs: Tensor, lengths: Tensor, update: int) -> dict[str, Any] | None:
        """The record of the first batch of a run, before its loss: what goes into the loss, and the initial scales."""
        if not self._first:
            return None
        self._first = False
        if update:  # a run that goes on has had its first batch
            return None
        given = self.loss.lengths(lengths, log_probs.shape[1])
        losses = None
        if self.loss.zero_infinity:
            targets = batch.targets.to(log_probs.device)
            losses = self.loss(log_probs.detach(), lengths, targets, batch.target_lengths, batch.ids)
        found = check_ctc_batch(
            log_probs, given, batch.targets, batch.target_lengths, input_lengths=batch.lengths, losses=losses
        )  # fmt: skip
        found += check_features(batch.features, batch.lengths)
        found += check_loss(self.loss, max(self.num_labels, 3))
        with torch.no_grad():
            found += check_scales(self.model)
        return {"type": "diagnosis", "step": 1, "findings": self._tell(found)}

    def updated(self, loss: float) -> None:
        """After every update: the loss of its batch, nats per label."""
        self.recent.append(loss)

    def epoch(self, figures: dict[str, Any]) -> dict[str, Any]:
        """What is written into the epoch's record: floor, phase, layers, findings."""
        self.epochs.append({key: figures[key] for key in ("step", "train", "dev") if key in figures})
        with one_torch_thread():  # two clips are too little for more
            floor, layers = self.floor, self._layers()
        found = judge_epochs(
            self.epochs, floor, self.batch_statistics, layers["dependence"], recent=list(self.recent),
            prior=self.prior, accumulation=self.accumulation,
        )  # fmt: skip
        found += judge_layers(layers)
        result: dict[str, Any] = {
            "floor": floor,
            "phase": None if floor is None else phase(figures["train"]["loss"], floor),
        }
        return result | layers | {"findings": self._tell(found)}

    def resume(self, records: list[dict[str, Any]]) -> None:
        """All records that a run has had before it goes on."""
        epochs = [one for one in records if one["type"] == "epoch"]
        self.epochs = [{key: one[key] for key in ("step", "train", "dev") if key in one} for one in epochs]
        self.recent.extend(one["loss"] for one in records if one["type"] == "update")

    def _layers(self) -> dict[str, dict[str, float]]:
        """Two clips of middle length with two contents each, in evaluation mode."""
        device = next(self.model.parameters()).device
        batch = self._batch.to(device)
        probe = Probe(self.model, None, batch.features, batch.lengths.to(device))
        layers_of, norms = watched(self.model), running_norms(self.model) if self.batch_statistics else {}
        with untouched(self.model), torch.no_grad(), outputs_of(layers_of | norms) as kept:
            evaluation(self.model)
            evaluated, other = self._contents(probe, kept)
            before, after = ({name: found[name] for name in layers_of if name in found} for found in (evaluated, other))
            layers = measure_layers(self.model, before, after)
        if norms and (found := mismatches(probe, self.model, evaluated)):
            layers["train_eval_mismatch"] = found  # N04: by norm
        if "carried_state" in self.defects:
            forget(self.model)  # or the next epoch would begin with the states of these clips
        return layers

    def _contents(self, probe: Probe, kept: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What the layers give for both contents. As one batch, which takes half the time of a recurrence, where every
        output has an utterance's own row and no defect makes one depend on another."""
        count = len(probe.lengths)
        if not self.defects:
            probe.with_other()()
            if all(len(y) == 2 * count for y in kept.values()):
                return {name: y[:count] for name, y in kept.items()}, {name: y[count:] for name, y in kept.items()}
        probe()
        first = dict(kept)
        probe(probe.other())
        return first, dict(kept)

    def _tell(self, findings: list[Finding]) -> list[dict[str, Any]]:
        findings = gather(findings)
        for one in findings:
            key = one.code, one.layer
            if one.severity == "error" and key not in self._said and self.say is not None:
                self._said.add(key)
                self.say(one)
        return [one.as_dict() for one in findings]
