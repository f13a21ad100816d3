"""Checks that padding and batch mates are nobody's business (reliability rows N01 and N08)."""

from __future__ import annotations

import torch
from torch import Tensor

from asrkit.encoders import StackEncoder
from asrkit.errors import AsrkitError
from asrkit.testing import large
from asrkit.testing.case import LENGTHS, NAN, Case, Output, buffers, gradients
from asrkit.testing.scope import SIZE, scope_batch

VARIANTS = ((1e4, 0), (NAN, 0), (0.0, 7), (1e4, 7), (NAN, 7))


def check_padding_eval(case: Case) -> None:
    """In eval, neither what lies in the padding nor how much of it there is changes a real frame."""
    expected = case.evaluate(*case.batch())
    for fill, extra in VARIANTS:
        out = case.evaluate(*case.batch(fill=fill, extra=extra))
        _same_lengths(case, out, expected)
        case.close(out.real, expected.real, 1e-5, f"{_padding(fill, extra)} changes real frames by")
    large.padding_eval(case)
    _check_steps(case, training=False)


def check_padding_train(case: Case) -> None:
    """In training neither, and no gradient and no running statistic."""
    expected, grads, kept = _step(case, 0.0, 0)
    largest = max((float(g.abs().max()) for g in grads.values()), default=1.0)
    for fill, extra in VARIANTS:
        out, other_grads, other_kept = _step(case, fill, extra)
        what = _padding(fill, extra)
        _same_lengths(case, out, expected)
        case.close(out.real, expected.real, 1e-5, f"{what} changes real frames by")
        for name, grad in grads.items():
            case.close(other_grads[name] / largest, grad / largest, 1e-4, f"{what} changes the gradient of {name} by")
        for name, buffer in kept.items():
            if buffer.is_floating_point():
                case.close(other_kept[name], buffer, 1e-5, f"{what} changes the buffer {name} by")
    large.padding_train(case)
    _check_steps(case, training=True)


def check_padding_output(case: Case) -> None:
    """Past each end the output is 0; no gradient goes there, and NaN there reaches none."""
    for training in (False, True):
        for fill in (0.0, 1e4, NAN):
            encoder = case.trained().train(training)
            x, lengths = case.batch(fill=fill, extra=5)
            x.requires_grad_()
            out = case.run(encoder, x, lengths)
            mode = "in training" if training else "in eval"
            for row, n in enumerate(out.lengths):
                rest = out.y[row, n:].detach()
                case.require(not bool(rest.any()), f"{mode}, the output past an utterance's end is not 0")
            case.loss(out.real).backward()
            case.finite(gradients(encoder), f"{mode}, with {fill:g} in the padding, the gradient of")
            if x.grad is not None:
                for row, n in enumerate(lengths.tolist()):
                    case.require(not bool(x.grad[row, n:].any()), f"{mode}, a gradient reaches the padding")
    large.padding_output(case)


def check_batch_mates(case: Case) -> None:
    """In eval, other utterances in the batch and their order change nothing; the number of frames stays as it is."""
    x, lengths = case.batch()
    frames = x.shape[1]
    expected = case.evaluate(x, lengths)
    for pair in ((0, 1), (1, 3), (2, 3)):
        index = torch.tensor(pair)
        out = case.evaluate(x[index], lengths[index])
        case.close(out.real, expected.rows(pair), 1e-5, "without the other utterances, real frames change by")
    order = [2, 0, 3, 1]
    out = case.evaluate(x[order], lengths[order])
    case.close(out.real, expected.rows(order), 1e-5, "in another order, real frames change by")
    others, other_lengths = case.batch((frames, 5, 7, 2), seed=3)
    x, lengths = torch.cat([others, 100 * others, x]), torch.cat([other_lengths, other_lengths, lengths])
    out = case.evaluate(x, lengths)
    case.close(out.rows(range(8, 12)), expected.real, 1e-5, "beside eight other utterances, real frames change by")
    large.batch_mates(case)


def _step(case: Case, fill: float, extra: int) -> tuple[Output, dict[str, Tensor], dict[str, Tensor]]:
    """Output, gradients and buffers after one batch in training."""
    encoder = case.build()
    out = case.run(encoder, *case.batch(fill=fill, extra=extra))
    case.loss(out.real).backward()
    return out, {name: grad for name, grad in gradients(encoder).items() if grad is not None}, buffers(encoder)


def _check_steps(case: Case, training: bool) -> None:
    """Inside a recurrence, utterances that have ended are padding too. Once per encoder, of a norm with a `step`."""
    encoder = case.build() if case.first else None
    if not isinstance(encoder, StackEncoder) or not hasattr(encoder.make_norm(SIZE), "step"):
        return
    try:
        (expected, kept), (rows, others) = (_stepped(encoder, training, fill) for fill in (0.0, 1e4))
    except AsrkitError as error:
        if error.reason == "placement":
            return
        raise
    what = "the norm's step: 10000 in rows of utterances that have ended changes"
    case.close(rows, expected, 1e-5, f"{what} those of others by")
    for name, buffer in kept.items():
        if buffer.is_floating_point():
            case.close(others[name], buffer, 1e-5, f"{what} the buffer {name} by")


@torch.no_grad()
def _stepped(encoder: StackEncoder, training: bool, fill: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Live rows of a norm's steps through a batch after another one, and its buffers; `fill` in all other rows."""
    torch.manual_seed(0)
    norm = encoder.make_norm(SIZE).train()
    x, mask = (torch.from_numpy(array) for array in scope_batch(SIZE, (6, 6, 4, 3, 3)))
    x = x.float()
    norm(x.flip(0), mask.flip(0))
    x = x.masked_fill(~mask.unsqueeze(-1), fill)
    norm.train(training)
    steps = ((x[:, t], t, mask[:, t]) for t in range(x.shape[1]))
    return torch.cat([norm.step(*step)[step[2]] for step in steps]), buffers(norm)  # type: ignore[operator]


def _same_lengths(case: Case, out: Output, expected: Output) -> None:
    text = f"with more padding, {list(LENGTHS)} frames become {out.lengths} instead of {expected.lengths}"
    case.require(out.lengths == expected.lengths, text)


def _padding(fill: float, extra: int) -> str:
    return f"{fill:g} in the padding" + (f" and {extra} more frames of it" if extra else "")
