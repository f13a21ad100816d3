"""Watching the layers of a model while it is called: what they give, what they get, in which order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence
from torch.overrides import TorchFunctionMode

from asrkit.layers import Chain, Layer, Residual
from asrkit.recurrent.layer import RecurrentLayer

RANDOM = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_pool = nn.modules.pooling
CHANNELS_FIRST = (  # of which outputs are (B, C, T) or (B, C, ., .)
    nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm, nn.modules.conv._ConvNd,
    _pool._MaxPoolNd, _pool._AvgPoolNd, _pool._AdaptiveMaxPoolNd, _pool._AdaptiveAvgPoolNd,
)  # fmt: skip
CHANNELS_LAST = (nn.LayerNorm, nn.RMSNorm)
SOFTMAXES = {F.softmax, torch.softmax, Tensor.softmax}
RELUS = {F.relu, F.relu_, F.relu6, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}
WHOLE = (RecurrentLayer, nn.RNNBase, nn.MultiheadAttention)  # looked at as one, whatever is in them

Given = tuple[tuple[Any, ...], dict[str, Any]]  # what a module is called with


def is_norm(module: nn.Module) -> bool:
    """By name, as torch's, asrkit's and most other people's norms say so; without matrices, which an encoder has."""
    return "norm" in type(module).__name__.lower() and all(p.dim() < 2 for p in module.parameters())


def watched(model: nn.Module) -> dict[str, nn.Module]:
    """Layers whose outputs are looked at, by path: modules without children, asrkit's layers, recurrent stacks,
    attention.

    Dropout and masks of augmentation are left out: they pass on what they get; and what computes weights from others.
    """
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if any(name.startswith(f"{above}.") for above in found):
            continue
        whole = isinstance(module, WHOLE)
        if isinstance(module, Layer) and not isinstance(module, Chain | Residual):
            inner = any(isinstance(m, RecurrentLayer) for m in module.modules())
            whole = not inner and not any(isinstance(m, RANDOM) for m in module.modules())
        leaf = all(child == "parametrizations" for child, _ in module.named_children())
        if whole or (leaf and not isinstance(module, (*RANDOM, nn.Identity)) and name):
            found[name] = module
    return {name: module for name, module in found.items() if "augment" not in type(module).__name__.lower()}


def plain(given: Any) -> Tensor | None:
    """A layer's numbers, without a gradient; packed and nested ones with zeros behind the shorter."""
    first = given[0] if isinstance(given, tuple) and given and not isinstance(given, PackedSequence) else given
    first = pad_packed_sequence(first, batch_first=True)[0] if isinstance(first, PackedSequence) else first
    if not isinstance(first, Tensor) or not first.is_floating_point():
        return None
    return first.detach().to_padded_tensor(0.0) if first.is_nested else first.detach()


@dataclass
class Seen:
    """More than outputs, by name of layer: what it was given, and whether its outputs are (B, C, T) or (B, C, ., .).

    relus: outputs of activations that are no modules, and the same of them, by the layer that was called before.
    softmaxes: shapes of what a softmax has given, by a module or not. kinds: floating point types that it computes in,
    by autocast too. functions: whether these three could be seen.
    """

    inputs: dict[str, list[Tensor]] = field(default_factory=dict)
    channels_first: dict[str, bool] = field(default_factory=dict)
    relus: dict[str, tuple[Tensor, bool]] = field(default_factory=dict)
    softmaxes: set[tuple[int, ...]] = field(default_factory=set)
    kinds: set[torch.dtype] = field(default_factory=set)
    functions: bool = False
    last: tuple[str, tuple[int, ...]] = ("", ())

    def after(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """A layer has been called."""
        self.inputs[name] = [tensor for one in args if (tensor := plain(one)) is not None]
        before, shape = self.last
        same = shape == tuple(output.shape) and all(p.dim() < 2 for p in module.parameters())
        same = same and not isinstance(module, CHANNELS_LAST)  # T may be as large as C
        first = isinstance(module, CHANNELS_FIRST) and output.dim() in (3, 4)
        self.channels_first[name] = first or (same and self.channels_first.get(before, False))
        own = output.data_ptr()  # a module that calls F.relu is seen as a module
        self.relus = {key: one for key, one in self.relus.items() if one[0].data_ptr() != own}
        self.last = name, tuple(output.shape)

    def relu(self, output: Tensor) -> None:
        """An activation has been called, by a module of its own or not."""
        name, shape = self.last
        self.relus[name] = output.detach(), shape == tuple(output.shape) and self.channels_first.get(name, False)


@contextmanager
def outputs_of(modules: dict[str, nn.Module], seen: Seen | None = None) -> Iterator[dict[str, Tensor]]:
    """The last output of each module, by name, in the order of their first calls, filled while the model is called."""
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, keywords: Any, output: Any) -> None:
            first = plain(output)
            if first is not None and first.dim() >= 2:
                kept[name] = first
                if seen is not None:
                    seen.after(name, module, (*args, *keywords.values()), first)

        return hook

    handles = [module.register_forward_hook(keep(name), with_kwargs=True) for name, module in modules.items()]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def inputs_of(modules: dict[str, nn.Module], kept: dict[str, Given]) -> Iterator[None]:
    """What each module is called with, by name; only where the first argument is a tensor."""

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, keywords: Any) -> None:
            if args and isinstance(args[0], Tensor):
                kept[name] = (args[0].detach().clone(), *args[1:]), keywords

        return hook

    handles = [module.register_forward_pre_hook(keep(name), with_kwargs=True) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def functions_of(model: nn.Module | None, seen: Seen) -> AbstractContextManager[Any]:
    """Tell `seen` of relu, softmax and types while the model is called, by modules and functions; those inside torch's
    own kernels, and those of a compiled model, cannot be seen."""
    seen.functions = model is None or not any(hasattr(m, "_orig_mod") for m in model.modules())
    return _Functions(seen) if seen.functions else nullcontext()


class _Functions(TorchFunctionMode):
    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor) and output.is_floating_point():
            self.seen.kinds.add(output.dtype)
        if func in RELUS and isinstance(output, Tensor) and output.dim() >= 2 and not output.is_nested:
            self.seen.relu(output)
        if func in SOFTMAXES and isinstance(output, Tensor) and not output.is_nested:
            self.seen.softmaxes.add(tuple(output.shape))
        return output


@contextmanager
def order_of(model: nn.Module) -> Iterator[list[str]]:
    """Paths of all modules that are called, each once, in the order in which they are called first."""
    order: list[str] = []

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            if name not in order:
                order.append(name)

        return hook

    handles = [module.register_forward_pre_hook(note(name)) for name, module in model.named_modules()]
    try:
        yield order
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def scaled(module: nn.Module, factor: float) -> Iterator[None]:
    """What the module gives is multiplied, wherever it stands in what it returns."""

    def times(value: Any) -> Any:
        if isinstance(value, PackedSequence):
            return value._replace(data=value.data * factor)
        if isinstance(value, tuple | list):
            parts = [times(one) for one in value]
            return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        return value * factor if isinstance(value, Tensor) and value.is_floating_point() else value

    handle = module.register_forward_hook(lambda _module, _args, output: times(output))
    try:
        yield
    finally:
        handle.remove()
