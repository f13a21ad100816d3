"""What comes from other people's code, as one batch: tensors, lists and outputs in the shapes that the checks speak of.

What cannot be one batch is refused with DataError (`shapes`): whatever a check said would be of something else.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from asrkit.errors import DataError

Lengths = Tensor | Sequence[int]
"""(B,): torch's CTC loss takes both."""
Targets = Tensor | Sequence[Any]
"""(B, L) padded with anything, all labels one after the other (sum of target lengths,), or a list per utterance."""

OUTPUTS = ("log_probs", "logits")  # names under which a model that returns a mapping gives its outputs
OUTPUT_LENGTHS = ("lengths", "output_lengths", "log_probs_lengths", "logits_lengths")


def refuse(what: str, possible: str | None = None, fix: str | None = None) -> DataError:
    return DataError(what, possible=possible, fix=fix, reason="shapes")


def whole(lengths: Lengths) -> Tensor:
    """Lengths (B,) as numbers to judge, float64: they may be fractions, infinite or NaN."""
    return torch.as_tensor(lengths).detach().cpu().to(torch.float64)


def as_tensor(given: Any, name: str, possible: str) -> Tensor:
    """What torch makes of it: tensors, numpy's arrays, lists of numbers."""
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:  # words, nested lists of unequal length
        raise refuse(f"{name}: a {type(given).__name__} that torch cannot read ({error})", possible) from error


def as_targets(targets: Targets) -> Tensor:
    """Targets as one tensor; lists of unequal length one after the other."""
    if isinstance(targets, Tensor):
        return targets
    possible = "label ids (B, L), (sum of target lengths,), or a list of them for each utterance"
    if not isinstance(targets, Sequence):
        return as_tensor(targets, "targets", possible)
    rows = [as_tensor(row, "targets", possible) for row in targets]
    if all(row.dim() == 1 for row in rows) and len({len(row) for row in rows}) > 1:
        return torch.cat([row for row in rows if len(row)])  # an empty list is one of floats
    return torch.stack(rows) if rows else torch.zeros(0, dtype=torch.long)


def rows_of(targets: Tensor, target_lengths: Tensor) -> list[Tensor]:
    """The labels of each utterance, of targets (B, L) or (sum of target_lengths,); none for a negative length."""
    sizes = target_lengths.long().clamp(min=0)
    if targets.dim() == 1:
        ends = sizes.cumsum(0).tolist()
        return [targets[end - size : end] for size, end in zip(sizes.tolist(), ends, strict=True)]
    return [row[:size] for row, size in zip(targets, sizes.tolist(), strict=True)]


def check_shapes(
    log_probs: Tensor, lengths: Lengths, targets: Tensor, target_lengths: Lengths, inputs: Lengths | None,
    blank: int, batch_first: bool,
) -> None:  # fmt: skip
    """Refuse what is not one batch of a CTC loss; B is taken from the lengths."""
    _check_lengths({"lengths": lengths, "target lengths": target_lengths, "input lengths": inputs}, log_probs)
    layout, other = ("(B, T', V)", "(T', B, V)") if batch_first else ("(T', B, V)", "(B, T', V)")
    shape, batch = tuple(log_probs.shape), len(lengths)
    kinds = {"lengths": lengths, "target lengths": target_lengths}
    kinds |= {} if inputs is None else {"input lengths": inputs}
    counts = {name: len(one) for name, one in kinds.items()}
    counts |= {"rows of targets": targets.shape[0]} if targets.dim() == 2 else {}
    wrong = len(shape) != 3 or targets.dim() not in (1, 2) or any(count != batch for count in counts.values())
    first = 0 if batch_first else 1
    if wrong or shape[first] != batch:
        given = f"log_probs {shape}, targets {tuple(targets.shape)}"
        given = ", ".join([given, *(f"{n} {name}" for name, n in counts.items())])
        turned = not wrong and shape[1 - first] == batch
        looks = f" (log_probs look like {other})" if turned else ""
        raise refuse(
            f"not one batch: {given}{looks}",
            f"log_probs {layout}, targets (B, L) or (sum of target lengths,), all lengths (B,)",
            f"pass batch_first={not batch_first}" if turned else None,
        )
    if not 0 <= blank < shape[2]:
        fix = f"if it is the last, blank={shape[2] - 1}" if blank == -1 else None
        raise refuse(f"blank {blank} of {shape[2]} labels", f"0 to {shape[2] - 1}", fix)


def _check_lengths(kinds: dict[str, Any], log_probs: Tensor) -> None:
    for name, one in kinds.items():
        shape = () if one is None else tuple(as_tensor(one, name, "one number for each utterance (B,)").shape)
        if one is not None and len(shape) != 1:
            single = not shape and log_probs.dim() == 2
            raise refuse(
                f"{name} {shape}", "one number for each utterance (B,)",
                "for a single utterance give a batch of one: x[None] of everything" if single else None,
            )  # fmt: skip


def check_forward(forward: Any) -> None:
    """Refuse what cannot be called with features and lengths."""
    called = forward.forward if isinstance(forward, nn.Module) else forward
    try:
        inspect.signature(called).bind(None, None)
    except TypeError as error:
        raise refuse(
            f"the model cannot be called with features and lengths ({error})",
            "forward(features (B, T, F), lengths (B,)), lengths in second place",
            "give a function around it and the model, e.g. check_model(lambda x, n: net(x), ..., model=net)",
        ) from error
    except ValueError:  # a builtin that does not say what it takes
        pass


