"""Learning rate as a function of progress, and the optimizers a recipe may name.

The rate depends on the share of training that is done and on nothing else: there is no state to save, and a resumed run
is on the same curve.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import nn

from asrkit.errors import RecipeError, nearest

SCHEDULES = ("constant", "onecycle", "warmup")
OPTIMIZERS: dict[str, Any] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}


def learning_rate(progress: float, options: dict[str, Any]) -> float:
    """The rate at `progress` in [0, 1] of all updates; `options` is the recipe's `training:` section.

    constant: `lr`. onecycle: from lr / 25 up to lr over `warmup_share` of training, then down to lr / 250,000, each
    along half a cosine or, with `anneal: linear`, a line (Smith & Topin 2017, in the form of torch's OneCycleLR).
    warmup: linear from 0 to lr over `warmup_share`, then constant for `hold_share`, then down to `final_share` * lr
    along half a cosine.
    """
    name, peak = options["schedule"], float(options["lr"])
    if name not in SCHEDULES:
        raise RecipeError(f"training.schedule = {name!r}", possible=nearest(str(name), SCHEDULES), reason="schedule")
    if name == "constant":
        return peak
    share = float(options["warmup_share"])
    if name == "onecycle":
        start, end = peak / 25.0, peak / 25.0 / 1e4
        if progress <= share:
            return _anneal(start, peak, progress / max(share, 1e-12), options["anneal"])
        return _anneal(peak, end, (progress - share) / max(1.0 - share, 1e-12), options["anneal"])
    if progress < share:
        return peak * progress / share
    hold = share + float(options["hold_share"])
    done = max(progress - hold, 0.0) / max(1.0 - hold, 1e-12)
    return _anneal(peak, peak * float(options["final_share"]), done, "cosine")


def _anneal(start: float, end: float, done: float, shape: str) -> float:
    if shape == "linear":
        return start + (end - start) * done
    return end + (start - end) / 2.0 * (1.0 + math.cos(math.pi * done))


def make_optimizer(modules: nn.Module, options: dict[str, Any]) -> torch.optim.Optimizer:
    """The optimizer that `training.optimizer` names; weight decay spares vectors (biases, gains of norms)."""
    name = options["optimizer"]
    if name not in OPTIMIZERS:
        raise RecipeError(f"training.optimizer = {name!r}", possible=nearest(str(name), OPTIMIZERS), reason="optimizer")
    parameters = [p for p in modules.parameters() if p.requires_grad]
    decay = float(options["weight_decay"])
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    extra: dict[str, Any] = {"momentum": options["momentum"]}
    if name != "sgd":
        extra = {"betas": tuple(options["betas"]), "fused": True}  # one pass over the numbers, on a CPU too
    return OPTIMIZERS[name]([g for g in groups if g["params"]], lr=float(options["lr"]), **extra)


def clip_gradients(modules: nn.Module, limit: float | None) -> tuple[float, dict[str, float]]:
    """One norm over all parameters of all groups, scaled down to `limit` where it is larger.

    Returns the norms before: of all, and of each layer that has parameters of its own.
    """
    named = [(name, p) for name, p in modules.named_parameters() if p.grad is not None]
    norms = torch.stack(list(torch._foreach_norm([p.grad for _, p in named if p.grad is not None]))).double().cpu()
    squares: dict[str, float] = {}
    for (name, _), norm in zip(named, norms.tolist(), strict=True):
        layer = layer_of(name)
        squares[layer] = squares.get(layer, 0.0) + norm * norm
    total = norms.norm()
    if limit:
        torch.nn.utils.clip_grads_with_norm_([p for _, p in named], limit, total.float())
    return float(total), {layer: math.sqrt(square) for layer, square in squares.items()}


def layer_of(parameter: str) -> str:
    """The layer of a recipe's stack that a parameter belongs to: `acoustic.encoder.stack.layers.3.norm.weight` ->
    `3`."""
    places = re.findall(r"\blayers\.(\d+)", parameter.partition(".recurrent.")[0])
    return ".".join(places) if places else "ctc" if ".head." in f".{parameter}" else parameter.rpartition(".")[0]
