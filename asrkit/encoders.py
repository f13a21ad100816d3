"""The encoder contract, and StackEncoder: a recipe's `layers:` with the `norm` slot that a plugin fills.

A normalization plugin is an encoder that overrides one method::

    class RMSNormEncoder(asrkit.StackEncoder):
        def make_norm(self, size):
            return RMSNorm(size, self.norm.eps, self.norm.affine)   # norm(x (B, T, C), mask (B, T)) -> (B, T, C)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from asrkit.entries import WRAPPED, NormSlot, RecurrentLayer, options_of, signature
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
    make_activation,
    make_dropout,
)
from asrkit.masking import zero_padding
from asrkit.normalization.contract import NORM_CONTRACT, accept_norm, apply_wrap
from asrkit.randomness import kept_generators


@dataclass(frozen=True)
class NormOptions:
    """The recipe's `norm:` section, one rule for all strategies, so that arms differ in the strategy alone.

    eps: added to the variance (1). affine: whether gain and bias are learned. momentum: weight of the newest batch in
    running averages. min_count: frame-wise BN trusts the statistics of a time step from this many frames on.
    max_steps: frame-wise BN stores this many time steps; later ones share the last row. allow_batch_of_one: let
    frame-wise BN train with batches of one utterance, on running statistics alone. masked: whether statistics over time
    leave the padding out; false counts it as zeros, the usual mistake. groups: of features, in group norm. gain: what
    the learned gain starts at. renorm_r, renorm_d: limits of batch renormalization's corrections (1), reached after
    renorm_warmup training batches.
    """

    eps: float = 1e-5
    affine: bool = True
    momentum: float = 0.1
    min_count: int = 16
    max_steps: int = 1024
    allow_batch_of_one: bool = False
    masked: bool = True
    groups: int = 8
    gain: float = 1.0
    renorm_r: float = 3.0
    renorm_d: float = 5.0
    renorm_warmup: int = 1000


class Encoder(nn.Module):
    """Contract: frames in, frames out, with exact integer lengths.

    `forward(x (B, T, F), lengths (B,)) -> (y (B, T', D), lengths' (B,))`; D = `output_size`; `num_frames(T)` is the
    real T' for an integer or an integer tensor. Real output frames depend on real input frames only. `batch_statistics`
    says whether statistics are taken over the batch in training; `deviations` what `asrkit.testing` may find, by check,
    each with the reason.
    """

    asrkit_api = 1
    batch_statistics = False
    deviations: ClassVar[dict[str, str]] = {}
    output_size: int

    def num_frames(self, frames: Any) -> Any:
        """T -> T', exact."""
        raise NotImplementedError

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


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
        self._wrap_after_norms()

    def make_norm(self, size: int) -> nn.Module:
        """The norm for C = `size` features: `norm(x (B, T, C), mask (B, T)) -> (B, T, C)`. Plugins override this."""
        raise NotImplementedError(f"{type(self).__name__} must define make_norm(size)")

    def wrap(self, layer: nn.Module, weights: tuple[str, ...]) -> nn.Module:
        """A layer that a norm goes before, or into: `weights` are the names of its tensors that feed normalized sums.

        A norm of weights puts parametrizations on them, in place, and returns the layer. Default: nothing is done.
        """
        return layer

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
                possible=signature(name),
                reason="layer_option",
            ) from error

    def _builders(self) -> dict[str, Callable[[Any, int, int, str], Layer]]:
        def activation(name: str) -> Callable[[Any, int, int, str], Layer]:
            return lambda o, size, channels, _: FrameWise(make_activation(name, options_of(name, o)), size, channels)

        def recurrent(cell: str, both: bool) -> Callable[[Any, int, int, str], Layer]:
            def build(options: Any, size: int, _: int, where: str) -> Layer:
                make_norm = partial(self._made_norm, where)
                return self._wrapped_recurrent(RecurrentLayer(size, cell, both, make_norm, **options_of(cell, options)))

            return build

        return {
            "conv": lambda o, size, channels, _: Conv(size, **options_of("conv", o), input_channels=channels),
            "context": lambda o, size, _, __: Context(size, **options_of("context", o)),
            "linear": lambda o, size, _, __: Linear(size, **options_of("linear", o)),
            "dropout": lambda o, size, channels, _: FrameWise(make_dropout(**options_of("dropout", o)), size, channels),
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
        return NormSlot(self._made_norm(where, size), size, channels)

    def _made_norm(self, where: str, size: int, gain: float | None = None) -> nn.Module:
        """What `make_norm` returns, with another initial gain if one is given; RecipeError if that fails."""
        maker = f"{type(self).__module__}.{type(self).__qualname__}.make_norm({size})"
        options = self.norm
        try:
            if gain is not None:
                self.norm = replace(options, gain=gain)
            with kept_generators():  # a norm that draws numbers must not change the weights of the other layers
                norm = self.make_norm(size)
        except AsrkitError:
            raise
        except Exception as error:
            raise RecipeError(
                f"{where}: {maker} fails: {type(error).__name__}: {error}",
                possible=NORM_CONTRACT,
                fix="mend the plugin; with --debug you see where it fails",
                reason="broken_plugin",
            ) from error
        finally:
            self.norm = options
        return accept_norm(norm, f"{where}: {maker}")

    # Norms of the weights: `wrap` is told which layer follows a norm.

    def _wrapped_recurrent(self, layer: RecurrentLayer) -> RecurrentLayer:
        for inner in layer.recurrent.layers:
            weights = WRAPPED[layer.recurrent.placement.place]
            if weights:
                self._wrap(inner, weights)
        return layer

    def _wrap(self, layer: nn.Module, weights: tuple[str, ...]) -> None:
        apply_wrap(self.wrap, layer, weights, f"{type(self).__module__}.{type(self).__qualname__}")

    def _wrap_after_norms(self) -> None:
        """The first layer with weights after each `norm`, in a repeat or a residual too."""
        waiting = False
        for layer in _leaves(self.stack):
            if isinstance(layer, NormSlot):
                waiting = True
            elif waiting and isinstance(layer, Linear | Conv | RecurrentLayer):
                self._wrap_input(layer)
                waiting = False

    def _wrap_input(self, layer: Layer) -> None:
        if isinstance(layer, RecurrentLayer):
            if layer.recurrent.placement.place in ("none", "hidden"):
                self._wrap(layer.recurrent.layers[0], ("weight_input",))
        else:
            self._wrap(cast(nn.Module, layer.linear if isinstance(layer, Linear) else layer.conv), ("weight",))

    def _residual(self, options: Any, size: int, channels: int, where: str) -> Layer:
        if isinstance(options, dict) and set(options) != {"layers"}:
            raise ValueError("it needs layers and nothing else")
        layers = options["layers"] if isinstance(options, dict) else options
        return Residual(self._chain(layers, size, channels, f"{where}.residual"), size, channels)

    def _repeat(self, options: Any, size: int, channels: int, where: str) -> Layer:
        if not isinstance(options, dict) or not {"times", "layers"} <= set(options) <= {"times", "layers", "residual"}:
            raise ValueError("it needs times and layers, and takes residual")
        times, layers, residual = options["times"], options["layers"], options.get("residual", False)
        if isinstance(times, bool) or not isinstance(times, int) or times < 1 or not isinstance(layers, list):
            raise ValueError("times is an integer of at least 1, layers a list")
        if not isinstance(residual, bool):
            raise ValueError("residual is true or false")
        if residual:
            return self._residual_blocks(times, layers, size, channels, f"{where}.repeat")
        return self._chain(layers * times, size, channels, f"{where}.repeat")

    def _residual_blocks(self, times: int, layers: list[Any], size: int, channels: int, where: str) -> Chain:
        """Each time x + layers(x), from the same weights as without."""
        blocks: list[Layer] = []
        into = size, channels
        for _ in range(times):
            blocks.append(Residual(self._chain(layers, size, channels, where), size, channels, widen=True))
            size, channels = blocks[-1].output_size, blocks[-1].channels
        return Chain(blocks, *into)


def _leaves(layer: Layer) -> Iterator[Layer]:
    """Layers that hold no others, in the order that data takes."""
    if isinstance(layer, Residual):
        yield from _leaves(layer.chain)
    elif isinstance(layer, Chain):
        for inner in layer.layers:
            yield from _leaves(cast(Layer, inner))
    else:
        yield layer