def check_inputs(features: Any, lengths: Tensor, module: nn.Module | None) -> None:
    """Refuse what no model of (B, T, F) or (B, S) and lengths (B,) can be checked with."""
    if not isinstance(features, Tensor) or features.dim() not in (2, 3) or not features.is_floating_point():
        given = f"a {type(features).__name__}"
        if isinstance(features, Tensor):
            given = f"{tuple(features.shape)} {features.dtype}".replace("torch.", "")
        raise refuse(
            f"features {given}", "floating point features (B, T, F) or waveforms (B, S)",
            "for other shapes give a function around the model, e.g. lambda x, n: model(x.transpose(1, 2)[:, None], n)",
        )  # fmt: skip
    shape = tuple(features.shape)
    if lengths.dim() != 1 or len(lengths) != shape[0]:
        turned = lengths.dim() == 1 and shape[1] == len(lengths)
        raise refuse(
            f"features {shape} and lengths {tuple(lengths.shape)}", "features (B, T, F), lengths (B,)",
            "give features.transpose(0, 1), and a function that turns them back" if turned else None,
        )  # fmt: skip
    if not bool(((lengths >= 1) & (lengths <= shape[1])).all()):
        relative = "lengths are counted in frames, not relative to the longest" if bool((lengths <= 1).all()) else None
        turned = len(shape) == 3 and float(lengths.max()) <= shape[2]
        fix = "features look like (B, F, T): give features.transpose(1, 2), and a function that turns them back"
        raise refuse(
            f"lengths {', '.join(f'{float(n):.3g}' for n in lengths[:4])} for features {shape}", f"1 to T = {shape[1]}",
            relative or (fix if turned else None),
        )  # fmt: skip
    if module is not None:
        _check_module(module)


def _check_module(module: nn.Module) -> None:
    if any(isinstance(m, torch.jit.ScriptModule) for m in module.modules()):
        raise refuse(
            "a scripted model hides its layers", "an nn.Module that is not scripted",
            "give the module that it was made of, or a function around it: lambda x, n: scripted(x, n)",
        )  # fmt: skip
    if any(nn.parameter.is_lazy(p) for p in (*module.parameters(), *module.buffers())):
        raise refuse(
            "lazy layers have no weights yet", "a model that has been called once",
            "call it on a batch before: model(features, lengths)",
        )  # fmt: skip
    if any(p.is_inference() for p in module.parameters()):
        raise refuse(
            "parameters made within torch.inference_mode have no gradients", fix="build the model outside of it"
        )


def read_output(got: Any, batch: int, batch_first: bool) -> tuple[Tensor, Tensor | None]:
    """What a model returned -> outputs (B, T', V), and output lengths (B,) where it gives some.

    A tensor, a tuple that begins with one, or a mapping or an object with `log_probs` or `logits`. What is called
    `logits` is what log_softmax has yet to be taken of, as those who name it so do in their loss. What follows is taken
    as lengths where it is one number for each utterance, whole or not, in a tensor or a list.
    """
    named = _named(got)
    if named is not None:
        key = next((key for key in OUTPUTS if named.get(key) is not None), None)
        outputs = None if key is None else named[key]
        if key == "logits" and isinstance(outputs, Tensor) and outputs.dim() > 0:
            outputs = outputs.log_softmax(-1)
        rest = next((named[key] for key in OUTPUT_LENGTHS if named.get(key) is not None), None)
        given = f"a mapping with {', '.join(map(str, named))}"
    elif isinstance(got, tuple | list) and len(got):
        outputs, rest = got[0], got[1] if len(got) > 1 else None
        given = f"a {type(got).__name__} that begins with a {type(outputs).__name__}"
    else:
        outputs, rest, given = got, None, f"a {type(got).__name__}"
    shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else None
    if not isinstance(outputs, Tensor) or outputs.dim() != 3:
        raise refuse(
            f"the model returned {given if shape is None else f'outputs {shape}'}",
            "log-probabilities (B, T', V), or those and their lengths (B,), or a mapping with log_probs or logits",
            "give a function around the model, e.g. lambda x, n: model(x, n).scores.log_softmax(-1)",
        )
    first, second = (outputs.shape[0], outputs.shape[1]) if batch_first else (outputs.shape[1], outputs.shape[0])
    if first != batch:
        raise refuse(
            f"the model returned outputs {shape} for {batch} utterances", "(B, T', V), or (T', B, V) time first",
            f"pass batch_first={not batch_first}" if second == batch else None,
        )  # fmt: skip
    return (outputs if batch_first else outputs.transpose(0, 1)), _as_lengths(rest, batch)


def _named(got: Any) -> Mapping[Any, Any] | None:
    """A mapping as it is, an object with outputs as one."""
    if isinstance(got, Mapping):
        return got
    if isinstance(got, Tensor) or not any(hasattr(got, key) for key in OUTPUTS):
        return None
    return {key: getattr(got, key) for key in (*OUTPUTS, *OUTPUT_LENGTHS) if hasattr(got, key)}


def _as_lengths(given: Any, batch: int) -> Tensor | None:
    """None for what cannot be lengths, e.g. the last state of a recurrence."""
    if isinstance(given, tuple | list):
        single = all(isinstance(n, int | float) or (isinstance(n, Tensor) and n.dim() == 0) for n in given)
        given = torch.as_tensor([float(n) for n in given]) if single else None
    if not isinstance(given, Tensor) or given.dim() != 1 or len(given) != batch or given.dtype == torch.bool:
        return None
    return None if given.is_complex() else given.detach()
