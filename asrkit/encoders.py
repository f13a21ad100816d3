"""The encoder contract, and StackEncoder: a recipe's `layers:` with the `norm` slot that a plugin fills.

A normalization plugin is an encoder that overrides one method::

    class RMSNormEncoder(asrkit.StackEncoder):
        def make_norm(self, size):
            return RMSNorm(size, self.norm.eps, self.norm.affine)   # norm(x (B, T, C), mask (B, T)) -> (B, T, C)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from asrkit.errors import AsrkitError, RecipeError, nearest
from asrkit.layers import (
    ACTIVATIONS,
    Chain,
    Context,
    Conv,
    FrameWise,
    Layer,
    Linear,
    Residual,
    is_empty,
    make_activation,
    make_dropout,
)
from asrkit.masking import frame_mask, zero_padding
from asrkit.recurrent import Recurrent


@dataclass(frozen=True)
class NormOptions:
    """The recipe's `norm:` section, one rule for all strategies, so that arms differ in the strategy alone.

    eps: added to the variance (1). affine: whether gain and bias are learned. momentum: weight of the newest batch in
    running averages. min_count: frame-wise BN trusts the statistics of a time step from this many frames on.
    max_steps: frame-wise BN stores this many time steps; later ones share the last row. allow_batch_of_one: let
    frame-wise BN train with batches of one utterance, on running statistics alone.
    """

    eps: float = 1e-5
    affine: bool = True
    momentum: float = 0.1
    min_count: int = 16
    max_steps: int = 1024
    allow_batch_of_one: bool = False


class Encoder(nn.Module):
    """Contract: frames in, frames out, with exact integer lengths.

    `forward(x (B, T, F), lengths (B,)) -> (y (B, T', D), lengths' (B,))`; D = `output_size`; `num_frames(T)` is the
    real T' for an integer or an integer tensor. Real output frames depend on real input frames only. `batch_statistics`
    says whether statistics are taken over the batch in training.
    """

    asrkit_api = 1
    batch_statistics = False
    output_size: int

    def num_frames(self, frames: Any) -> Any:
        """T -> T', exact."""
        raise NotImplementedError

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class NormSlot(Layer):
    """The place of `norm` in the stack: calls the plugin's module with the mask of real frames."""

    def __init__(self, norm: nn.Module, input_size: int, channels: int = 1) -> None:
        super().__init__()
        self.norm, self.output_size, self.channels = norm, input_size, channels

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.norm(x, frame_mask(lengths, x.shape[1])), lengths


class RecurrentLayer(Layer):
    """GRU or LSTM in one or two directions over the real frames of each utterance: (B, T, C) -> (B, T, D)."""

    def __init__(self, input_size: int, cell: str, bidirectional: bool, options: dict[str, Any]) -> None:
        super().__init__()
        self.recurrent = Recurrent(input_size, cell=cell, bidirectional=bidirectional, **options)
        self.output_size = self.recurrent.output_size

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        if is_empty(x.shape[1]):
            return x.new_zeros(x.shape[0], 0, self.output_size), lengths
        return self.recurrent(x, lengths), lengths


