"""What the checks of a model are made of: calling it without a trace, and changing its input.

Letters: B utterances, T frames, F features, T' output frames, V labels.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from asrkit.diagnostics.hooks import RANDOM, is_norm
from asrkit.diagnostics.shapes import read_output
from asrkit.diagnostics.state import Attributes, Buffers
from asrkit.masking import frame_mask
from asrkit.randomness import seed_generators

Forward = Callable[[Tensor, Tensor], Any]
# Batch mates are also made louder: statistics over time alone do not change when an utterance is only turned.
LOUDER = 1.5


class Probe:
    """A model and one batch: features (B, T, F) or waveforms (B, S), lengths (B,). Every call sees the same random
    numbers and buffers."""

    def __init__(
        self, forward: Forward, model: nn.Module | None, features: Tensor, lengths: Tensor, batch_first: bool = True
    ) -> None:
        self.forward, self.model, self.features, self.lengths = forward, model, features, lengths
        self.batch_first = batch_first
        self._buffers, self._attributes = Buffers(model), Attributes(model)
        self.settle = 0  # calls on the batch itself before each call that counts, for a model that remembers
        self.fresh = False  # whether attributes, too, are before every call what they were in the beginning
        self.seed = 0
        self.order: list[str] = []  # the layers whose outputs were looked at last, readable or not
        self.remembers = False  # whether buffers go on from call to call, those of norms excepted

    def __call__(self, features: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Outputs (B, T', V), and output lengths (B,) where the model gives some."""
        for _ in range(self.settle):
            self._call(self.features)
        return self._call(self.features if features is None else features)

    def _call(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        self._buffers.restore(norms_only=self.remembers)
        if self.fresh:
            self._attributes.restore()
        with _seeded(self.seed, features.device):
            got = self.forward(features.clone(), self.lengths.clone())  # a model may write into what it is given
        return read_output(got, len(self.lengths), self.batch_first)

    def forget(self) -> None:
        """Buffers and attributes as they were in the beginning."""
        self._buffers.restore()
        self._attributes.restore()

    def other(self) -> Tensor:
        """The same batch with another content: each utterance begins in its middle and goes on at its start.

        Lengths, values and smoothness stay; only what is said when differs.
        """
        x = self.features.clone()
        for i, n in enumerate(self.lengths.long().tolist()):
            x[i, :n] = self.features[i, :n].roll(n // 2, 0)
        return x

    def mates(self) -> Tensor:
        """The same batch with other and louder content in all utterances but the one that is `kept`."""
        x = self.other()
        for i, n in enumerate(self.lengths.long().tolist()):
            x[i, :n] *= LOUDER
        x[self.kept] = self.features[self.kept]
        return x

    @property
    def kept(self) -> int:
        """The middle one, or one near it that a sort by length would move; not the first one, which has no utterance
        before it."""
        middle = len(self.lengths) // 2
        lengths = self.lengths.cpu()
        there = torch.arange(len(lengths))
        stays = (lengths.argsort(descending=True, stable=True) == there) | (lengths.argsort(stable=True) == there)
        moved = [i for i in there.tolist() if i > 0 and not stays[i]]
        return min(moved, key=lambda i: abs(i - middle), default=middle)

    def noisy(self) -> Tensor:
        """The same batch with noise on all real frames, as loud as they are: none is left as it was."""
        real = self.real(self.features.shape[1])
        noise = torch.randn(self.features.shape, generator=torch.Generator().manual_seed(0)).to(self.features)
        x = self.features.clone()
        x[real] += noise[real] * x[real].std()
        return x

    def rounded(self, eps: float) -> Tensor:
        """The same batch, every number moved by one rounding of a type with this `eps`, up or down by chance."""
        up = torch.rand(self.features.shape, generator=torch.Generator().manual_seed(0)) > 0.5
        return self.features * torch.where(up, 1 + eps, 1 - eps).to(self.features)

    def padded(self) -> Tensor:
        """The same batch with half as much again in padding, in whole multiples of 16 for strides.

        Raises IndexError on a GPU for a model with a table that may be one of positions: there a place beyond its end
        is no exception but the end of all use of the device.
        """
        modules = () if self.model is None else self.model.modules()
        if self.features.is_cuda and any(isinstance(m, nn.Embedding) for m in modules):
            raise IndexError("not tried on a GPU, as the model may have a table of positions")
        more = 16 * (1 + self.features.shape[1] // 32)
        return nn.functional.pad(self.features, (0, 0, 0, more) if self.features.dim() == 3 else (0, more))

    def cut(self, frames: int, backwards: bool = False) -> Probe:
        """All utterances cut to so many frames at most; with `backwards`, the last one first."""
        features, lengths = self.features[:, :frames], self.lengths.clamp(max=frames)
        if backwards:
            features, lengths = features.flip(0), lengths.flip(0)
        return self._of(features, lengths)

    def with_other(self) -> Probe:
        """One batch (2 B, T, F): all utterances, then the same with `other` content."""
        return self._of(torch.cat([self.features, self.other()]), self.lengths.repeat(2))

    def _of(self, features: Tensor, lengths: Tensor) -> Probe:
        """The same model with another batch; it begins with the same buffers."""
        other = copy.copy(self)
        other.features, other.lengths = features, lengths
        return other

    def real(self, frames: int, share: float = 1.0) -> Tensor:
        """(B, frames) bool: which of a layer's frames are real, by proportion; `share` of each, from its start."""
        kept = (self.lengths.cpu().double() * frames * share / self.features.shape[1]).floor().long()
        return frame_mask(kept, frames).to(self.features.device)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's, numpy's and Python's own generators begin with the seed, and are afterwards where they were."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            seed_generators(seed)
            random.seed(seed)
            np.random.seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def untouched(model: nn.Module | None) -> Iterator[None]:
    """Buffers, training modes and gradients of the model are the same afterwards."""
    modules = list(model.modules()) if model is not None else []
    modes = [module.training for module in modules]
    buffers = Buffers(model)
    grads = [(p, p.grad) for p in model.parameters()] if model is not None else []
    cudnn, tf32 = torch.backends.cudnn, torch.backends.cudnn.allow_tf32
    cudnn.allow_tf32 = False  # three digits are not enough to compare
    try:
        yield
    finally:
        cudnn.allow_tf32 = tf32
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        buffers.restore()
        for parameter, grad in grads:
            parameter.grad = grad


def evaluation(model: nn.Module | None, norms_training: bool = False) -> None:
    """Evaluation mode, in which nothing is random; with `norms_training`, norms as in training."""
    if model is None:
        return
    model.eval()
    for module in model.modules():
        if norms_training and is_norm(module):
            module.train()


def without_dropout(model: nn.Module) -> None:
    """Training mode but for what is random, so that a gradient is that of the whole model."""
    model.train()
    for module in model.modules():
        if isinstance(module, RANDOM) or "augment" in type(module).__name__.lower():
            module.eval()


def is_relu(module: nn.Module) -> bool:
    """Activations that are 0 with a gradient of 0 on one side; asrkit's come wrapped as layers."""
    inner = getattr(module, "module", module)
    return isinstance(inner, nn.ReLU | nn.ReLU6) or type(inner).__name__ == "ClippedReLU"


def dependence(before: Tensor, after: Tensor) -> float:
    """How much of an output depends on the input's content: 0 none, about 1 all of it.

    RMS of the difference of outputs for two contents, over sqrt 2 times their own: 1 for independent ones of mean 0.
    """
    if before.shape != after.shape:
        return 1.0
    scale = (before.double().square().mean() + after.double().square().mean()).sqrt()
    return float((before - after).double().square().mean().sqrt() / scale.clamp(min=1e-30))


def dead_share(output: Tensor, real: Tensor | None = None) -> float:
    """Share of units that are 0 everywhere: the last axis, or the channels (B, C, ., .) of a convolution.

    real (B, T): the frames to look at of an output (B, T, C).
    """
    units = output.transpose(1, -1) if output.dim() == 4 else output
    units = units.flatten(0, -2) if real is None else units[real]
    return float((units <= 0).all(0).double().mean()) if len(units) else 0.0


def short(path: str) -> str:
    """A path for people: `encoder.stack.layers.0.layers.3.recurrent.layers.0` -> `layers.0.3.recurrent.0`."""
    _, _, rest = path.partition("stack.layers.")
    if not rest:
        return path
    return "layers." + rest.replace("layers.", "")
