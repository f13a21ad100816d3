"""What the checks of a model are made of: calling it without a trace, watching its layers, changing its input.

Letters: B utterances, T frames, F features, T' output frames, V labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from asrkit.layers import Chain, Layer, Residual
from asrkit.masking import frame_mask
from asrkit.recurrent.layer import RecurrentLayer

RANDOM = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
Forward = Callable[[Tensor, Tensor], Any]


class Probe:
    """A model and one batch: features (B, T, F), lengths (B,). Every call sees the same random numbers and running
    statistics."""

    def __init__(
        self, forward: Forward, model: nn.Module | None, features: Tensor, lengths: Tensor, batch_first: bool = True
    ) -> None:
        self.forward, self.model, self.features, self.lengths = forward, model, features, lengths
        self.batch_first = batch_first
        self._buffers = [(b, b.clone()) for b in model.buffers()] if model is not None else []
        self.settle = 0  # calls on the batch itself before each call that counts, for a model that remembers

    def __call__(self, features: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Outputs (B, T', V), and output lengths (B,) where the model gives some."""
        for _ in range(self.settle):
            self._call(self.features)
        return self._call(self.features if features is None else features)

    def _call(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad():
            for buffer, value in self._buffers:
                buffer.copy_(value)
        with torch.random.fork_rng(devices=[features.device] if features.is_cuda else []):
            torch.manual_seed(0)
            got = self.forward(features, self.lengths)
        if isinstance(got, Tensor):
            return (got if self.batch_first else got.transpose(0, 1)), None
        outputs, lengths = got[0], got[1]
        if not isinstance(lengths, Tensor) or lengths.is_floating_point() or lengths.shape != self.lengths.shape:
            lengths = None
        return (outputs if self.batch_first else outputs.transpose(0, 1)), lengths

    def other(self) -> Tensor:
        """The same batch with another content: each utterance begins in its middle and goes on at its start.

        Lengths, values and smoothness stay; only what is said when differs.
        """
        x = self.features.clone()
        for i, n in enumerate(self.lengths.tolist()):
            x[i, :n] = self.features[i, :n].roll(n // 2, 0)
        return x

    def mates(self) -> Tensor:
        """The same batch with other content in all utterances but the middle one."""
        x = self.other()
        x[len(x) // 2] = self.features[len(x) // 2]
        return x

    def padded(self) -> Tensor:
        """The same batch with half as much again in padding, in whole multiples of 16 for strides."""
        return nn.functional.pad(self.features, (0, 0, 0, 16 * (1 + self.features.shape[1] // 32)))

    def real(self, frames: int, share: float = 1.0) -> Tensor:
        """(B, frames) bool: which of a layer's frames are real, by proportion; `share` of each, from its start."""
        kept = (self.lengths.cpu().double() * frames * share / self.features.shape[1]).floor().long()
        return frame_mask(kept, frames).to(self.features.device)


@contextmanager
def untouched(model: nn.Module | None) -> Iterator[None]:
    """Buffers, training modes and gradients of the model are the same afterwards."""
    modules = list(model.modules()) if model is not None else []
    modes = [module.training for module in modules]
    buffers = [(b, b.clone()) for b in model.buffers()] if model is not None else []
    grads = [(p, p.grad) for p in model.parameters()] if model is not None else []
    cudnn, tf32 = torch.backends.cudnn, torch.backends.cudnn.allow_tf32
    cudnn.allow_tf32 = False  # three digits are not enough to compare
    try:
        yield
    finally:
        cudnn.allow_tf32 = tf32
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for parameter, grad in grads:
            parameter.grad = grad


def is_norm(module: nn.Module) -> bool:
    """By name, as torch's, asrkit's and most other people's norms say so; without matrices, which an encoder has."""
    return "norm" in type(module).__name__.lower() and all(p.dim() < 2 for p in module.parameters())


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


def watched(model: nn.Module) -> dict[str, nn.Module]:
    """Layers whose outputs are looked at, by path: modules without children, asrkit's layers, recurrent stacks.

    Dropout and masks of augmentation are left out: they pass on what they get.
    """
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if any(name.startswith(f"{above}.") for above in found):
            continue
        whole = isinstance(module, RecurrentLayer | nn.RNNBase)
        if isinstance(module, Layer) and not isinstance(module, Chain | Residual):
            inner = any(isinstance(m, RecurrentLayer) for m in module.modules())
            whole = not inner and not any(isinstance(m, RANDOM) for m in module.modules())
        leaf = not any(True for _ in module.children())
        if whole or (leaf and not isinstance(module, (*RANDOM, nn.Identity)) and name):
            found[name] = module
    return {name: module for name, module in found.items() if "augment" not in type(module).__name__.lower()}


@contextmanager
def outputs_of(modules: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """The last output of each module, by name, filled while the model is called."""
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            if isinstance(first, Tensor) and first.is_floating_point() and first.dim() >= 2:
                kept[name] = first.detach()

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


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


def dead_share(output: Tensor) -> float:
    """Share of units that are 0 everywhere: the last axis, or the channels (B, C, ., .) of a convolution."""
    units = output.transpose(1, -1) if output.dim() == 4 else output
    return float((units.flatten(0, -2) <= 0).all(0).double().mean())


def short(path: str) -> str:
    """A path for people: `encoder.stack.layers.0.layers.3.recurrent.layers.0` -> `layers.0.3.recurrent.0`."""
    _, _, rest = path.partition("stack.layers.")
    if not rest:
        return path
    return "layers." + rest.replace("layers.", "")
