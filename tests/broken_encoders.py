"""Encoders for the tests of the conformance kit: two that are right, and many that are broken in one way each.

A broken encoder names, in `caught_by`, the check that is meant for its fault, and in `also` those that cannot help
noticing it too, with the reason.
"""

from __future__ import annotations

import random
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asrkit import Encoder, StackEncoder
from asrkit.masking import frame_mask, zero_padding

SIZE = 6


class RMSNorm(nn.Module):
    """y = gain * x / sqrt(mean x^2 + eps), as a third party would write it."""

    scope = "frame_rms"

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.gain, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.gain * x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt()


class ThirdParty(StackEncoder):
    def make_norm(self, size: int) -> nn.Module:
        return RMSNorm(size, self.norm.eps)


class Frames(Encoder):
    """Right, and no StackEncoder: y = tanh(W x + b) at every real frame."""

    caught_by: ClassVar[str] = ""
    where: ClassVar[str] = "layers"  # the stack to try it in
    also: ClassVar[dict[str, str]] = {}

    def __init__(self, input_size: int, layers: list[Any], norm: Any = None) -> None:
        super().__init__()
        self.linear, self.output_size = nn.Linear(input_size, SIZE), SIZE

    def num_frames(self, frames: Any) -> Any:
        return frames

    def encode(self, x: Tensor, lengths: Tensor) -> Tensor:
        return torch.tanh(self.linear(x))

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return zero_padding(self.encode(zero_padding(x, lengths), lengths), lengths), lengths


class BatchNorm(nn.Module):
    """Sequence-wise batch normalization, right unless a subclass says otherwise."""

    scope: ClassVar[str] = "sequence"
    masked = guarded = persistent = patient = attached = True
    mean: Tensor
    var: Tensor

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps, self.gain, self.bias = eps, nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))
        self.register_buffer("mean", torch.zeros(size), persistent=self.persistent)
        self.register_buffer("var", torch.ones(size), persistent=self.persistent)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        kind = x.dtype
        x = (x.float() if kind.itemsize < 4 else x).masked_fill(~mask.unsqueeze(-1), 0.0)
        mean, var = self.mean, self.var
        if self.training and (bool(mask.any()) or not self.patient):
            rows = x[mask if self.masked else torch.ones_like(mask)]
            rows = rows if self.attached else rows.detach()
            mean, var = rows.mean(0), rows.var(0, unbiased=False)
            if not self.guarded or bool(torch.isfinite(mean + var).all()):
                with torch.no_grad():
                    self.mean.lerp_(mean, 0.1)
                    self.var.lerp_(var, 0.1)
        y = self.gain * (x - mean) / (var + self.eps).sqrt() + self.bias
        return y.masked_fill(~mask.unsqueeze(-1), 0.0).to(kind)


class Normed(StackEncoder):
    """A StackEncoder with the batch norm above, or another module."""

    norm_class: ClassVar[type[nn.Module]] = BatchNorm
    batch_statistics = True
    caught_by: ClassVar[str] = ""
    where: ClassVar[str] = "layers"  # the stack to try it in
    also: ClassVar[dict[str, str]] = {}

    def make_norm(self, size: int) -> nn.Module:
        return self.norm_class(size, self.norm.eps)


# Shapes and lengths.


class WrongOutputSize(Frames):
    caught_by = "shapes"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.output_size = SIZE - 1


class RelativeLengths(Frames):
    caught_by = "shapes"

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x, lengths)[0], lengths.float()


class WrongNumFrames(Frames):
    """Takes every second frame, so that odd counts are rounded up, and says that they are rounded down."""

    caught_by = "num_frames"

    def num_frames(self, frames: Any) -> Any:
        return frames // 2

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x, lengths)[0][:, ::2], (lengths + 1) // 2


class CrashesOnEmpty(Frames):
    """As packed sequences do."""

    caught_by = "shortest"

    def encode(self, x: Tensor, lengths: Tensor) -> Tensor:
        if bool((lengths == 0).any()):
            raise ValueError("expected all lengths to be above 0")
        return super().encode(x, lengths)


