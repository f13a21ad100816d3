"""Where a training run stands, what stops it, and where its random numbers come from."""

from __future__ import annotations

import hashlib
import resource
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


def step_seed(seed: int, epoch: int, batch: int) -> int:
    """The generator's seed for one batch: far apart for neighbouring batches, the same on every machine."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{batch}".encode()).digest()
    return int.from_bytes(digest[:7], "little")


def selection(dev: Mapping[str, Any]) -> float:
    """What chooses the best epoch of a run by its figures on dev: the CER, and of about equals the loss in nats per
    label. Smaller is better."""
    return float(dev["cer"] + 1e-3 * min(dev["loss"], 100.0))


def peak_memory(device: str) -> float:
    """Most memory in use so far, in MiB: of the GPU where there is one, else of this process."""
    if "cuda" in str(device):
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@dataclass
class Position:
    """Everything a checkpoint keeps beside weights and optimizer."""

    epoch: int = 1
    batch: int = 0  # batches of this epoch that are done
    update: int = 0
    best_epoch: int = 0
    best_value: float = 1e30
    selection: float | None = None  # what the last epoch is chosen by, smaller is better; None: dev was not looked at
    epochs_without_better: int = 0
    finished: bool = False
    quarantined: list[str] = field(default_factory=list)  # ids of clips that could not be read while training
    order: str = ""  # hash of all batches so far, see batching.chain_hash
    meter: dict[str, Any] = field(default_factory=dict)
    last_metrics: dict[str, Any] = field(default_factory=dict)

    def judge(self, value: float | None) -> bool:
        """Take in an epoch's selection value; whether it is the best so far. None: the epoch is not judged."""
        self.selection = value
        if value is None:
            return False
        if value < self.best_value:
            self.best_value, self.best_epoch, self.epochs_without_better = value, self.epoch, 0
            return True
        self.epochs_without_better += 1
        return False


class StopSignal:
    """First Ctrl-C or SIGTERM: `received` says so, and the trainer stops after the step. The second one kills.

    SIGUSR1, which schedulers can send some minutes ahead: `asked_to_save`, and the trainer goes on.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.asked_to_save = False
        self._before: dict[int, Any] = {}

    @property
    def name(self) -> str:
        """Name of the signal, such as SIGTERM."""
        return signal.Signals(self.received or signal.SIGINT).name

    def __enter__(self) -> StopSignal:
        handlers = {signal.SIGINT: self._note, signal.SIGTERM: self._note}
        if hasattr(signal, "SIGUSR1"):
            handlers[signal.SIGUSR1] = self._note_save
        for number, handler in handlers.items():
            try:
                self._before[number] = signal.signal(number, handler)
            except ValueError:  # not in the main thread (a notebook): no handlers
                break
        return self

    def _note(self, number: int, _: Any) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number

    def _note_save(self, number: int, _: Any) -> None:
        self.asked_to_save = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
