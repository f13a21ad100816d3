"""What `layers:` of a recipe may name, besides recurrent layers and the `norm` slot.

Every layer maps (x (B, T, C), lengths (B,)) to (y (B, T', C'), lengths' (B,)) and knows its length arithmetic:
`num_frames(T)` equals the real T'. A layer that mixes frames zeroes the padding of its own input first, so what lies
in the padding, and how much of it there is, changes no real frame.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from asrkit.errors import RecipeError, nearest
from asrkit.masking import zero_padding
from asrkit.processes import several


class Layer(nn.Module):
    """Base of the layers: `output_size` is C'; `channels` says how a convolution may unfold C' (see Conv)."""

    output_size: int
    channels: int = 1

    def num_frames(self, frames: Any) -> Any:
        """T -> T' for an integer or an integer tensor; the identity unless the layer subsamples."""
        return frames


class FrameWise(Layer):
    """A module that treats every frame alike and keeps the size: activations, dropout."""

    def __init__(self, module: nn.Module, input_size: int, channels: int = 1) -> None:
        super().__init__()
        self.module, self.output_size, self.channels = module, input_size, channels

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.module(x), lengths


class Linear(Layer):
    """y = W x + b at every frame: (B, T, C) -> (B, T, size)."""

    def __init__(self, input_size: int, size: int, bias: bool = True) -> None:
        super().__init__()
        _check_whole("linear", size=size)
        _check_flag("linear", bias=bias)
        self.linear = nn.Linear(input_size, size, bias=bias)
        self.output_size = size

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(x), lengths