class CrashesAtOne(Frames):
    """A squeeze that was meant for something else."""

    caught_by = "batch_of_one"

    def encode(self, x: Tensor, lengths: Tensor) -> Tensor:
        y = super().encode(x, lengths)
        return y.squeeze(0).transpose(0, 1).reshape(x.shape[1], x.shape[0], -1).transpose(0, 1) if len(x) == 1 else y

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        y, lengths = super().forward(x, lengths)
        if len(x) == 1:
            y.squeeze(0)[:, :, 0]  # a dimension too few
        return y, lengths


# Padding and batch mates.


class ForgetsTheMask(Normed):
    class Norm(BatchNorm):
        masked = False

    norm_class, caught_by = Norm, "padding_train"
    also: ClassVar[dict[str, str]] = {"scope": "it declares 'sequence', and padding is not of it"}


class ExpectsSomebody(Normed):
    """Inside a recurrence: at steps with nothing but padding its mean is that of no number at all."""

    class Norm(BatchNorm):
        patient = False

    norm_class, caught_by, where = Norm, "padding_train", "recurrent"
    also: ClassVar[dict[str, str]] = {"padding_output": "NaN reaches the gradient there too"}


class PaddingFirst(Frames):
    """The backward direction of a flipped batch starts in the padding."""

    caught_by = "padding_eval"
    also: ClassVar[dict[str, str]] = {"padding_train": "it is there in training too"}

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.back = nn.GRU(SIZE, SIZE, batch_first=True)

    def encode(self, x: Tensor, lengths: Tensor) -> Tensor:
        y = super().encode(x, lengths)
        if not torch.jit.is_tracing() and not x.shape[1]:
            return y
        return self.back(y.flip(1))[0].flip(1)


class LeavesPadding(Frames):
    caught_by = "padding_output"

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.encode(zero_padding(x, lengths), lengths), lengths


class RunsOverTheBatch(Frames):
    """A GRU that takes the first axis for time."""

    caught_by = "batch_mates"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.rnn = nn.GRU(SIZE, SIZE)

    def encode(self, x: Tensor, lengths: Tensor) -> Tensor:
        y = super().encode(x, lengths)
        return self.rnn(y)[0] if torch.jit.is_tracing() or x.shape[1] else y


class ZeroOverZero(Frames):
    """Divides each frame by its own length: 0 / 0 in the padding is hidden from the output, not from the gradient."""

    caught_by = "padding_output"
    also: ClassVar[dict[str, str]] = dict.fromkeys(
        ("padding_train", "gradients", "derivative", "same_seed", "bfloat16"),
        "the usual batch has padding, and its gradient is NaN",
    )

    def encode(self, x: Tensor, lengths: Tensor) -> Tensor:
        return super().encode(x / x.square().sum(-1, keepdim=True).sqrt(), lengths)


# State, seeds, files.


class RemembersInEval(Frames):
    caught_by = "state_eval"
    last: Any = 0.0

    def encode(self, x: Tensor, lengths: Tensor) -> Tensor:
        y = super().encode(x, lengths) + 0.1 * self.last
        if not self.training and y.numel():
            self.last = y.detach().mean()
        return y


class CountsInTraining(Frames):
    caught_by = "state_train"
    also: ClassVar[dict[str, str]] = {"save_load": "what is in no buffer is in no file"}
    calls = 0

    def encode(self, x: Tensor, lengths: Tensor) -> Tensor:
        y = super().encode(x, lengths) * (1 + 0.1 * self.calls * self.training)
        self.calls += self.training
        return y


class WritesIntoItsInput(Frames):
    caught_by = "state_eval"
    also: ClassVar[dict[str, str]] = {
        "derivative": "autograd does not see the factor",
        "export": "nor does a trace",
    }

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            x.data.mul_(0.5)
        return super().forward(x, lengths)


class NoisyInEval(Frames):
    caught_by = "deterministic"
    also: ClassVar[dict[str, str]] = {"export": "an exported file draws its own numbers"}

    def encode(self, x: Tensor, lengths: Tensor) -> Tensor:
        return super().encode(x, lengths) * (1 + 0.1 * torch.randn(SIZE).to(x.dtype))


class OwnRandomNumbers(Frames):
    caught_by = "same_seed"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.linear.weight.data.mul_(random.SystemRandom().uniform(0.5, 1.5))


