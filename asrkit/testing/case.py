"""One encoder over one small stack of layers, and what the checks do with it: build, train a little, run, compare."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from asrkit.encoders import Encoder, NormOptions
from asrkit.errors import AsrkitError
from asrkit.recurrent import Recurrent
from asrkit.testing.result import CheckFailed, NotApplicable

INPUT = 8  # features of the kit's utterances
LENGTHS = (13, 9, 9, 4)  # frames of the usual batch: steps with four, three and one live utterance
NAN = float("nan")

# Where encoders are tried. Nothing with a bias stands right before a norm over the batch, which would take all of its
# gradient away; group norms find enough features to a group.
STACKS: dict[str, list[Any]] = {
    "layers": [{"linear": {"size": 8, "bias": False}}, "norm", {"bigru": 4}, "norm", {"linear": 5}],
    "conv": [{"conv": {"channels": 4, "kernel": 3, "stride": 2}}, "leaky_relu", "norm", {"gru": 4}],
    "gates": [{"bigru": {"size": 8, "norm": "gates"}}],
    "recurrent": [{"bigru": {"size": 8, "norm": "recurrent"}}],
}
# Small batches must be able to fill per-step statistics, and small layers to form groups.
NORM = {"min_count": 2, "max_steps": 32, "groups": 2}


def norm_options(**given: Any) -> NormOptions:
    """NormOptions for tiny batches, with what is `given` in place of the kit's own."""
    known = {field.name for field in dataclasses.fields(NormOptions)}
    return NormOptions(**{**{k: v for k, v in NORM.items() if k in known}, **given})


@dataclasses.dataclass
class Output:
    """y (B, T', D) as the encoder gave it; `lengths`: its lengths as plain integers, whatever type it used."""

    y: Tensor
    lengths: list[int]

    @property
    def real(self) -> Tensor:
        """The real frames, one utterance after the other: (sum T'_i, D)."""
        return torch.cat([row[:n] for row, n in zip(self.y, self.lengths, strict=True)])

    def rows(self, index: Sequence[int]) -> Tensor:
        """The real frames of some utterances."""
        return torch.cat([self.y[i, : self.lengths[i]] for i in index])


