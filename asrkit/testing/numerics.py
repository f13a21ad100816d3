"""Checks of the numbers: gradients, NaN, bfloat16, double precision, and what batch statistics do."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from asrkit.encoders import Encoder, StackEncoder
from asrkit.testing import large
from asrkit.testing.case import LENGTHS, NAN, Case, buffers, gradients
from asrkit.testing.result import NotApplicable
from asrkit.testing.scope import MANY, SIZE, scope_batch


def check_gradients(case: Case) -> None:
    """In training every gradient is finite, and every parameter gets one that is not 0."""
    encoder = case.build()
    x, lengths = case.batch()
    x.requires_grad_()
    case.loss(case.run(encoder, x, lengths).real).backward()
    grads = gradients(encoder)
    case.finite(grads, "the gradient of")
    largest = max((float(g.abs().max()) for g in grads.values() if g is not None), default=0.0)
    for name, grad in grads.items():
        case.require(grad is not None, f"no gradient reaches {name}")
        # A millionth of the largest is what rounding leaves where the true gradient is 0.
        reaches = grad is not None and float(grad.abs().max()) > 1e-6 * largest
        case.require(reaches, f"the gradient of {name} is 0")
    if x.grad is None:
        case.fail("no gradient reaches the input")
        return
    case.finite(x.grad, "the gradient of the input")
    for row, n in enumerate(LENGTHS):
        # The first frame of a pair can be lost to a stride, and a lone frame to a norm over the batch.
        case.require(bool(x.grad[row, :n].any()), f"no gradient reaches utterance {row} of the input")


def check_derivative(case: Case) -> None:
    """In float64 the gradient is the derivative: central differences along random directions, in training."""
    # Three utterances and more at every step: of a lone one the statistics may be constants, of two the norm is a step.
    x, lengths = case.batch((6, 6, 6, 5))
    x = x.double().requires_grad_()
    encoder = case.build().double()

    def value(module: nn.Module, x: Tensor) -> Tensor:
        return case.loss(case.run(cast(Encoder, module), x, lengths).real)

    _compare_differences(case, value, encoder, x, lambda: case.build().double())


def check_norm_derivative(case: Case) -> None:
    """The same of the norm alone, on a batch so large that implementations take their ways for large ones."""
    encoder = case.build()
    if not isinstance(encoder, StackEncoder):
        raise NotApplicable("it has no make_norm: there is no norm to look at")
    array, mask = (torch.from_numpy(a) for a in scope_batch(MANY, (300, 300, 13, 300)))

    def value(module: nn.Module, x: Tensor) -> Tensor:
        return case.loss(module(x, mask)[mask])

    def make() -> nn.Module:
        torch.manual_seed(case.seed)
        return encoder.make_norm(MANY).double().train()

    _compare_differences(case, value, make(), array.requires_grad_(), make)


def _compare_differences(
    case: Case,
    value: Callable[[nn.Module, Tensor], Tensor],
    module: nn.Module,
    x: Tensor,
    make: Callable[[], nn.Module],
) -> None:
    """The gradients of value(module, x) against central differences with new modules, which remember nothing."""
    value(module, x).backward()  # type: ignore[no-untyped-call]
    generator = torch.Generator().manual_seed(3)
    for name, leaf in {"the input": x, **dict(module.named_parameters())}.items():
        if not leaf.requires_grad:  # a constant
            continue
        direction = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
        values = []
        for sign in (1, -1):
            moved = make()
            with torch.no_grad():
                if leaf is not x:
                    dict(moved.named_parameters())[name].add_(sign * STEP * direction)
                values.append(value(moved, x + sign * STEP * direction if leaf is x else x))
        expected = (values[0] - values[1]) / (2 * STEP)
        found = torch.zeros_like(expected) if leaf.grad is None else (leaf.grad * direction).sum()
        case.close(found, expected, 1e-5, f"the gradient of {name} differs from finite differences by")


STEP = 1e-6  # of the differences: the square of it, and rounding divided by it, lie far below what is allowed


def check_nan(case: Case) -> None:
    """NaN in a real frame: in eval the others do not notice; in training it is refused or leaves no trace."""
    expected = case.evaluate(*case.batch())
    x, lengths = case.batch()
    x[3, 1, 2] = NAN
    encoder = case.trained()
    with case.refusable("in eval, NaN in a frame"):
        out = case.evaluate(x, lengths, encoder)
        case.close(out.rows(range(3)), expected.rows(range(3)), 1e-5, "NaN in one utterance changes others by")
    case.finite(buffers(encoder), "after a NaN in eval, the buffer")
    for encoder in (case.build(), case.trained().train()):
        with case.refusable("in training, NaN in a frame"):
            case.run(encoder, x, lengths)
        case.finite(dict(encoder.named_parameters()), "after a NaN in training, the parameter")
        case.finite(buffers(encoder), "after a NaN in training, the buffer")
        with torch.no_grad():
            case.finite(case.run(encoder, *case.batch()).real, "one batch after a NaN, the output")
            case.finite(case.evaluate(*case.batch(), encoder).real, "in eval, after a NaN in training, the output")
    large.nan(case)


def check_bfloat16(case: Case) -> None:
    """Under bfloat16 autocast output and gradients are finite, and the output is near that of float32."""
    expected = case.evaluate(*case.batch()).real
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = case.evaluate(*case.batch()).real
    case.close(out.float(), expected, 0.1, "in eval, bfloat16 changes the output by")
    encoder = case.build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        real = case.run(encoder, *case.batch()).real
    case.finite(real, "in training under bfloat16, the output")
    case.loss(real.float()).backward()
    case.finite(gradients(encoder), "in training under bfloat16, the gradient of")


def check_double(case: Case) -> None:
    """In double precision everything works and is near float32, in eval and in training."""
    for training in (False, True):
        mode = "in training" if training else "in eval"
        single, double = (case.trained().train(training) for _ in range(2))
        x, lengths = case.batch()
        with torch.no_grad():
            expected = case.run(single, x, lengths).real
            out = case.run(double.double(), x.double(), lengths).real
        case.require(out.dtype == torch.float64, f"{mode}, float64 goes in, {out.dtype} comes out")
        case.close(out, expected, 1e-4, f"{mode}, double precision changes the output by")


def check_batch_statistics(case: Case) -> None:
    """`batch_statistics` is true to the facts; without them training and eval agree and mates do not matter."""
    declared = bool(getattr(case.cls, "batch_statistics", False))
    x, lengths = case.batch()
    other = x.clone()
    other[1:] = case.batch(seed=9)[0][1:] * 3
    with torch.no_grad():
        mine, theirs = (case.run(case.build(), batch, lengths).rows([0]) for batch in (x, other))
        frozen = case.run(case.build().eval(), x, lengths).rows([0])
    if declared:
        changed = float((mine - theirs).abs().max())
        text = "it declares batch_statistics, but in training other mates change nothing"
        case.require(changed > 1e-4, f"{text} (by {changed:.2g})")
        return
    text = "it declares no batch_statistics, but"
    case.close(theirs, mine, 1e-5, f"{text} in training other mates change an utterance by")
    case.close(frozen, mine, 1e-5, f"{text} training and eval differ by")


def check_running_statistics(case: Case) -> None:
    """A test uses what training has seen: after one batch many times over, both give the same frames.

    Of the norm alone, where there is one: inside a recurrence one set of averages may serve steps that training tells
    apart. Allowed are 5 %, so that a variance may be biased or not.
    """
    module, frames = _alone(case)
    with torch.no_grad():
        for more in MORE:
            for _ in range(more):
                trained = frames(module.train())
            tested = frames(module.eval())
            if bool(((tested - trained).abs() < 1e-4).all()):
                break
    what = f"after the same batch {sum(MORE)} times in training, eval differs from training by"
    case.close(tested, trained, 0.05, what)


MORE = (1, 9, 90, 900)  # batches until averages are looked at; the last for a momentum of 0.01


def _alone(case: Case) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """A norm with gains and biases of its own, or an encoder that has none; and the real frames it makes of a batch."""
    encoder, lengths = case.build(), (9, 9, 6, 6)
    if not isinstance(encoder, StackEncoder):
        batch = case.batch(lengths)
        return encoder, lambda module: case.run(cast(Encoder, module), *batch).real
    norm = encoder.make_norm(SIZE).double()
    x, mask = (torch.from_numpy(a) for a in scope_batch(SIZE, lengths))
    for parameter in norm.parameters():
        if parameter.shape == (SIZE,):
            parameter.data = torch.linspace(0.5, 2.0, SIZE, dtype=x.dtype)
    return norm, lambda module: module(x, mask)[mask]