class RandomGain(Normed):
    """StackEncoder keeps the draw from the other weights, but the norm starts with their numbers."""

    caught_by = "initial_weights"

    class Norm(BatchNorm):
        def __init__(self, size: int, eps: float) -> None:
            super().__init__(size, eps)
            self.bias.data.copy_(torch.randn(size))

    norm_class = Norm
    also: ClassVar[dict[str, str]] = {"scope": "the bias is not 0 at the start"}


class OtherWeights(Normed):
    caught_by = "initial_weights"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                parameter.data.mul_(0.9)


class LostBuffer(Normed):
    class Norm(BatchNorm):
        persistent = False

    norm_class, caught_by = Norm, "save_load"


# Numbers.


class DeadParameter(Frames):
    caught_by = "gradients"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.unused = nn.Parameter(torch.ones(3))


class Detached(Frames):
    caught_by = "gradients"
    also: ClassVar[dict[str, str]] = {"derivative": "no gradient is not the right one"}

    def encode(self, x: Tensor, lengths: Tensor) -> Tensor:
        return super().encode(x, lengths).detach() * self.linear.bias.mean() + self.linear.weight.mean()


class ConstantStatistics(Normed):
    """Mean and variance of the batch without their gradient."""

    class Norm(BatchNorm):
        attached = False

    norm_class, caught_by = Norm, "derivative"
    also: ClassVar[dict[str, str]] = {"norm_derivative": "it is the norm's fault"}


class WrongWhenLarge(Normed):
    """A second way for long batches, with a mistake."""

    class Norm(BatchNorm):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            y = super().forward(x, mask)
            return y if x.shape[1] < 100 else 2 * y - y.detach()

    norm_class, caught_by = Norm, "norm_derivative"


class Poisoned(Normed):
    class Norm(BatchNorm):
        guarded = False

    norm_class, caught_by = Norm, "nan"


class SpreadsNaN(Frames):
    """In eval the largest number of the batch scales everything, but by so little that only NaN shows it."""

    caught_by = "nan"

    def encode(self, x: Tensor, lengths: Tensor) -> Tensor:
        y = super().encode(x, lengths)
        return y + 1e-9 * y.sum() if y.numel() else y


class CoarseInBfloat16(Frames):
    """Around 100 float32 is fine and bfloat16 counts in halves."""

    caught_by = "bfloat16"

    def encode(self, x: Tensor, lengths: Tensor) -> Tensor:
        return super().encode(x, lengths) + 100.0 - 100.0


class SingleOnly(Frames):
    caught_by = "double"
    also: ClassVar[dict[str, str]] = {"derivative": "it is taken in float64"}

    def encode(self, x: Tensor, lengths: Tensor) -> Tensor:
        return super().encode(x.float(), lengths)


class HidesBatchStatistics(Normed):
    batch_statistics, caught_by = False, "batch_statistics"


class ClaimsBatchStatistics(Frames):
    batch_statistics, caught_by = True, "batch_statistics"


class OtherInTraining(Frames):
    caught_by = "batch_statistics"
    also: ClassVar[dict[str, str]] = {"running_statistics": "no average settles on it"}

    def encode(self, x: Tensor, lengths: Tensor) -> Tensor:
        return super().encode(x, lengths) * (1.1 if self.training else 1.0)


class NeverUpdates(Normed):
    """At test time mean 0 and variance 1, whatever was seen."""

    class Norm(BatchNorm):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            kept = self.mean.clone(), self.var.clone()
            y = super().forward(x, mask)
            self.mean.copy_(kept[0])
            self.var.copy_(kept[1])
            return y

    norm_class, caught_by = Norm, "running_statistics"


class DeviationForVariance(Normed):
    class Norm(BatchNorm):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            kept = self.var.clone()
            y = super().forward(x, mask)
            if self.training:  # undo the update, and make it with the root of the batch's variance
                seen = ((self.var - 0.9 * kept) / 0.1).clamp(min=0.0)
                self.var.copy_(0.9 * kept + 0.1 * seen.sqrt())
            return y

    norm_class, caught_by = Norm, "running_statistics"


class LosesItsBias(Normed):
    """In eval only."""

    class Norm(BatchNorm):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            y = super().forward(x, mask)
            return y if self.training else (y - self.bias).masked_fill(~mask.unsqueeze(-1), 0.0)

    norm_class, caught_by = Norm, "running_statistics"


