"""The backward pass of a model: does the gradient reach every layer, and in what size?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asrkit.diagnostics.batch import needed_frames
from asrkit.diagnostics.behaviour import Case
from asrkit.diagnostics.findings import Finding, finding
from asrkit.diagnostics.hooks import order_of, scaled
from asrkit.diagnostics.probes import short
from asrkit.diagnostics.scales import check_gradients, silent_layers
from asrkit.diagnostics.shapes import rows_of

NO_GRADIENT = "torch.no_grad, inference_mode or detach around the whole model, or a function that only evaluates"
TRIES = 4  # layers without a gradient of which it is seen whether the output needs them


def check_backward(case: Case, model: nn.Module) -> list[Finding]:
    """The loss per label of the utterances that can be aligned, and its gradient."""
    rows, targets = _alignable(case)
    if not rows or not any(p.requires_grad for p in model.parameters()):
        return []
    model.zero_grad(set_to_none=True)
    sizes = case.target_lengths.cpu().long()[rows]
    try:
        with torch.enable_grad(), order_of(model) as order:
            outputs, _ = case.probe()
            if not outputs.requires_grad:
                words = "the output has no gradient at all: with this function nothing can be trained"
                return [finding("vanishing_gradients", "error", f"{words} ({NO_GRADIENT})")]
            losses = F.ctc_loss(
                outputs[rows].transpose(0, 1).float(), torch.cat([targets[i] for i in rows]).to(outputs.device),
                case.lengths.cpu()[rows].long(), sizes, blank=case.blank, reduction="none",
            )  # fmt: skip
            if not bool(losses.isfinite().all()):
                return [finding("nan", "error", "the loss of utterances that can be aligned is not finite")]
            (losses.sum() / sizes.sum()).backward()
    except RuntimeError as error:  # a state that is overwritten in place
        words = f"gradients: {type(error).__name__}: {str(error).splitlines()[0]}"
        return [finding("not_checked", "note", words[:200])]
    found, cut = check_gradients(model, order), _check_cut(case, model, order)
    return [one for one in found if not cut or one.code != "vanishing_gradients"] + cut


def _alignable(case: Case) -> tuple[list[int], list[Tensor]]:
    """Places of the utterances with labels that the loss can be taken of, and the labels of all."""
    sizes, lengths = case.target_lengths.cpu().long(), case.lengths.cpu().double()
    targets = [row.long() for row in rows_of(case.targets.cpu(), sizes)]
    frames, labels = case.outputs.shape[1:]
    rows = [i for i, row in enumerate(targets) if len(row) and needed_frames(row) <= float(lengths[i]) <= frames]
    rows = [i for i in rows if 0 <= int(targets[i].min()) <= int(targets[i].max()) < labels]
    return [i for i in rows if len(targets[i]) == int(sizes[i])], targets


def _check_cut(case: Case, model: nn.Module, order: list[str]) -> list[Finding]:
    """Layers without any gradient that the output needs all the same: it moves with what they give."""
    probe = case.probe
    silent = silent_layers(model, order)
    if not silent:
        return []
    modules = dict(model.named_modules())
    with torch.no_grad():
        outputs, _ = probe()
        for name in silent[::-1][:TRIES]:
            with scaled(modules[name], 2.0):
                if not torch.allclose(probe()[0], outputs, rtol=1e-4, atol=1e-6, equal_nan=True):
                    more = f" ({len(silent)} layers in all)" if len(silent) > 1 else ""
                    words = f"it gets no gradient at all, though the output depends on it{more}"
                    return [finding("vanishing_gradients", "error", words, short(name))]
    return []
