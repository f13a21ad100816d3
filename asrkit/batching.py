"""Batches of a number of frames, bucketed by length, different every epoch and reproducible from (seed, epoch).

The batches of an epoch are a pure function of lengths, options, seed and epoch: nothing is stored to resume, the first
k are skipped. Lengths are integers, in frames.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from asrkit.errors import RecipeError, nearest

ORDERS = ("bucketed", "ascending", "random", "file")


@dataclass
class BatchSampler(Sampler[list[int]]):
    """Yields lists of row numbers.

    frames: length of every utterance (N,). batch_frames: at most this many frames in a batch, padding included (a
    longer utterance makes a batch of its own). batch_size: at most this many utterances. order: `bucketed` (shuffled,
    similar lengths together, batches in random order; in epoch 1 the longest batch comes first, so that memory fails
    early), `ascending` (by length: SortaGrad's first epoch, evaluation), `random`, `file`. first_epoch: the
    order of epoch 1, where it is another one. `set_epoch` and `skip` choose where to stand.
    """

    frames: Sequence[int]
    batch_frames: int | None
    batch_size: int | None
    order: str = "bucketed"
    seed: int = 1
    first_epoch: str | None = None
    epoch: int = 1
    skip: int = 0
    _cached: tuple[int, list[list[int]]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for key, order in (("order", self.order), ("first_epoch", self.first_epoch or self.order)):
            if order not in ORDERS:
                raise RecipeError(f"training.{key} = {order!r}", possible=nearest(str(order), ORDERS), reason="order")
        if not self.batch_frames and not self.batch_size:
            raise RecipeError(
                "neither training.batch_frames nor training.batch_size is set", fix="set one of them", reason="batch"
            )

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Stand before batch number `skip` of this epoch."""
        self.epoch, self.skip = epoch, skip

    def batches(self) -> list[list[int]]:
        """All batches of the epoch, skipped ones included."""
        if self._cached is None or self._cached[0] != self.epoch:
            self._cached = (self.epoch, self._make())
        return self._cached[1]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches()[self.skip :])

    def __len__(self) -> int:
        return len(self.batches()) - self.skip

    def _make(self) -> list[list[int]]:
        frames = np.asarray(self.frames, dtype=np.int64)
        random = np.random.default_rng([self.seed, self.epoch])
        kind = self.first_epoch if self.first_epoch and self.epoch == 1 else self.order
        order = np.arange(len(frames)) if kind == "file" else random.permutation(len(frames))
        if kind == "ascending":
            order = order[np.argsort(frames[order], kind="stable")]
        if kind != "bucketed":
            return self._cut(order, frames)
        # Sorting all clips would give the same neighbours every epoch; a noise of 10 % of the length does not.
        noisy = frames[order] * random.uniform(0.95, 1.05, len(order))
        batches = self._cut(order[np.argsort(noisy, kind="stable")], frames)
        shuffled = [batches[i] for i in random.permutation(len(batches))]
        if self.epoch == 1 and shuffled:
            longest = max(range(len(shuffled)), key=lambda i: len(shuffled[i]) * int(frames[shuffled[i]].max()))
            shuffled.insert(0, shuffled.pop(longest))
        return shuffled

    def _cut(self, order: np.ndarray, frames: np.ndarray) -> list[list[int]]:
        batches: list[list[int]] = []
        current: list[int] = []
        longest = 0
        for row in order.tolist():
            longest_now = max(longest, int(frames[row]))
            too_many = bool(self.batch_size) and len(current) >= (self.batch_size or 0)
            too_long = bool(self.batch_frames) and longest_now * (len(current) + 1) > (self.batch_frames or 0)
            if current and (too_many or too_long):
                batches.append(current)
                current, longest_now = [], int(frames[row])
            current.append(row)
            longest = longest_now
        if current:
            batches.append(current)
        return batches


@dataclass(frozen=True)
class Batch:
    """features (B, T, F) float32, lengths (B,) frames, targets (B, L) padded with 0, target_lengths (B,) labels; ids,
    rows."""

    features: Tensor
    lengths: Tensor
    targets: Tensor
    target_lengths: Tensor
    ids: tuple[str, ...]
    rows: tuple[int, ...]

    def to(self, device: str | torch.device) -> Batch:
        """The same batch with its features on another device; lengths and targets stay on the CPU, where CTC wants
        them."""
        return Batch(
            self.features.to(device, non_blocking=True),
            self.lengths,
            self.targets,
            self.target_lengths,
            self.ids,
            self.rows,
        )


def collate(items: Sequence[tuple[int, str, np.ndarray, Sequence[int]]]) -> Batch:
    """(row, id, features (T, F), labels) of several utterances -> one padded batch."""
    lengths = torch.tensor([len(frames) for _, _, frames, _ in items])
    target_lengths = torch.tensor([len(labels) for *_, labels in items])
    features = torch.zeros(len(items), int(lengths.max()), items[0][2].shape[1])
    targets = torch.zeros(len(items), max(int(target_lengths.max()), 1), dtype=torch.long)
    for i, (_, _, frames, labels) in enumerate(items):
        features[i, : len(frames)] = torch.from_numpy(np.asarray(frames, dtype=np.float32))
        targets[i, : len(labels)] = torch.tensor(labels, dtype=torch.long)
    return Batch(
        features, lengths, targets, target_lengths, tuple(item[1] for item in items), tuple(item[0] for item in items)
    )


def chain_hash(before: str, ids: Sequence[str]) -> str:
    """sha256 of one more batch after all that `before` stands for: equal for two runs that saw the same batches in the
    same order."""
    return hashlib.sha256("\n".join((before, *ids)).encode("utf-8", "surrogateescape")).hexdigest()