class SettlesElsewhere(Frames):
    """An encoder of its own with an average of its input, which a test takes twice."""

    batch_statistics, caught_by = True, "running_statistics"
    mean: Tensor

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_buffer("mean", torch.zeros(()))

    def encode(self, x: Tensor, lengths: Tensor) -> Tensor:
        mean = 2 * self.mean
        if self.training and bool(lengths.any()):
            mean = x[frame_mask(lengths, x.shape[1])].mean()
            if bool(mean.isfinite()):
                with torch.no_grad():
                    self.mean.lerp_(mean.to(self.mean.dtype), 0.1)
        return super().encode(x - mean, lengths)


class FreezesTheLength(Frames):
    """Python numbers are constants of a trace."""

    caught_by = "export"

    def encode(self, x: Tensor, lengths: Tensor) -> Tensor:
        return super().encode(x, lengths) * frame_mask(torch.tensor(lengths.tolist()), int(x.shape[1]))[..., None]


# What happens in large batches only: of more than 16 utterances, or more than 100 frames.


class SeesManyMates(Normed):
    class Norm(BatchNorm):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            y = super().forward(x, mask)
            return y + 1e-6 * y.sum() if len(x) > 16 and not self.training else y

    norm_class, caught_by = Norm, "batch_mates"
    also: ClassVar[dict[str, str]] = {"nan": "a mate's NaN comes along"}


class SpreadsNaNAmongMany(Normed):
    class Norm(BatchNorm):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            y = super().forward(x, mask)
            return y + 1e-12 * y.sum() if len(x) > 16 and not self.training else y

    norm_class, caught_by = Norm, "nan"


class PoisonedAmongMany(Normed):
    class Norm(BatchNorm):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            self.guarded = len(x) <= 16
            return super().forward(x, mask)

    norm_class, caught_by = Norm, "nan"


class ForgetsTheMaskWhenLong(Normed):
    class Norm(BatchNorm):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            self.masked = x.shape[1] <= 100
            return super().forward(x, mask)

    norm_class, caught_by = Norm, "padding_train"
    also: ClassVar[dict[str, str]] = {"scope": "it declares 'sequence', and padding is not of it"}


class CountsPaddingAmongMany(Normed):
    """The statistics of a batch of more than 16 count its padding."""

    class Norm(BatchNorm):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            self.masked = len(x) <= 16
            return super().forward(x, mask)

    norm_class, caught_by = Norm, "padding_train"


class ReadsPaddingWhenLong(Normed):
    class Norm(BatchNorm):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            y = super().forward(x, mask)
            if x.shape[1] <= 100 or self.training:
                return y
            return y + 0.01 * x.masked_fill(mask.unsqueeze(-1), 0.0).sum(1, keepdim=True)

    norm_class, caught_by = Norm, "padding_eval"


class GradientToPaddingAmongMany(Normed):
    class Norm(BatchNorm):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            y = super().forward(x, mask)
            rest = x.masked_fill(mask.unsqueeze(-1), 0.0).sum(1, keepdim=True)
            return y + 0.01 * (rest - rest.detach()) if len(x) > 16 and self.training else y

    norm_class, caught_by = Norm, "padding_output"


# What a norm declares.


class OtherStep(Normed):
    """Inside a recurrence it is another norm."""

    class Norm(RMSNorm):
        def step(self, x: Tensor, t: int, mask: Tensor) -> Tensor:
            return 1.01 * self(x.unsqueeze(1), mask.unsqueeze(1)).squeeze(1)

    norm_class, batch_statistics, caught_by = Norm, False, "scope"


class StepForgetsTheMask(Normed):
    """Inside a recurrence, utterances that have ended count."""

    class Norm(BatchNorm):
        scope = None

        def step(self, x: Tensor, t: int, mask: Tensor) -> Tensor:
            if not self.training:
                return self(x.unsqueeze(1), mask.unsqueeze(1)).squeeze(1)
            y = self.gain * (x - x.mean(0)) / (x.var(0, unbiased=False) + self.eps).sqrt() + self.bias
            return y.masked_fill(~mask.unsqueeze(-1), 0.0)

    norm_class, caught_by = Norm, "padding_train"