class Case:
    """An encoder class, a stack of layers and NormOptions.

    Every encoder that `build` and `trained` return is a new one, so that what one forward leaves behind is seen by no
    other, but for the checks that look for just that. Dropout is switched off: it has nothing to do with the promises.
    """

    def __init__(self, cls: type[Encoder], stack: str, layers: list[Any], norm: NormOptions, seed: int = 1) -> None:
        self.cls, self.stack, self.layers, self.norm, self.seed = cls, stack, layers, norm, seed
        self.measured: float | None = None
        self.allowed: float | None = None
        self.notes: list[str] = []  # what the result says besides the numbers
        self.first = True  # of the stacks: where what does not depend on the stack is looked at
        self._kept: dict[str, Encoder] = {}

    # Encoders.

    def construct(self, seed: int | None = None) -> Encoder:
        """As training does it: input_size, layers, norm, after torch's generator was seeded."""
        torch.manual_seed(self.seed if seed is None else seed)
        encoder = self.cls(input_size=INPUT, layers=copy.deepcopy(self.layers), norm=self.norm)  # type: ignore[call-arg]
        for module in encoder.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0
            elif isinstance(module, nn.RNNBase | Recurrent):
                module.dropout = 0.0
        return encoder

    def build(self) -> Encoder:
        """A new encoder in training mode, always with the same weights, some way from where they start.

        A bias of 0 or a gain of 1 hides what they do, to the padding above all.
        """
        return self._fresh("built", self._moved).train()

    def _moved(self) -> Encoder:
        encoder, generator = self.construct(), torch.Generator().manual_seed(11)
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        return encoder

    def trained(self) -> Encoder:
        """A new encoder in eval mode that has seen two batches in training, so that averages are not at their
        start."""
        return self._fresh("trained", self._train).eval()

    def _train(self) -> Encoder:
        encoder = self.build()
        with torch.no_grad():
            for seed, lengths in enumerate(((13, 12, 9, 6), (16, 10, 10, 7))):
                self.run(encoder, *self.batch(lengths, seed=100 + seed))
        return encoder

    def _fresh(self, kind: str, make: Any) -> Encoder:
        if kind not in self._kept:
            self._kept[kind] = make()
        try:
            return copy.deepcopy(self._kept[kind])
        except RuntimeError:  # torch copies no tensor that has a history; build it again
            del self._kept[kind]
            encoder: Encoder = make()
            return encoder

    # Batches and runs.

    def batch(
        self, lengths: Sequence[int] = LENGTHS, extra: int = 0, fill: float = 0.0, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """x (B, T + extra, F) with `fill` in the padding, lengths (B,); real frames depend on `seed` only."""
        generator = torch.Generator().manual_seed(1000 + seed)
        x = torch.full((len(lengths), max(lengths, default=0) + extra, INPUT), fill)
        for row, n in enumerate(lengths):
            x[row, :n] = 1.5 * torch.randn(n, INPUT, generator=generator) + 0.5 * torch.arange(INPUT) / INPUT
        return x, torch.tensor(list(lengths), dtype=torch.int64)

    def run(self, encoder: Encoder, x: Tensor, lengths: Tensor) -> Output:
        """One forward on copies, torch's generator seeded before it."""
        torch.manual_seed(7)
        y, frames = encoder(x.clone(), lengths.clone())
        return Output(y, [int(n) for n in torch.as_tensor(frames).detach().double().round().tolist()])

    def evaluate(self, x: Tensor, lengths: Tensor, encoder: Encoder | None = None) -> Output:
        """The output of a trained encoder in eval mode, without gradients."""
        with torch.no_grad():
            return self.run(self.trained() if encoder is None else encoder.eval(), x, lengths)

    def loss(self, real: Tensor) -> Tensor:
        """A sum over real frames in which no two numbers weigh the same, so that nothing cancels."""
        return (real * torch.linspace(0.5, 1.5, real.numel(), dtype=real.dtype).view_as(real).sin()).sum()

    # Verdicts.

    def fail(self, text: str) -> None:
        raise CheckFailed(f"{self.stack}: {text}")

    def require(self, truth: bool, text: str) -> None:
        if not truth:
            self.fail(text)

    def finite(self, tensors: Tensor | Mapping[str, Tensor | None], what: str) -> None:
        """Fails, naming the first, if a number is NaN or infinite."""
        named = {"": tensors} if isinstance(tensors, Tensor) else tensors
        for name, tensor in named.items():
            if tensor is not None and not bool(torch.isfinite(tensor).all()):
                self.fail(f"{what}{' ' + name if name else ''}: NaN or infinity in it")

    def close(self, got: Tensor, want: Tensor, tolerance: float, what: str) -> None:
        """Fails if `got` is further from `want` than `tolerance` times its largest number (or 1, if that is more)."""
        if got.shape != want.shape:
            self.fail(f"{what}: shape {tuple(got.shape)} instead of {tuple(want.shape)}")
        if not want.numel():
            return
        got, want = got.detach().double(), want.detach().double()
        self.finite(want, f"{what}: what it is compared with")
        self.finite(got, what)
        allowed = tolerance * max(1.0, float(want.abs().max()))
        self.measure(float((got - want).abs().max()), allowed, what)

    def measure(self, measured: float, allowed: float, what: str) -> None:
        """Remember the number that comes nearest to what is allowed; fail beyond it."""
        if self.measured is None or self.allowed is None or measured * self.allowed >= self.measured * allowed:
            self.measured, self.allowed = measured, allowed
        if not measured <= allowed:
            self.fail(f"{what}: {measured:.2g} (allowed {allowed:.2g})")

    @contextmanager
    def refusable(self, what: str) -> Iterator[None]:
        """Inside, an AsrkitError that gives its reason is an honest answer; any other exception fails, and so does one
        that says that the encoder itself is broken."""
        try:
            yield
        except AsrkitError as error:
            if error.reason in ("encoder_contract", "broken_plugin"):
                raise
            self.require(bool(error.reason), f"{what} is refused, but without a reason code: {error}")
            self.notes.append(f"{what} is refused ({error.reason})")
        except (CheckFailed, NotApplicable):
            raise
        except Exception as error:
            self.fail(f"{what} raises {type(error).__name__}: {first_line(error)}")


def gradients(module: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in module.named_parameters() if parameter.requires_grad}


def buffers(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.named_buffers()}


def first_line(error: BaseException) -> str:
    if isinstance(error, AsrkitError):
        return str(error)  # one line, with the fix at its end
    return (str(error).strip().splitlines() or [""])[0][:200]
