"""The only training loop: a speechbrain.Brain whose batches are checked before they touch any state.

Kept from Brain: the stages and their hooks, precision and gradient scaling, the epoch loop. Replaced: what would lose
data or hide faults (non-finite batches, the tail of an accumulation, clipping per group, means of batch means, relative
lengths). Every random number of a step comes from (seed, epoch, batch), so a resumed run repeats an uninterrupted one
bit by bit.
"""

from __future__ import annotations

import hashlib
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import speechbrain as sb
import torch
from speechbrain.core import Stage
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from asrkit.batching import Batch, BatchSampler, collate
from asrkit.checkpoints import Checkpoints, optimizer_from_tensors, optimizer_to_tensors
from asrkit.ctc import ctc_loss
from asrkit.errors import NumericError, StoppedError
from asrkit.meters import Meter
from asrkit.model import CTCModel
from asrkit.preparation import Split
from asrkit.runs import MetricsLog
from asrkit.schedules import clip_gradients, learning_rate, make_optimizer


def step_seed(seed: int, epoch: int, batch: int) -> int:
    """The generator's seed for one batch: far apart for neighbouring batches, the same on every machine."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{batch}".encode()).digest()
    return int.from_bytes(digest[:7], "little")


def _copy(target: list[Tensor], source: list[Tensor]) -> None:
    if target:
        torch._foreach_copy_(target, source)


@dataclass
class Position:
    """Where training stands: everything a checkpoint keeps beside weights and optimizer."""

    epoch: int = 1
    batch: int = 0  # batches of this epoch that are done
    update: int = 0
    best_epoch: int = 0
    best_value: float = float("inf")
    epochs_without_better: int = 0
    finished: bool = False
    meter: dict[str, Any] = field(default_factory=dict)
    last_metrics: dict[str, Any] = field(default_factory=dict)


class CTCBrain(sb.Brain):
    """Trains `model.acoustic` on cached features; writes metrics.jsonl and checkpoints; resumes where it stopped."""

    def __init__(
        self,
        recipe: dict[str, Any],
        model: CTCModel,
        tokenizer: Any,
        train: Split,
        dev: Split | None,
        log: MetricsLog,
        checkpoints: Checkpoints,
        *,
        progress: bool = False,
        on_epoch: Any = None,
    ) -> None:
        self.options = recipe["training"]
        device = self.options["device"]
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        super().__init__(
            modules={"acoustic": model.acoustic},
            run_opts={"device": device, "precision": self.options["precision"], "noprogressbar": True},
        )
        self.recipe, self.model, self.tokenizer, self.seed = recipe, model, tokenizer, int(recipe["seed"])
        self.train_split, self.dev_split = train, dev
        self.log, self.store, self.progress, self.on_epoch = log, checkpoints, progress, on_epoch
        self.position = Position()
        self.meter = Meter()
        self.refused_in_row = 0
        self.stop_signal: int | None = None
        self.sampler = self._sampler(train, self.options["order"])
        self._buffers = [b for b in self.modules.buffers() if b.numel()]
        self._saved_buffers = [torch.empty_like(b) for b in self._buffers]
        self._layer_norms: dict[str, float] = {}

    # The way in and out.

    def run(self) -> dict[str, Any]:
        """Train to the end (or go on from the newest checkpoint) and return the last epoch's figures."""
        train_loader = DataLoader(self.train_split, batch_sampler=self.sampler, collate_fn=collate)
        with self._signals():
            self.fit(self._epochs(), train_loader, self._loader(self.dev_split) if self.dev_split else None)
        return self.position.last_metrics

    def on_fit_start(self) -> None:
        self.optimizer = make_optimizer(self.modules, self.options)
        self.optimizers_dict = {"main": self.optimizer}
        newest = self.store.latest()
        if newest is None:
            self.log.truncate_after(0)
            return
        self.model.acoustic.load_state_dict(newest.model())
        self.optimizer.load_state_dict(optimizer_from_tensors(newest.optimizer(), newest.state["optimizer"]))
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(newest.state["scaler"])
        self.position = Position(**newest.state["position"])
        if self.position.finished and self.position.epoch < self.options["epochs"]:
            self.position.finished = False  # the recipe asks for more epochs than last time
            self.position.epoch += 1
        self.log.truncate_after(self.position.update)
        # A checkpoint within the epoch's last batch has the step of the epoch's record, which will be written again.
        here = self.position.epoch
        self.log.drop(
            lambda record: record["type"] == "epoch" and record["epoch"] >= here and not self.position.finished
        )

    def _epochs(self) -> Iterator[int]:
        """Epoch numbers from the position on; Brain asks for the first one only after `on_fit_start`."""
        while not self.position.finished and self.position.epoch <= self.options["epochs"]:
            yield self.position.epoch

    def _sampler(self, split: Split, order: str) -> BatchSampler:
        options = self.options
        return BatchSampler(split.frames, options["batch_frames"], options["batch_size"], order, self.seed)

    def _loader(self, split: Split) -> DataLoader[Any]:
        return DataLoader(split, batch_sampler=self._sampler(split, "ascending"), collate_fn=collate)

    # One epoch of training.

    def _fit_train(self, train_set: Any, epoch: int, enable: bool) -> None:
        position, factor = self.position, int(self.options["accumulation"])
        self.on_stage_start(Stage.TRAIN, epoch)
        self.modules.train()
        self.optimizer.zero_grad(set_to_none=True)
        self.sampler.set_epoch(epoch)
        batches = self.sampler.batches()
        labels = [sum(len(self.train_split.labels[row]) for row in batch) for batch in batches]
        self.meter = Meter(**position.meter)
        self.sampler.set_epoch(epoch, position.batch)
        started = last_saved = time.monotonic()
        seen = self.meter.frames
        bar = tqdm(
            total=len(batches), initial=position.batch, desc=f"epoch {epoch}", unit="batch", leave=False,
            disable=not self.progress, dynamic_ncols=True,
        )  # fmt: skip
        with bar:
            for batch in train_set:
                index = position.batch
                group = slice(index - index % factor, index - index % factor + factor)
                self.group_labels = sum(labels[group])
                self.should_step = index % factor == factor - 1 or index == len(batches) - 1
                self.progress_share = (epoch - 1 + index / len(batches)) / self.options["epochs"]
                torch.manual_seed(step_seed(self.seed, epoch, index))
                self.fit_batch(batch.to(self.device))
                position.batch += 1
                bar.update()
                bar.set_postfix(loss=f"{self.meter.nll / max(self.meter.labels, 1):.3f}", refresh=False)
                if self.should_step and self.stop_signal is not None:
                    self._save_and_stop()
                if self.should_step and time.monotonic() - last_saved > 60 * self.options["checkpoint_minutes"]:
                    self._save()
                    last_saved = time.monotonic()
        self.seconds = time.monotonic() - started
        self.frames_per_second = (self.meter.frames - seen) / max(self.seconds, 1e-9)
        self.on_stage_end(Stage.TRAIN, self.meter.nll / max(self.meter.labels, 1), epoch)

    def fit_batch(self, batch: Batch) -> Tensor:
        """One batch; state is untouched (weights, buffers, optimizer) if anything in it is not finite."""
        if not torch.isfinite(batch.features).all():
            return self._refuse(batch, "features")
        _copy(self._saved_buffers, self._buffers)
        with self.training_ctx:
            log_probs, lengths = self.compute_forward(batch, Stage.TRAIN)
        nll = self.compute_objectives((log_probs, lengths), batch, Stage.TRAIN)
        if not torch.isfinite(nll).all():
            return self._refuse(batch, "loss")
        loss = nll.sum() / self.group_labels
        self.batch_loss = float(nll.detach().sum() / batch.target_lengths.sum())
        self.scaler.scale(loss).backward()
        if self.should_step and not self._update(batch):
            return self._refuse(batch, "gradient")
        self.refused_in_row = 0
        self.meter.add_loss(nll.detach(), int(batch.target_lengths.sum()), int(batch.lengths.sum()))
        self.meter.add_outputs(log_probs, lengths, [self.train_split.texts[row] for row in batch.rows], self.tokenizer)
        return loss.detach()

    def compute_forward(self, batch: Batch, stage: Stage) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, T', V) on the device, lengths (B,) on the CPU."""
        log_probs, _ = self.modules["acoustic"](batch.features, batch.lengths.to(self.device))
        return log_probs, self.model.acoustic.encoder.num_frames(batch.lengths)

    def compute_objectives(self, predictions: tuple[Tensor, Tensor], batch: Batch, stage: Stage) -> Tensor:
        """Negative log-likelihood (B,) in nats."""
        log_probs, lengths = predictions
        return ctc_loss(log_probs, lengths, batch.targets.to(log_probs.device), batch.target_lengths, batch.ids)

    def _update(self, batch: Batch) -> bool:
        """One optimizer step with one clip over all groups; False if the gradient is not finite."""
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.modules.parameters(), self.options["clip"])
        finite = norm == norm and norm != float("inf")
        if not finite and not self.scaler.is_enabled():
            return False
        rate = learning_rate(self.progress_share, self.options)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if finite:  # under fp16 the scaler skips the step itself and tries a smaller scale
            self.position.update += 1
            self.meter.add_update(norm)
            self.log.append(
                {"type": "update", "step": self.position.update, "epoch": self.position.epoch, "lr": rate,
                 "grad_norm": norm, "loss": self.batch_loss}
            )  # fmt: skip
        return True

    def _refuse(self, batch: Batch, what: str) -> Tensor:
        """Put back the buffers, drop the gradients, count, and give up after too many in a row."""
        if what != "features":
            _copy(self._buffers, self._saved_buffers)
        self.optimizer.zero_grad(set_to_none=True)
        self.meter.refused += 1
        self.refused_in_row += 1
        self.log.append(
            {"type": "refused", "step": self.position.update, "epoch": self.position.epoch, "what": what,
             "ids": list(batch.ids)}
        )  # fmt: skip
        if self.refused_in_row >= self.options["max_nonfinite"]:
            raise NumericError(
                f"{self.refused_in_row} batches in a row had non-finite {what}; "
                f"the last held {', '.join(batch.ids[:4])}",
                fix="lower training.lr, look at these clips, or use precision bf16 instead of fp16; "
                "the weights are those "
                "from before these batches",
                reason="nonfinite",
            )
        return torch.zeros(())

    # Looking at dev, the epoch's record, checkpoints.

    def _fit_valid(self, valid_set: Any, epoch: int, enable: bool) -> None:
        position = self.position
        look = epoch % self.options["evaluate_every"] == 0 or epoch == self.options["epochs"]
        figures: dict[str, Any] = {"type": "epoch", "epoch": epoch, "step": position.update}
        figures["train"] = self.meter.summary()
        if valid_set is not None and look:
            figures["dev"] = self.measure(valid_set, self.dev_split)
        figures |= {"norms": self._norm_figures(), "seconds": self.seconds, "frames_per_second": self.frames_per_second}
        self.log.append(figures)
        self._note_best(figures, epoch)
        position.last_metrics = figures
        position.batch, position.meter = 0, {}
        patience = self.options["early_stopping"]
        position.finished = epoch >= self.options["epochs"] or bool(
            patience and position.epochs_without_better >= patience
        )
        if not position.finished:
            position.epoch += 1
        if epoch % self.options["checkpoint_every"] == 0 or position.finished or self.stop_signal is not None:
            self._save()
        if self.on_epoch is not None:
            self.on_epoch(figures)
        if self.stop_signal is not None and not position.finished:
            self._save_and_stop(saved=True)

    def measure(self, loader: Any, split: Split | None) -> dict[str, Any]:
        """Loss per label, CER, WER, blank and empty shares of a split, in evaluation mode."""
        assert split is not None
        meter = Meter()
        self.modules.eval()
        with torch.inference_mode(), self.evaluation_ctx:
            for batch in loader:
                batch = batch.to(self.device)
                log_probs, lengths = self.compute_forward(batch, Stage.VALID)
                nll = self.compute_objectives((log_probs, lengths), batch, Stage.VALID)
                meter.add_loss(nll, int(batch.target_lengths.sum()), int(batch.lengths.sum()))
                meter.add_outputs(log_probs, lengths, [split.texts[row] for row in batch.rows], self.tokenizer)
        return meter.summary()

    def _norm_figures(self) -> dict[str, float]:
        """Share of frames that each frame-wise norm served from fallback statistics in the last batch."""
        shares = {
            name: float(module.fallback_share)
            for name, module in self.modules.named_modules()
            if hasattr(module, "fallback_share")
        }
        return {"fallback_share": sum(shares.values()) / len(shares)} if shares else {}

    def _note_best(self, figures: dict[str, Any], epoch: int) -> None:
        """Best by dev CER, then dev loss; by train loss where there is no dev."""
        if "dev" not in figures and self.dev_split is not None:
            return
        source = figures.get("dev", figures["train"])
        value = source["cer"] + 1e-3 * min(source["loss"], 100.0) if "dev" in figures else source["loss"]
        if value < self.position.best_value:
            self.position.best_value, self.position.best_epoch = value, epoch
            self.position.epochs_without_better = 0
        else:
            self.position.epochs_without_better += 1

    def _save(self) -> None:
        position = self.position
        position.meter = self.meter.state() if position.batch else {}
        tensors, groups = optimizer_to_tensors(self.optimizer.state_dict())
        last = position.last_metrics
        chosen = last.get("dev", last.get("train", {})) if not position.batch else {}
        state = {
            "position": position.__dict__,
            "optimizer": groups,
            "scaler": self.scaler.state_dict() if self.scaler.is_enabled() else {},
            "metrics": {"selection": chosen["cer"] + 1e-3 * min(chosen["loss"], 100.0)} if chosen else {},
        }
        self.store.save(position.update, dict(self.model.acoustic.state_dict()), tensors, state)

    def _save_and_stop(self, saved: bool = False) -> None:
        if not saved:
            self._save()
        name = signal.Signals(self.stop_signal or signal.SIGINT).name
        raise StoppedError(
            f"stopped by {name} in epoch {self.position.epoch} after update {self.position.update}, checkpoint saved",
            fix="type the same command to go on",
            reason="stopped",
        )

    def _signals(self) -> _SignalGuard:
        return _SignalGuard(self)


class _SignalGuard:
    """First Ctrl-C or SIGTERM: finish the step, save, stop. The second one ends the process at once."""

    def __init__(self, brain: CTCBrain) -> None:
        self.brain = brain
        self.before: dict[int, Any] = {}

    def __enter__(self) -> None:
        def note(number: int, _: Any) -> None:
            if self.brain.stop_signal is not None:
                raise KeyboardInterrupt
            self.brain.stop_signal = number

        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self.before[number] = signal.signal(number, note)
            except ValueError:  # not in the main thread (a notebook, a test): no handlers
                return

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