class Conv(Layer):
    """A convolution over time and frequency: (B, T, F * C) -> (B, T', F' * C') with C' = `channels`.

    The features of a frame are frequency-major with the channel running fastest, which is the memory order that 2-D
    convolutions run best in, so no copy is made between layers. `kernel`, `stride` and `padding` are one integer or
    [time, frequency]; padding defaults to (kernel - 1) // 2. T' = (T + 2 padding - kernel) // stride + 1, and 0
    for T = 0.
    """

    def __init__(
        self,
        input_size: int,
        channels: int,
        kernel: int | list[int] = 3,
        stride: int | list[int] = 1,
        padding: int | list[int] | None = None,
        *,
        input_channels: int = 1,
    ) -> None:
        super().__init__()
        _check_whole("conv", channels=channels)
        self.kernel, self.stride = _pair(kernel, "kernel", 1), _pair(stride, "stride", 1)
        same = [(k - 1) // 2 for k in self.kernel]
        self.padding = _pair(same if padding is None else padding, "padding", 0)
        self._check_padding()
        self.conv = nn.Conv2d(input_channels, channels, self.kernel, self.stride, self.padding)
        self.input_channels, self.channels = input_channels, channels
        bands = (input_size // input_channels + 2 * self.padding[1] - self.kernel[1]) // self.stride[1] + 1
        if bands < 1:
            raise RecipeError(
                f"conv with kernel {list(self.kernel)} does not fit {input_size // input_channels} features",
                fix="use a smaller kernel, a padding, or more features",
                reason="conv_size",
            )
        self.output_size = bands * channels

    def _check_padding(self) -> None:
        if any(p >= k for p, k in zip(self.padding, self.kernel, strict=True)):
            raise RecipeError(
                f"conv: padding {list(self.padding)} with kernel {list(self.kernel)}",
                possible="less than the kernel, or there are outputs that see nothing but padding",
                reason="layer_option",
            )

    def num_frames(self, frames: Any) -> Any:
        out = (frames + 2 * self.padding[0] - self.kernel[0]) // self.stride[0] + 1
        if isinstance(out, Tensor):
            return out.clamp(min=0) * (frames > 0)
        return max(out, 0) if frames > 0 else 0  # whatever the padding: nothing comes of an empty utterance

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        if is_empty(self.num_frames(x.shape[1])):  # shorter than the kernel: no frame, and torch refuses it
            if not (self.training and several()):
                return x.new_zeros(x.shape[0], 0, self.output_size), self.num_frames(lengths)
            # In the norms around this layer other processes wait for this one's sums, backwards too: the way back
            # stays open.
            longer = nn.functional.pad(zero_padding(x, lengths), (0, 0, 0, self.kernel[0]))
            return self._convolve(longer)[:, :0], self.num_frames(lengths)
        return self._convolve(zero_padding(x, lengths)), self.num_frames(lengths)

    def _convolve(self, x: Tensor) -> Tensor:
        x = x.reshape(x.shape[0], x.shape[1], -1, self.input_channels)  # an unflatten would fix T in an ONNX export
        x = x.permute(0, 3, 1, 2)  # (B, C, T, F), channels last in memory
        return self.conv(x).permute(0, 2, 3, 1).flatten(2)  # type: ignore[no-any-return]


class Context(Layer):
    """Each frame beside its neighbours, then every `stride`-th: (B, T, C) -> (B, ceil(T / stride), C (left + 1 +
    right)).

    Beyond the ends of an utterance the neighbours are zeros.
    """

    def __init__(self, input_size: int, left: int = 0, right: int = 0, stride: int = 1) -> None:
        super().__init__()
        _check_whole("context", 0, left=left, right=right)
        _check_whole("context", stride=stride)
        self.left, self.right, self.stride = left, right, stride
        self.output_size = input_size * (left + 1 + right)

    def num_frames(self, frames: Any) -> Any:
        return (frames + self.stride - 1) // self.stride

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        if is_empty(x.shape[1]):
            return x.repeat(1, 1, self.left + 1 + self.right), lengths
        x = nn.functional.pad(zero_padding(x, lengths), (0, 0, self.left, self.right))
        window = self.left + 1 + self.right
        if torch.jit.is_tracing():  # ONNX does not know unfold for an unknown T; slices are slower
            starts = x.shape[1] - window + 1
            y = torch.cat([x[:, i : i + starts : self.stride] for i in range(window)], 2)
        else:
            y = x.unfold(1, window, self.stride).transpose(2, 3).flatten(2)  # (B, T', C, window) before
        return y, self.num_frames(lengths)


class Chain(Layer):
    """Layers one after the other."""

    def __init__(self, layers: list[Layer], input_size: int, channels: int = 1) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.output_size = layers[-1].output_size if layers else input_size
        self.channels = layers[-1].channels if layers else channels

    def num_frames(self, frames: Any) -> Any:
        for layer in self.layers:
            frames = cast(Layer, layer).num_frames(frames)
        return frames

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self.layers:
            x, lengths = layer(x, lengths)
        return x, lengths


class Residual(Layer):
    """x + layers(x), with layers that keep size and frames (He et al. 2016, arXiv 1512.03385, equation 1).

    `widen`: layers that make more features than they are given are taken too; x then gets zeros for the new ones, which
    costs no parameters (section 3.3 there, option A).
    """

    def __init__(self, chain: Chain, input_size: int, channels: int = 1, *, widen: bool = False) -> None:
        super().__init__()
        self.more = chain.output_size - input_size if widen else 0
        self.chain, self.output_size = chain, input_size + max(self.more, 0)
        self.channels = 1 if self.more else channels
        frames = torch.arange(1001)
        kept = chain.num_frames(frames) == frames
        if chain.output_size != self.output_size or not bool(kept.all()):
            count = 1000 if bool(kept.all()) else int(frames[~kept].max())
            raise RecipeError(
                f"residual: its layers map {input_size} features to {chain.output_size} and {count} frames to "
                f"{chain.num_frames(count)}",
                possible="layers that keep both",
                fix="move the layer that changes them out of the residual",
                reason="residual_size",
            )

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        y = self.chain(x, lengths)[0]
        return (nn.functional.pad(x, (0, self.more)) if self.more else x) + y, lengths


class Identity(nn.Module):
    """x itself: what takes an activation out of a recipe by an option, such as `--layers.1=identity`."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class ClippedReLU(nn.Module):
    """min(max(x, 0), 20), the activation of Deep Speech 2 (arXiv 1512.02595, section 3.2)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(0.0, 20.0)


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "leaky_relu": nn.LeakyReLU,
    "clipped_relu": ClippedReLU,
    "identity": Identity,
}


def make_activation(name: str, options: dict[str, Any]) -> nn.Module:
    """The activation `name` of ACTIVATIONS; RecipeError for options that would fail, or act, only in training."""
    slope, approximate = options.get("negative_slope", 0.0), options.get("approximate", "none")
    if isinstance(slope, bool) or not isinstance(slope, int | float) or not math.isfinite(slope):
        raise RecipeError(f"{name}: negative_slope = {slope!r}", possible="a number", reason="layer_option")
    if approximate not in ("none", "tanh"):
        raise RecipeError(
            f"{name}: approximate = {approximate!r}",
            possible=nearest(str(approximate), ("none", "tanh")),
            reason="layer_option",
        )
    return ACTIVATIONS[name](**options)


def make_dropout(p: float = 0.5) -> nn.Dropout:
    """Each number 0 with probability `p` in training, the others divided by 1 - p. Raises RecipeError."""
    if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p < 1:
        raise RecipeError(f"dropout: p = {p!r}", possible="a number from 0 and below 1", reason="layer_option")
    return nn.Dropout(p)


def is_empty(frames: Any) -> bool:
    """Whether a batch has no frames at all, which torch's layers refuse; never asked in a trace."""
    return not torch.jit.is_tracing() and frames == 0  # it would keep the answer for all lengths


def _is_whole(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _check_whole(layer: str, low: int = 1, **options: Any) -> None:
    for name, value in options.items():
        if not _is_whole(value, low):
            raise RecipeError(
                f"{layer}: {name} = {value!r}", possible=f"a whole number from {low}", reason="layer_option"
            )


def _check_flag(layer: str, **options: Any) -> None:
    for name, value in options.items():
        if not isinstance(value, bool):
            raise RecipeError(f"{layer}: {name} = {value!r}", possible="true or false", reason="layer_option")


def _pair(value: Any, name: str, low: int) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, list | tuple) else (value, value)
    if len(pair) != 2 or not all(_is_whole(v, low) for v in pair):
        raise RecipeError(
            f"conv: {name} = {value!r}",
            possible=f"a whole number from {low}, or two of them as [time, frequency]",
            reason="layer_option",
        )
    return pair
