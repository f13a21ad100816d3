"""The average of checkpoints of one run as a model of its own.

What is averaged, and how:

* Weights: the mean, in float64. Of weights that a parametrization computes (weight norm) the weights themselves, as
  the layers multiply with them, are averaged, and taken apart again.
* Running statistics of norms (`RunningMoments`): mean and variance of every feature (frame-wise norms: of every
  feature at every step) by the frames behind them, so that a step that one checkpoint has hardly seen hardly counts.
  The spread of the checkpoints' means is not added: the averaged weights give about the average of their activations,
  not a mixture of them. The number of frames is the largest one: windows of neighbouring checkpoints share frames, so a
  sum would claim too many.
* Whole numbers (counters): those of the newest.

`recompute` replaces the running statistics by those of the averaged weights over the train split, every frame counted
once (Izmailov et al. 2018, arXiv 1803.05407, section 3.2, do it so), which needs the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader
from tqdm import tqdm

from asrkit.batching import BatchSampler, collate
from asrkit.errors import StorageError
from asrkit.model import AcousticModel
from asrkit.normalization.moments import RunningMoments
from asrkit.preparation.splits import Split

State = dict[str, Tensor]
BATCH_FRAMES = 40_000  # feature frames of one batch, padding included


def average_into(acoustic: AcousticModel, states: Sequence[State]) -> None:
    """Load the average of state dicts of one run, oldest first, into its model. Raises StorageError (`checkpoints`) for
    states that do not belong together."""
    names = list(states[0])
    if any(set(state) != set(names) or any(state[n].shape != states[0][n].shape for n in names) for state in states):
        raise StorageError("the checkpoints hold different tensors", fix="use those of one run", reason="checkpoints")
    averaged = {name: _mean([state[name] for state in states]) for name in names}
    for prefix, module in acoustic.named_modules():
        if isinstance(module, RunningMoments):
            keys = [f"{prefix}.{part}" for part in ("mean", "var", "count")]
            averaged |= dict(zip(keys, _moments(*([state[key] for state in states] for key in keys)), strict=True))
    computed = _computed_weights(acoustic, states)
    acoustic.load_state_dict(averaged)
    with torch.no_grad():
        for path, weight in computed.items():
            owner, _, name = path.rpartition(".")
            setattr(acoustic.get_submodule(owner), name, weight)


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    if not tensors[0].is_floating_point():
        return tensors[-1]
    return torch.stack([tensor.double() for tensor in tensors]).mean(0).to(tensors[0].dtype)


def _moments(means: list[Tensor], variances: list[Tensor], counts: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """(*shape, C), (*shape, C), (*shape, 1) of every checkpoint -> those of the average; never seen: the newest's."""
    count = torch.stack(counts).double()
    total = count.sum(0)
    share = count / total.clamp(min=1)

    def weighted(tensors: list[Tensor]) -> Tensor:
        found = (share * torch.stack(tensors).double()).sum(0).to(tensors[0].dtype)
        return torch.where(total > 0, found, tensors[-1])

    return weighted(means), weighted(variances), count.amax(0).to(counts[0].dtype)


def _parametrized(acoustic: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Path, module and name of every weight that is computed from others."""
    for prefix, module in acoustic.named_modules():
        if parametrize.is_parametrized(module):
            for name in module.parametrizations:  # type: ignore[union-attr]
                yield f"{prefix}.{name}", module, name


@torch.no_grad()
def _computed_weights(acoustic: AcousticModel, states: Sequence[State]) -> State:
    """The mean of each such weight, as the layers see it."""
    sums: dict[str, Tensor] = {}
    if not any(True for _ in _parametrized(acoustic)):
        return sums
    for state in states:
        acoustic.load_state_dict(state)
        for path, module, name in _parametrized(acoustic):
            weight = getattr(module, name).double()
            sums[path] = weight if path not in sums else sums[path] + weight
    return {path: (total / len(states)).float() for path, total in sums.items()}


@torch.no_grad()
def recompute(acoustic: AcousticModel, split: Split, device: str = "cpu", progress: bool = False) -> int:
    """Replace the running statistics of all norms by those of the frames of a split, each counted once; returns how
    many norms have some.

    Norms work as in training, on batches of up to `BATCH_FRAMES`, everything else as at test time: no dropout, no
    masks of SpecAugment.
    """
    acoustic.eval().to(device)
    moments = [module for module in acoustic.modules() if isinstance(module, RunningMoments)]
    norms = [module for module in acoustic.modules() if any(isinstance(m, RunningMoments) for m in module.children())]
    kept = [(m.momentum, m) for m in moments]
    counters = {name: value.clone() for name, value in acoustic.named_buffers() if not value.is_floating_point()}
    for one in moments:
        one.momentum = 0.0  # nothing fades
        for buffer, start in ((one.mean, 0.0), (one.var, 1.0), (one.count, 0.0)):
            buffer.fill_(start)
    for norm in norms:
        norm.train()
    try:
        sampler = BatchSampler(split.frames, BATCH_FRAMES, None, "ascending")
        loader = DataLoader(split, batch_sampler=sampler, collate_fn=collate)
        for batch in tqdm(loader, desc="statistics", unit="batch", disable=not progress, leave=False) if norms else ():
            acoustic(batch.features.to(device), batch.lengths.to(device))
    finally:
        for momentum, one in kept:
            one.momentum = momentum
        acoustic.eval().cpu()
    buffers: dict[str, Any] = dict(acoustic.named_buffers())
    for name, value in counters.items():
        buffers[name].copy_(value)  # this was no training
    return len(norms)