class StepReadsTheEndedInEval(Normed):
    class Norm(BatchNorm):
        def step(self, x: Tensor, t: int, mask: Tensor) -> Tensor:
            y = self(x.unsqueeze(1), mask.unsqueeze(1)).squeeze(1)
            return y if self.training else y + 1e-3 * x.masked_fill(mask.unsqueeze(-1), 0.0).sum(0)

    norm_class, caught_by = Norm, "padding_eval"


class StepOfAnotherScope(Normed):
    """Inside a recurrence each frame by itself."""

    class Norm(BatchNorm):
        def step(self, x: Tensor, t: int, mask: Tensor) -> Tensor:
            return F.layer_norm(x, x.shape[1:], self.gain, self.bias, self.eps)

    norm_class, caught_by = Norm, "scope"


class OtherStepAmongMany(Normed):
    class Norm(RMSNorm):
        def step(self, x: Tensor, t: int, mask: Tensor) -> Tensor:
            return (1.01 if len(x) > 16 else 1.0) * self(x.unsqueeze(1), mask.unsqueeze(1)).squeeze(1)

    norm_class, batch_statistics, caught_by = Norm, False, "scope"


class WrongScope(Normed):
    class Norm(BatchNorm):
        scope = "utterance"

    norm_class, caught_by = Norm, "scope"


class HiddenEps(Normed):
    """Says sequence, and adds another eps than the recipe's."""

    class Norm(BatchNorm):
        def __init__(self, size: int, eps: float) -> None:
            super().__init__(size, 0.1)

    norm_class, caught_by = Norm, "scope"


class FalsePerFeature(Normed):
    class Norm(RMSNorm):
        per_feature = True

    norm_class, batch_statistics, caught_by = Norm, False, "hints"


class FalseOrderFree(Normed):
    class Norm(RMSNorm):
        order_free = True
        scope = None

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            time = torch.arange(x.shape[1], dtype=x.dtype, device=x.device)[:, None]
            return super().forward(x, mask) * (1 + 0.1 * torch.sin(time))

    norm_class, batch_statistics, caught_by = Norm, False, "hints"


class FalseIdentity(Normed):
    class Norm(nn.Module):
        identity = True

        def __init__(self, size: int, eps: float) -> None:
            super().__init__()

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return 1.01 * x

    norm_class, batch_statistics, caught_by = Norm, False, "hints"


class FalseRowNorm(Normed):
    """An RMS norm that says it is centred."""

    class Norm(RMSNorm):
        def row_norm(self) -> Any:
            from asrkit.normalization import RowNorm

            return RowNorm(True, self.eps, self.gain, None)

    norm_class, batch_statistics, caught_by = Norm, False, "hints"


class RuledNorm(BatchNorm):
    """A batch norm with a rule that says what its forward does, unless a subclass says otherwise."""

    other_eps, forgets = 0.0, False

    def rule(self, frames: Any) -> Any:
        from asrkit.normalization import Rule, Standard

        moments = frames.moments("batch")
        eps = self.eps + self.other_eps * self.training
        if not self.training:
            moments = moments._replace(mean=self.mean.view(1, 1, -1), var=self.var.view(1, 1, -1))
            return Rule(moments, Standard("batch", eps), (self.gain, self.bias), None)
        if not self.forgets:
            with torch.no_grad():
                self.mean.lerp_(moments.mean[0, 0], 0.1)
                self.var.lerp_(moments.var[0, 0], 0.1)
        return Rule(moments, Standard("batch", eps), (self.gain, self.bias), torch.ones_like(moments.frames))


class TrueRule(StackEncoder):
    """Right."""

    batch_statistics = True

    def make_norm(self, size: int) -> nn.Module:
        return RuledNorm(size, self.norm.eps)


class RuleOfAnotherEps(Normed):
    class Norm(RuledNorm):
        other_eps = 1.0

    norm_class, caught_by = Norm, "hints"


class RuleThatRemembersNothing(Normed):
    class Norm(RuledNorm):
        forgets = True

    norm_class, caught_by = Norm, "hints"


class NoRule(Normed):
    class Norm(BatchNorm):
        def rule(self, frames: Any) -> None:
            return None

    norm_class, caught_by = Norm, "hints"


def subclasses(cls: type) -> list[type]:
    return [inner for child in cls.__subclasses__() for inner in (child, *subclasses(child))]


BROKEN = [cls for base in (Frames, Normed) for cls in subclasses(base) if cls.__module__ == __name__]