class StackEncoder(Encoder):
    """A recipe's `layers:`, one after the other; `norm` in them is what `make_norm` returns.

    Layers: conv, context, linear, dropout, norm, gru, bigru, lstm, bilstm, residual, repeat, and the activations. The
    weights are drawn from torch's generator in the order of the layers; `make_norm` cannot disturb that order, so all
    strategies start from the same weights.
    """

    def __init__(self, input_size: int, layers: list[Any], norm: NormOptions | None = None) -> None:
        super().__init__()
        self.norm = norm or NormOptions()
        self.input_size = input_size
        self.stack = self._chain(layers, input_size, 1, "layers")
        self.output_size = self.stack.output_size

    def make_norm(self, size: int) -> nn.Module:
        """The norm for C = `size` features: `norm(x (B, T, C), mask (B, T)) -> (B, T, C)`. Plugins override this."""
        raise NotImplementedError(f"{type(self).__name__} must define make_norm(size)")

    def num_frames(self, frames: Any) -> Any:
        return self.stack.num_frames(frames)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x, lengths = self.stack(zero_padding(x, lengths), lengths)
        return zero_padding(x, lengths), lengths

    # Building: one method per kind of entry in `layers:`.

    def _chain(self, specs: Any, size: int, channels: int, where: str) -> Chain:
        if not isinstance(specs, list):
            raise RecipeError(
                f"{where} = {specs!r}", possible="a list such as [norm, {bigru: 512}, {dropout: 0.2}]", reason="layers"
            )
        layers: list[Layer] = []
        input_size, input_channels = size, channels
        for index, spec in enumerate(specs):
            layer = self._layer(spec, size, channels, f"{where}.{index}")
            size, channels = layer.output_size, layer.channels
            layers.append(layer)
        return Chain(layers, input_size, input_channels)

    def _layer(self, spec: Any, size: int, channels: int, where: str) -> Layer:
        if isinstance(spec, dict) and len(spec) == 1:
            name, options = next(iter(spec.items()))
        elif isinstance(spec, str):
            name, options = spec, None
        else:
            raise RecipeError(
                f"{where} = {spec!r}", possible="a name such as norm, or one name with its options", reason="layers"
            )
        builders = self._builders()
        if not isinstance(name, str) or name not in builders:
            raise RecipeError(
                f"{where}: unknown layer {name!r}", possible=nearest(str(name), builders), reason="layers"
            )
        try:
            return builders[name](options, size, channels, where)
        except RecipeError as error:
            if error.what.startswith("layers."):
                raise  # an inner layer, which has named itself
            raise RecipeError(
                f"{where}: {error.what}", possible=error.possible, fix=error.fix, reason=error.reason
            ) from error
        except (TypeError, ValueError) as error:
            raise RecipeError(
                f"{where}: {name} does not take {options!r} ({error})",
                possible=_signature(name),
                reason="layer_option",
            ) from error

    def _builders(self) -> dict[str, Callable[[Any, int, int, str], Layer]]:
        def activation(name: str) -> Callable[[Any, int, int, str], Layer]:
            return lambda o, size, channels, _: FrameWise(make_activation(name, _options(name, o)), size, channels)

        def recurrent(cell: str, both: bool) -> Callable[[Any, int, int, str], Layer]:
            return lambda o, size, _, __: RecurrentLayer(size, cell, both, _options(cell, o))

        return {
            "conv": lambda o, size, channels, _: Conv(size, **_options("conv", o), input_channels=channels),
            "context": lambda o, size, _, __: Context(size, **_options("context", o)),
            "linear": lambda o, size, _, __: Linear(size, **_options("linear", o)),
            "dropout": lambda o, size, channels, _: FrameWise(make_dropout(**_options("dropout", o)), size, channels),
            "norm": self._norm,
            "residual": self._residual,
            "repeat": self._repeat,
            "gru": recurrent("gru", False),
            "bigru": recurrent("gru", True),
            "lstm": recurrent("lstm", False),
            "bilstm": recurrent("lstm", True),
            **{name: activation(name) for name in ACTIVATIONS},
        }

    def _norm(self, options: Any, size: int, channels: int, where: str) -> Layer:
        if options:
            raise RecipeError(
                f"{where}: norm takes no options of its own (given {options!r})",
                fix="set them for all norms at once in the recipe's `norm:` section",
                reason="layer_option",
            )
        maker = f"{type(self).__module__}.{type(self).__qualname__}.make_norm({size})"
        contract = "an nn.Module: norm(x (B, T, C), mask (B, T)) -> (B, T, C)"
        try:
            with torch.random.fork_rng():  # a norm that draws numbers must not change the weights of the other layers
                norm = self.make_norm(size)
        except AsrkitError:
            raise
        except Exception as error:
            raise RecipeError(
                f"{where}: {maker} fails: {type(error).__name__}: {error}",
                possible=contract,
                fix="mend the plugin; with --debug you see where it fails",
                reason="broken_plugin",
            ) from error
        if not isinstance(norm, nn.Module):
            raise RecipeError(f"{where}: {maker} returns {norm!r}", possible=contract, reason="encoder_contract")
        return NormSlot(norm, size, channels)

    def _residual(self, options: Any, size: int, channels: int, where: str) -> Layer:
        if isinstance(options, dict) and set(options) != {"layers"}:
            raise ValueError("it needs layers and nothing else")
        layers = options["layers"] if isinstance(options, dict) else options
        return Residual(self._chain(layers, size, channels, f"{where}.residual"), size, channels)

    def _repeat(self, options: Any, size: int, channels: int, where: str) -> Layer:
        if not isinstance(options, dict) or set(options) != {"times", "layers"}:
            raise ValueError("it needs times and layers")
        times, layers = options["times"], options["layers"]
        if isinstance(times, bool) or not isinstance(times, int) or times < 1 or not isinstance(layers, list):
            raise ValueError("times is an integer of at least 1, layers a list")
        return self._chain(layers * times, size, channels, f"{where}.repeat")


# What a recipe may give each layer: the arguments of these but for what the stack itself decides.
_TAKERS: dict[str, Any] = {
    "conv": Conv,
    "context": Context,
    "linear": Linear,
    "dropout": make_dropout,
    "gru": Recurrent,
    "lstm": Recurrent,
    **ACTIVATIONS,
}
_INTERNAL = {"self", "input_size", "input_channels", "inplace", "cell", "bidirectional", "gate_norm", "backend"}


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    taker = _TAKERS[name.removeprefix("bi")]
    if isinstance(taker, type) and "__init__" not in vars(taker):
        return {}  # an activation without options; nn.Module's own are no one's business
    return {key: p for key, p in inspect.signature(taker).parameters.items() if key not in _INTERNAL}


def _options(name: str, options: Any) -> dict[str, Any]:
    """`linear: 512` is short for `linear: {size: 512}`: the first argument. ValueError for an unknown one."""
    if options is None:
        return {}
    parameters = _parameters(name)
    if not isinstance(options, dict):
        if not parameters:
            raise ValueError("it has no options")
        return {next(iter(parameters)): options}
    unknown = [key for key in options if key not in parameters]
    if unknown:
        raise ValueError(f"it has no option {unknown[0]!r}")
    return options


def _signature(name: str) -> str:
    """The options of a layer as text, with their defaults."""
    fixed = {"repeat": "{times: N, layers: [...]}", "residual": "[layers]"}
    if name in fixed or name.removeprefix("bi") not in _TAKERS:
        return fixed.get(name, "no options")
    return ", ".join(str(p).replace("'", "") for p in _parameters(name).values()) or "no options"
