"""A model layer by layer: names, output shapes for a clip, parameters. What `asrkit show` prints."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from asrkit import registry
from asrkit.errors import RecipeError
from asrkit.layers import Chain, FrameWise
from asrkit.model import build_model, parameter_count

Row = dict[str, Any]


def describe_model(recipe: dict[str, Any], labels: int | None, seconds: float) -> tuple[list[Row], int]:
    """Rows {layer, shape (1, T, C), parameters} in the order of the data, and the sum of parameters.

    Without `labels` their number is that of the text rules' alphabet, or 29 (the question's) where there is none.
    """
    if labels is None:
        alphabet = registry.load("text", recipe["text"]["rules"])().alphabet
        labels = len(alphabet) + 1 if alphabet else 29
    model = build_model(recipe, labels).eval()
    model.acoustic.objective = None  # of training only
    if model.acoustic.cmvn.mode == "global":  # there is no data to fit it to, and the shapes do not depend on it
        model.acoustic.cmvn.frames.fill_(1)
    rows: list[Row] = []

    def note(name: str, module: nn.Module) -> None:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if not isinstance(tensor, Tensor):
                raise RecipeError(
                    f"{name} ({type(module).__name__}) returns a {type(tensor).__name__}",
                    possible="a tensor (1, T, C), or a tuple that begins with one",
                    fix="see the contract of asrkit.Encoder",
                    reason="encoder_contract",
                )
            rows.append({"layer": name, "shape": str(tuple(tensor.shape)), "parameters": parameter_count(module)})

        module.register_forward_hook(hook)

    note("features", model.features)
    note("cmvn", model.acoustic.cmvn)
    _leaves(getattr(model.acoustic.encoder, "stack", model.acoustic.encoder), "", note)
    note("ctc", model.acoustic.head)
    samples = int(seconds * model.features.sample_rate)
    with torch.inference_mode():
        model(torch.zeros(1, samples), torch.tensor([samples]))
    return rows, parameter_count(model.acoustic)


def _leaves(module: nn.Module, indent: str, note: Any) -> None:
    if not isinstance(module, Chain):
        note(indent + _title(module), module)
        return
    for layer in module.layers:
        if isinstance(layer, Chain):
            _leaves(layer, indent + "  ", note)
        else:
            note(indent + _title(layer), layer)


def _title(layer: nn.Module) -> str:
    """The field's word for a layer."""
    inner = getattr(layer, "recurrent", None)
    if inner is not None:
        place = inner.placement.place
        title = f"{'bi' if inner.directions == 2 else ''}{inner.cell} x {len(inner.layers)}"
        stands = any("norm" in name for name, _ in inner.layers[0].named_modules())
        return f"{title}, norm: {place}" if place != "none" and stands else title
    if isinstance(layer, FrameWise):
        return type(layer.module).__name__.lower()
    if hasattr(layer, "norm"):
        return f"norm: {type(layer.norm).__name__}"
    return type(layer).__name__.lower()
