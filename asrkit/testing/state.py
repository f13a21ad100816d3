"""Checks of what an encoder remembers, and of what it draws: state between calls, seeds, weights, save and load."""

from __future__ import annotations

import copy

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from asrkit.encoders import Encoder
from asrkit.model import encoder_class
from asrkit.testing.case import Case, buffers, gradients
from asrkit.testing.result import NotApplicable


def check_state_eval(case: Case) -> None:
    """In eval a call leaves nothing behind, its input as it was, and later calls give the same numbers."""
    encoder = case.trained()
    x, lengths = case.batch()
    before, given = buffers(encoder), (x.clone(), lengths.clone())
    with torch.no_grad():
        encoder(*given)
    case.require(torch.equal(x, given[0]) and torch.equal(lengths, given[1]), "a call changes its own input")
    first = case.evaluate(x, lengths, encoder).real
    for seed, others in enumerate(((4, 3), (20, 13, 9, 9, 2))):
        case.evaluate(*case.batch(others, seed=50 + seed), encoder)
    case.close(case.evaluate(x, lengths, encoder).real, first, 0.0, "after other calls the output differs by")
    for name, tensor in encoder.named_buffers():
        case.require(torch.equal(before[name], tensor), f"a call in eval changes the buffer {name}")


def check_state_train(case: Case) -> None:
    """In training a call leaves nothing behind but what is in its buffers; it changes no parameter."""
    encoder = case.build()
    with torch.no_grad():
        case.run(encoder, *case.batch((13, 12, 9, 6), seed=60))
        start = {name: dict(module._buffers) for name, module in encoder.named_modules()}
        start = copy.deepcopy(start)
        weights = copy.deepcopy(dict(encoder.named_parameters()))
        first = case.run(encoder, *case.batch()).real
        for seed, others in enumerate(((7, 3), (20, 13, 9, 9, 2))):
            case.run(encoder, *case.batch(others, seed=50 + seed))
        for name, module in encoder.named_modules():
            module._buffers.update(copy.deepcopy(start[name]))
        again = case.run(encoder, *case.batch()).real
    case.close(again, first, 0.0, "with its buffers put back, after other calls the output differs by")
    for name, parameter in encoder.named_parameters():
        case.require(torch.equal(weights[name], parameter), f"a forward in training changes the parameter {name}")


def check_deterministic(case: Case) -> None:
    """In eval the output does not depend on torch's generator."""
    outputs = []
    for seed in (1, 2):
        encoder = case.trained()
        with torch.no_grad():
            torch.manual_seed(seed)
            y, _ = encoder(*case.batch())
        outputs.append(y)
    case.close(outputs[1], outputs[0], 0.0, "in eval, another state of the generator changes the output by")


def check_same_seed(case: Case) -> None:
    """The same seed gives the same weights, and in training the same output and gradients."""
    steps: list[tuple[dict[str, Tensor], Tensor, dict[str, Tensor | None]]] = []
    for _ in range(2):
        encoder = case.construct().train()
        state = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
        out = case.run(encoder, *case.batch())
        case.loss(out.real).backward()
        steps.append((state, out.real.detach(), gradients(encoder)))
    (state, output, grads), (state2, output2, grads2) = steps
    for name, tensor in state.items():
        case.require(torch.equal(tensor, state2[name]), f"the same seed gives other values of {name}")
    case.close(output2, output, 0.0, "the same seed gives another output, by")
    for name, grad in grads.items():
        other = grads2[name]
        if grad is not None and other is not None:
            case.close(other, grad, 0.0, f"the same seed gives another gradient of {name}, by")


def check_initial_weights(case: Case) -> None:
    """A norm draws nothing, and for one seed all weights outside the norms are those of `none`."""
    encoder = case.construct()
    make_norm = getattr(encoder, "make_norm", None)
    if make_norm is None:
        raise NotApplicable("it has no make_norm: its weights are its own")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    make_norm(8)
    drawn = not torch.equal(before, torch.get_rng_state())
    case.require(not drawn, "make_norm draws from torch's generator: its numbers are those of the next layer's weights")
    plain = Case(encoder_class("none"), case.stack, case.layers, case.norm, case.seed).construct()
    for name, expected in plain.named_parameters():
        case.close(_weight(case, encoder, name), expected, 1e-6, f"{name} differs from that of `none` by")


def check_save_load(case: Case) -> None:
    """The state dict goes through safetensors, strictly, into a new encoder that then goes on alike."""
    original = case.trained()
    tensors = {name: tensor.detach().contiguous() for name, tensor in original.state_dict().items()}
    copied = case.construct(seed=case.seed + 1)
    copied.load_state_dict(load_tensors(save_tensors(tensors)), strict=True)
    for name, tensor in copied.state_dict().items():
        case.close(tensor, tensors[name], 0.0, f"{name} comes back changed by")
    batch = case.batch()
    saved, loaded = (case.evaluate(*batch, encoder).real for encoder in (original, copied))
    case.close(loaded, saved, 1e-6, "loaded from its file, in eval, the output differs by")
    with torch.no_grad():
        saved, loaded = (case.run(encoder.train(), *batch).real for encoder in (original, copied))
    case.close(loaded, saved, 1e-6, "loaded from its file, in training, the output differs by")
    after = dict(copied.named_buffers())
    for name, tensor in original.named_buffers():
        case.close(after[name], tensor, 1e-6, f"one batch after loading, the buffer {name} differs by")


def _weight(case: Case, encoder: Encoder, name: str) -> Tensor:
    """The weight that acts under this name, be it a parameter or made of others (a weight norm)."""
    path, _, last = name.rpartition(".")
    try:
        owner: nn.Module = encoder.get_submodule(path)
        value = getattr(owner, last)
    except AttributeError:
        case.fail(f"it has no {name}, which `none` has")
        raise
    assert isinstance(value, Tensor)
    return value
