"""One batch of training: forward, loss, update, and leaving no trace of one that is not finite or does not fit.

A speechbrain.Brain without its epochs: those are asrkit.training's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import speechbrain as sb
import torch
from speechbrain.core import Stage
from torch import Tensor

from asrkit.batching import Batch
from asrkit.defects import FaultyLoss
from asrkit.diagnostics.findings import Finding
from asrkit.diagnostics.monitor import Monitor
from asrkit.exhaustion import is_out_of_memory, out_of_memory
from asrkit.model import CTCModel
from asrkit.objective import listening
from asrkit.position import Position
from asrkit.preparation import Split
from asrkit.runs import MetricsLog
from asrkit.training.giving_up import nonfinite_in_a_row, scale_fell
from asrkit.training.meters import Meter
from asrkit.training.schedules import clip_gradients, learning_rate
from asrkit.training.update_group import UpdateGroup


class BatchBrain(sb.Brain):
    """Trains on one batch after the other; who calls says where in its epoch and accumulation group a batch is."""

    optimizer: torch.optim.Optimizer
    group_labels: int  # labels of all batches of the accumulation group
    should_step: bool  # whether the batch is the last one of its group
    progress_share: float  # of the whole training, 0 to 1; the learning rate follows it
    batch_loss: float  # nats per label

    def __init__(
        self,
        recipe: dict[str, Any],
        model: CTCModel,
        tokenizer: Any,
        train: Split,
        log: MetricsLog,
        on_finding: Callable[[Finding], None] | None = None,
    ) -> None:
        self.options = recipe["training"]
        device = self.options["device"]
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        super().__init__(
            modules={"acoustic": model.acoustic},
            run_opts={"device": device, "precision": self.options["precision"], "noprogressbar": True},
        )
        self.model, self.tokenizer, self.train_split, self.log = model, tokenizer, train, log
        self.position = Position()
        self.meter = Meter()
        self.refused_in_row = 0
        self.group = UpdateGroup(self.modules)
        self.loss = FaultyLoss(recipe, model.features.size)
        self.monitor = Monitor(recipe, model, train, on_finding)

    def fit_batch(self, batch: Batch) -> Tensor:
        """One batch; if anything in it is not finite, its whole accumulation group leaves no trace in any state."""
        if self.group.dropped:
            return torch.zeros(())
        try:
            return self._fit_batch(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            said = str(error).strip().splitlines()
        self._drop_group()  # outside the handler, whose traceback would keep the activations alive
        raise out_of_memory(batch, said[0] if said else "MemoryError", self._attempt)

    def _attempt(self, batch: Batch) -> None:
        """Forward and backward without an update, but with the memory that the first update takes for its averages."""
        self.optimizer.zero_grad(set_to_none=True)
        slots = 0 if self.optimizer.state else 2
        spare = [torch.empty_like(p) for p in self.modules.parameters() for _ in range(slots)]
        with self.training_ctx, listening(self.model.acoustic.objective) as inner:
            log_probs, lengths = self.compute_forward(batch, Stage.TRAIN)
        self._losses(batch, log_probs, lengths, inner)[0].sum().backward()
        del spare

    def _fit_batch(self, batch: Batch) -> Tensor:
        if not torch.isfinite(batch.features).all():
            return self._refuse(batch, "features")
        objective = self.model.acoustic.objective
        with self.training_ctx, listening(objective) as inner:
            log_probs, lengths = self.compute_forward(batch, Stage.TRAIN)
        if (record := self.monitor.first_batch(batch, log_probs, lengths, self.position.update)) is not None:
            self.log.append(record)
        total, nll = self._losses(batch, log_probs, lengths, inner)
        if not torch.isfinite(total).all():
            return self._refuse(batch, "loss")
        loss = total.sum() / self.group_labels
        self.batch_loss = float(nll.detach().sum() / batch.target_lengths.sum())
        self.scaler.scale(loss).backward()
        if self.should_step and not self._update(batch):
            return self._refuse(batch, "gradient")
        self.refused_in_row = 0
        self.meter.add_loss(nll.detach(), int(batch.target_lengths.sum()), int(batch.lengths.sum()))
        if objective is not None:
            self.meter.objective += float(total.detach().sum())
        self.meter.add_outputs(log_probs, lengths, [self.train_split.texts[row] for row in batch.rows], self.tokenizer)
        return loss.detach()

    def _losses(self, batch: Batch, log_probs: Tensor, lengths: Tensor, inner: Any) -> tuple[Tensor, Tensor]:
        """What is minimized (B,), and the negative log-likelihood (B,) in it."""
        objective = self.model.acoustic.objective
        if objective is None:
            nll = self.compute_objectives((log_probs, lengths), batch, Stage.TRAIN)
            return nll, nll
        targets = batch.targets.to(log_probs.device)
        return objective(self.loss, log_probs, lengths, inner, targets, batch.target_lengths, batch.ids)

    def compute_forward(self, batch: Batch, stage: Stage) -> tuple[Tensor, Tensor]:
        """Log-probabilities (B, T', V) on the device, lengths (B,) on the CPU."""
        log_probs, _ = self.modules["acoustic"](batch.features, batch.lengths.to(self.device))
        return log_probs, self.model.acoustic.encoder.num_frames(batch.lengths)

    def compute_objectives(self, predictions: tuple[Tensor, Tensor], batch: Batch, stage: Stage) -> Tensor:
        """Negative log-likelihood (B,) in nats."""
        log_probs, lengths = predictions
        return self.loss(log_probs, lengths, batch.targets.to(log_probs.device), batch.target_lengths, batch.ids)

    def _update(self, batch: Batch) -> bool:
        """One optimizer step with one clip over all groups; False if the gradient is not finite."""
        self.scaler.unscale_(self.optimizer)
        norm, by_layer = clip_gradients(self.modules, self.options["clip"])
        finite = norm == norm and norm != float("inf")
        if not finite and not self.scaler.is_enabled():
            return False
        rate = learning_rate(self.progress_share, self.options)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if not finite:  # under fp16 the scaler has skipped the step and will try a smaller scale
            self.meter.skipped += 1
            if self.scaler.get_scale() < 1.0:
                raise scale_fell(self.scaler.get_scale(), batch.ids)
        else:
            self.position.update += 1
            self.meter.add_update(norm, by_layer, rate)
            self.log.append(
                {"type": "update", "step": self.position.update, "epoch": self.position.epoch, "lr": rate,
                 "grad_norm": norm, "loss": self.batch_loss}
            )  # fmt: skip
            self.monitor.updated(self.batch_loss)
        return True

    def _drop_group(self) -> None:
        """As if this accumulation group had never begun."""
        self.meter = self.group.drop()
        self.optimizer.zero_grad(set_to_none=True)

    def _refuse(self, batch: Batch, what: str) -> Tensor:
        """Put back buffers and sums, drop the gradients, count, and give up after too many in a row."""
        self._drop_group()
        self.meter.refused += 1
        self.refused_in_row += 1
        self.log.append(
            {"type": "refused", "step": self.position.update, "epoch": self.position.epoch,
             "batch": self.position.batch, "what": what, "ids": list(batch.ids)}
        )  # fmt: skip
        if self.refused_in_row >= self.options["max_nonfinite"]:
            raise nonfinite_in_a_row(self.refused_in_row, what, batch.ids)
        return torch.zeros(())
