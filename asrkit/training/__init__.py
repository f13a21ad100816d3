"""The only training loop: a speechbrain.Brain whose batches are checked before they touch any state.

Kept from Brain: the stages and their hooks, precision and gradient scaling, the epoch loop. Replaced: what would lose
data or hide faults (non-finite batches, the tail of an accumulation, clipping per group, means of batch means, relative
lengths). Every random number of a step comes from (seed, epoch, batch), so a resumed run repeats an uninterrupted one
bit by bit.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from speechbrain.core import Stage
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from asrkit.batching import Batch, BatchSampler, chain_hash, collate
from asrkit.checkpoints import Checkpoints
from asrkit.checkpoints.optimizer_state import optimizer_from_tensors, optimizer_to_tensors
from asrkit.diagnostics.findings import Finding
from asrkit.errors import StoppedError
from asrkit.exhaustion import in_parts
from asrkit.model import CTCModel
from asrkit.position import Position, StopSignal, peak_memory, selection, step_seed
from asrkit.preparation import Split
from asrkit.randomness import seed_generators
from asrkit.runs import MetricsLog
from asrkit.source_code import source_hashes
from asrkit.training.giving_up import unreadable
from asrkit.training.loading import Loading
from asrkit.training.meters import Meter
from asrkit.training.resuming import is_written_again, same_code, same_data
from asrkit.training.schedules import make_optimizer
from asrkit.training.step import BatchBrain

logger = logging.getLogger(__name__)


class CTCBrain(BatchBrain):
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
        exact: bool = False,
        on_epoch: Any = None,
        on_finding: Callable[[Finding], None] | None = None,
    ) -> None:
        super().__init__(recipe, model, tokenizer, train, log, on_finding)
        self.recipe, self.seed, self.dev_split = recipe, int(recipe["seed"]), dev
        self.store, self.progress, self.on_epoch = checkpoints, progress, on_epoch
        self.exact = exact  # go on from the newest checkpoint with the code of before, or not at all
        self.epochs_trained = 0  # by this process
        self.stop = StopSignal()
        self.sampler = self._sampler(train, self.options["order"], self.options.get("first_epoch"))
        self.data = {
            "train": train.hash,
            "dev": dev.hash if dev is not None else "",
            "tokenizer": tokenizer.fingerprint,
        }
        if train.noise:
            self.data["noise"] = train.noise
        self.code = source_hashes(model.acoustic)

    # The way in and out.

    def run(self) -> dict[str, Any]:
        """Train to the end (or go on from the newest checkpoint) and return the last epoch's figures."""
        train_loader = DataLoader(self.train_split, batch_sampler=self.sampler, collate_fn=collate)
        with self.stop:
            self.fit(self._epochs(), train_loader, self._loader(self.dev_split) if self.dev_split else None)
        return self.position.last_metrics

    def on_fit_start(self) -> None:
        self.optimizer = make_optimizer(self.modules, self.options)
        self.optimizers_dict = {"main": self.optimizer}
        newest = self.store.latest(exact=self.exact)
        if newest is None:
            self.log.truncate_after(0)
            return
        same_data(newest.state.get("data"), self.data, self.store.folder.parent)
        same_code(newest.state.get("code"), self.code, self.store.folder.parent, self.exact)
        self.model.acoustic.load_state_dict(newest.model())
        self.optimizer.load_state_dict(optimizer_from_tensors(newest.optimizer(), newest.state["optimizer"]))
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(newest.state["scaler"])
        self.position = Position(**newest.state["position"])
        if self.position.finished and not self._is_finished(self.position.epoch):
            self.position.finished = False  # the recipe asks for more epochs, or for more patience, than last time
            self.position.epoch += 1
        self.log.truncate_after(self.position.update)
        if not self.position.finished:
            self.log.drop(lambda record: is_written_again(record, self.position))
        self.monitor.resume(MetricsLog.read(self.log.path))

    def _is_finished(self, epoch: int) -> bool:
        patience = self.options["early_stopping"]
        return epoch >= self.options["epochs"] or bool(patience and self.position.epochs_without_better >= patience)

    def _epochs(self) -> Iterator[int]:
        """Epoch numbers from the position on; Brain asks for the first one only after `on_fit_start`."""
        while not self.position.finished and self.position.epoch <= self.options["epochs"]:
            yield self.position.epoch

    def _sampler(self, split: Split, order: str, first: str | None = None) -> BatchSampler:
        options = self.options
        return BatchSampler(split.frames, options["batch_frames"], options["batch_size"], order, self.seed, first)

    def _loader(self, split: Split) -> DataLoader[Any]:
        return DataLoader(split, batch_sampler=self._sampler(split, "ascending"), collate_fn=collate)

    # One epoch of training.

    def _fit_train(self, train_set: Any, epoch: int, enable: bool) -> None:
        self.on_stage_start(Stage.TRAIN, epoch)
        labels = self._begin_epoch(epoch)
        started, cpu, seen = time.monotonic(), time.process_time(), self.meter.frames
        last_saved = started
        bar = tqdm(
            total=len(labels), initial=self.position.batch, desc=f"epoch {epoch}", unit="batch", leave=False,
            disable=not self.progress, dynamic_ncols=True,
        )  # fmt: skip
        with bar:
            for batch in self._loading():
                self._train_on(batch, epoch, labels)
                bar.update()
                bar.set_postfix(loss=f"{self.meter.nll / max(self.meter.labels, 1):.3f}", refresh=False)
                if self.should_step and self.stop.received is not None:
                    self._save_and_stop()
                late = time.monotonic() - last_saved > 60 * self.options["checkpoint_minutes"]
                if self.should_step and (late or self.stop.asked_to_save):
                    self._save()
                    last_saved = time.monotonic()
        if self.model.acoustic.objective is not None:
            self.model.acoustic.objective.end_epoch(self.model.acoustic.head)
        self.seconds, self.cpu_seconds = time.monotonic() - started, time.process_time() - cpu
        self.frames_per_second = (self.meter.frames - seen) / max(self.seconds, 1e-9)
        self.epochs_trained += 1
        self.on_stage_end(Stage.TRAIN, self.meter.nll / max(self.meter.labels, 1), epoch)

    def _begin_epoch(self, epoch: int) -> list[int]:
        """Go to the position in this epoch; the number of labels of each of its batches."""
        self.modules.train()
        self.optimizer.zero_grad(set_to_none=True)
        self.train_split.set_epoch(epoch)
        self.sampler.frames = self.train_split.frames  # of this epoch: augmentation changes lengths
        self.sampler.set_epoch(epoch)
        labels = [sum(len(self.train_split.labels[row]) for row in batch) for batch in self.sampler.batches()]
        self.meter = Meter(**self.position.meter)
        self.sampler.set_epoch(epoch, self.position.batch)
        return labels

    def _train_on(self, batch: Batch | None, epoch: int, labels: list[int]) -> None:
        """One batch at its place in its group, with the random numbers of its place; None: all its clips are
        quarantined."""
        index, factor = self.position.batch, int(self.options["accumulation"])
        first = index - index % factor
        if index == first:
            self.group.start(self.meter)
        self.group_labels = sum(labels[first : first + factor])
        self.should_step = index == first + factor - 1 or index == len(labels) - 1
        self.progress_share = (epoch - 1 + index / len(labels)) / self.options["epochs"]
        seed_generators(step_seed(self.seed, epoch, index))
        if batch is None:
            self._drop_group()
        else:
            self.fit_batch(batch.to(self.device))
        self.position.batch += 1
        self.position.order = chain_hash(self.position.order, batch.ids if batch is not None else ())

    def _loading(self) -> Loading:
        options = self.options
        return Loading(
            self.train_split,
            self.sampler,
            options["workers"],
            options["worker_timeout"],
            self.position.quarantined,
            self._quarantined,
        )

    def _quarantined(self, batch: int, identity: str, why: str) -> None:
        """A clip that cannot be read is counted, named, and left out from now on."""
        position, most = self.position, float(self.recipe["data"]["max_bad"])
        self.log.append(
            {"type": "quarantined", "step": position.update, "epoch": position.epoch, "batch": batch, "id": identity,
             "why": why}
        )  # fmt: skip
        logger.warning("%s cannot be read (%s): left out from now on", identity, why)
        lost, clips = len(position.quarantined), len(self.train_split)
        if lost > most * clips:
            raise unreadable(lost, clips, identity, why, most)

    # Looking at dev, the epoch's record, checkpoints.

    def _fit_valid(self, valid_set: Any, epoch: int, enable: bool) -> None:
        position = self.position
        look = epoch % self.options["evaluate_every"] == 0 or epoch == self.options["epochs"]
        figures: dict[str, Any] = {"type": "epoch", "epoch": epoch, "step": position.update}
        figures["train"] = self.meter.summary()
        if valid_set is not None and look:
            figures["dev"] = self.measure(valid_set, self.dev_split)
        figures |= {
            "order": position.order,
            "norms": self._norm_figures(),
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "frames_per_second": self.frames_per_second,
            "memory_mb": peak_memory(self.device),
        }
        figures["diagnosis"] = self.monitor.epoch(figures)
        self.log.append(figures)
        better = position.judge(self._selection(figures))
        position.last_metrics = figures
        position.batch, position.meter = 0, {}
        position.finished = self._is_finished(epoch)
        if not position.finished:
            position.epoch += 1
        due = epoch % self.options["checkpoint_every"] == 0
        if due or better or position.finished or self.stop.received is not None or self.stop.asked_to_save:
            self._save()
        if self.on_epoch is not None:
            self.on_epoch(figures)
        if self.stop.received is not None and not position.finished:
            self._save_and_stop(saved=True)

    def measure(self, loader: Any, split: Split | None) -> dict[str, Any]:
        """Loss per label, CER, WER, blank and empty shares of a split, in evaluation mode."""
        assert split is not None
        meter = Meter()
        self.modules.eval()
        with torch.inference_mode(), self.evaluation_ctx:
            for whole in loader:
                for batch, (log_probs, lengths, nll) in in_parts(whole.to(self.device), self._look):
                    meter.add_loss(nll, int(batch.target_lengths.sum()), int(batch.lengths.sum()))
                    meter.add_outputs(log_probs, lengths, [split.texts[row] for row in batch.rows], self.tokenizer)
        return meter.summary()

    def _look(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        log_probs, lengths = self.compute_forward(batch, Stage.VALID)
        return log_probs, lengths, self.compute_objectives((log_probs, lengths), batch, Stage.VALID)

    def _norm_figures(self) -> dict[str, float]:
        """Share of frames that each frame-wise norm served from fallback statistics in the last batch."""
        shares = {
            name: float(module.fallback_share)
            for name, module in self.modules.named_modules()
            if hasattr(module, "fallback_share")
        }
        return {"fallback_share": sum(shares.values()) / len(shares)} if shares else {}

    def _selection(self, figures: dict[str, Any]) -> float | None:
        """What chooses the best epoch: dev CER, then dev loss; train loss where there is no dev. Smaller is better."""
        if self.dev_split is None:
            return figures["train"]["loss"]
        if "dev" not in figures:
            return None
        return selection(figures["dev"])

    def _save(self) -> None:
        position = self.position
        position.meter = self.meter.state() if position.batch else {}
        tensors, groups = optimizer_to_tensors(self.optimizer.state_dict())
        chosen = position.selection if not position.batch else None
        state = {
            "position": position.__dict__,
            "optimizer": groups,
            "scaler": self.scaler.state_dict() if self.scaler.is_enabled() else {},
            "data": self.data,
            "code": self.code,
            "metrics": {} if chosen is None else {"selection": chosen},
        }
        self.stop.asked_to_save = False
        self.store.save(position.update, dict(self.model.acoustic.state_dict()), tensors, state)

    def _save_and_stop(self, saved: bool = False) -> None:
        if not saved:
            self._save()
        raise StoppedError(
            f"stopped by {self.stop.name} in epoch {self.position.epoch} after update {self.position.update}, "
            "checkpoint saved",
            fix="type the same command to go on",
            reason="stopped",
        )
