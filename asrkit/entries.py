"""The entries of a recipe's `layers:` that hold norms, and which options each entry takes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from asrkit.errors import RecipeError
from asrkit.layers import ACTIVATIONS, Context, Conv, Layer, Linear, is_empty, make_dropout
from asrkit.masking import frame_mask
from asrkit.processes import several
from asrkit.recurrent import Recurrent


class NormSlot(Layer):
    """The place of `norm` in the stack: calls the plugin's module with the mask of real frames."""

    def __init__(self, norm: nn.Module, input_size: int, channels: int = 1) -> None:
        super().__init__()
        self.norm, self.output_size, self.channels = norm, input_size, channels

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.norm(x, frame_mask(lengths, x.shape[1])), lengths


class RecurrentLayer(Layer):
    """GRU or LSTM in one or two directions over the real frames of each utterance: (B, T, C) -> (B, T, D)."""

    def __init__(
        self,
        input_size: int,
        cell: str,
        bidirectional: bool,
        make_norm: Callable[[int, float | None], nn.Module],
        size: int,
        layers: int = 1,
        dropout: float = 0.0,
        norm: str = "none",
        per_gate: bool = False,
        cell_norm: str | None = None,
        gain: float | None = None,
    ) -> None:
        super().__init__()
        _check_gain(gain)
        self.recurrent = Recurrent(
            input_size,
            size,
            cell,
            bidirectional,
            layers,
            dropout,
            norm=norm,
            per_gate=per_gate,
            cell_norm=cell_norm,
            make_norm=lambda size: make_norm(size, gain),
        )
        self.output_size = self.recurrent.output_size

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        if is_empty(x.shape[1]):
            if not (self.training and several()):
                return x.new_zeros(x.shape[0], 0, self.output_size), lengths
            # Other processes' sums wait for those of this one, forwards and backwards: a frame of padding meets them.
            return self.recurrent(nn.functional.pad(x, (0, 0, 0, 1)), lengths)[:, :0], lengths
        return self.recurrent(x, lengths), lengths


# What a recipe may give each layer: the arguments of these but for what the stack itself decides.
TAKERS: dict[str, Any] = {
    "conv": Conv,
    "context": Context,
    "linear": Linear,
    "dropout": make_dropout,
    "gru": RecurrentLayer,
    "lstm": RecurrentLayer,
    **ACTIVATIONS,
}
_INTERNAL = {"self", "input_size", "input_channels", "inplace", "cell", "bidirectional", "make_norm"}
# Which weights of a recurrent layer a norm of weights takes, by the layer's placement.
WRAPPED: dict[str, tuple[str, ...]] = {
    "none": (),
    "input": ("weight_input",),
    "gates": ("weight_input",),
    "hidden": ("weight_recurrent",),
    "recurrent": ("weight_input", "weight_recurrent"),
    "joined": ("weight_input", "weight_recurrent"),
}


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    taker = TAKERS[name.removeprefix("bi")]
    if isinstance(taker, type) and "__init__" not in vars(taker):
        return {}  # an activation without options; nn.Module's own are no one's business
    return {key: p for key, p in inspect.signature(taker).parameters.items() if key not in _INTERNAL}


def options_of(name: str, options: Any) -> dict[str, Any]:
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


def _check_gain(gain: Any) -> None:
    good = gain is None or (isinstance(gain, int | float) and not isinstance(gain, bool) and 0 < gain < math.inf)
    if not good:
        raise RecipeError(f"gain: {gain!r}", possible="a number above 0, such as 0.1", reason="layer_option")


def signature(name: str) -> str:
    """The options of a layer as text, with their defaults."""
    fixed = {"repeat": "{times: N, layers: [...], residual: false}", "residual": "[layers]"}
    if name in fixed or name.removeprefix("bi") not in TAKERS:
        return fixed.get(name, "no options")
    return ", ".join(str(p).replace("'", "") for p in _parameters(name).values()) or "no options"
