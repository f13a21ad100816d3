"""One recurrent layer built through the public door (a registered encoder, a recipe's `layers:`), and its oracle.

The adapter reads gains, biases and running statistics out of the product by the names of parameters and buffers. A norm
of the product may serve several groups of sums, or both directions, at once: all norms of one kind are read as one row
of features, directions first, then groups.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from norm_oracle import ORACLES, Array, Norm
from recurrent_oracle import Layer, gate_groups
from torch import Tensor, nn

from asrkit import registry
from asrkit.encoders import Encoder, NormOptions
from asrkit.model import encoder_class

# A large eps, which is seen where it is misplaced; steps of two utterances that are much alike stay well conditioned.
OPTIONS: dict[str, Any] = {
    "eps": 1e-2, "momentum": 0.3, "min_count": 3, "max_steps": 4, "groups": 2, "renorm_warmup": 2,
}  # fmt: skip
KINDS = {"gates": "gate_norms", "recurrent": "recurrent_norms", "joined": "joined_norms", "cell": "cell_norms"}
# Which kinds of norm a placement has besides that of the cell.
HAS = {
    "none": (), "input": (), "gates": ("gates",), "recurrent": ("gates", "recurrent"), "hidden": ("recurrent",),
    "joined": ("joined",),
}  # fmt: skip


def our_strategies() -> list[str]:
    """The names that asrkit itself offers; a new one without an oracle makes the tests fail, not pass it by."""
    return sorted(plugin.name for plugin in registry.list_plugins("encoders") if plugin.package == "asrkit")


def build(
    name: str, cell: str, placement: str, bidirectional: bool = True, size: int = 4, inputs: int = 4, **options: Any
) -> Encoder:
    """A float32 encoder of one recurrent layer. `options` of the layer (per_gate, cell_norm, gain, layers) or norm."""
    layer = {key: options.pop(key) for key in ("per_gate", "cell_norm", "gain", "layers") if key in options}
    spec = {("bi" if bidirectional else "") + cell: {"size": size, "norm": placement, **layer}}
    return encoder_class(name)(input_size=inputs, layers=[spec], norm=NormOptions(**{**OPTIONS, **options}))


def recurrent_layers(encoder: nn.Module) -> list[nn.Module]:
    return [module for module in encoder.modules() if hasattr(module, "weight_recurrent") and hasattr(module, "cell")]


@torch.no_grad()
def scatter_affine(encoder: nn.Module) -> None:
    """Gains and biases of all norms away from 1 and 0, and the lengths of normalized weights away from ||v||."""
    for module_name, module in encoder.named_modules():
        if "norm" not in module_name:
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if name.endswith("bias"):
                parameter.copy_(0.5 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.rand_like(parameter) + 0.6)
    for name, parameter in encoder.named_parameters():
        if name.endswith("original0"):  # the g of weight norm
            parameter.mul_(torch.rand_like(parameter) + 0.6)


def use_backend(encoder: nn.Module, backend: str) -> None:
    for module in encoder.modules():
        if hasattr(module, "backend"):
            module.backend = backend


def array(x: Tensor) -> Array:
    return np.asarray(x.detach().double().numpy())


def norms_of(layer: nn.Module, kind: str) -> nn.Module | None:
    found = layer.input_norm if kind == "input" else getattr(layer, KINDS[kind])
    return found if isinstance(found, nn.Module) else None


def row(module: nn.Module | None, ending: str) -> Array | None:
    """All parameters or buffers with this last name, side by side along the last axis, the features."""
    if module is None:
        return None
    tensors = [*module.named_parameters(), *module.named_buffers()]
    found = [array(tensor) for name, tensor in tensors if name.rpartition(".")[2] == ending]
    return np.concatenate(found, -1) if found else None


def effective(layer: nn.Module, name: str) -> Array:
    return array(getattr(layer, name))


def oracle_of(encoder: nn.Module, name: str, cell: str, placement: str, **options: Any) -> Layer:
    """The oracle with the weights, gains and biases of the encoder's only recurrent layer; nothing seen yet."""
    (layer,) = recurrent_layers(copy.deepcopy(encoder).double())  # weights of weight norm are computed, not stored
    per_gate, cell_norm = options.pop("per_gate", False), options.pop("cell_norm", None)
    options.pop("gain", None)
    if cell_norm is None:
        cell_norm = "output" if cell == "lstm" and placement == "recurrent" else "none"
    names = ("weight_input", "weight_recurrent", "bias_input", "bias_recurrent")
    weights = {key: effective(layer, key) for key in names}
    directions, size = weights["weight_recurrent"].shape[0], weights["weight_recurrent"].shape[2]

    def norm(kind: str, start: int, width: int) -> Norm:
        found = norms_of(layer, kind)
        pieces = [row(found, ending) for ending in ("weight", "bias")]
        gain, bias = (None if piece is None else piece[start : start + width] for piece in pieces)
        made = ORACLES[name](width, gain, bias, **{**OPTIONS, **options})
        return made

    norms: dict[str, Any] = {}
    if placement == "input":
        norms["input"] = norm("input", 0, weights["weight_input"].shape[2])
    groups = gate_groups(cell, size, per_gate)
    for kind in HAS[placement]:
        norms[kind] = [
            [norm(kind, d * groups[-1].stop + group.start, group.stop - group.start) for group in groups]
            for d in range(directions)
        ]
    if cell_norm != "none":
        norms["cell"] = [[norm("cell", d * size, size)] for d in range(directions)]
    return Layer(cell, placement, weights, norms, per_gate, cell_norm)


def kinds_of(oracle: Layer) -> list[tuple[str, list[Norm]]]:
    """Each kind of norm of the oracle with its norms in the product's order: directions, then groups."""
    kinds = [("input", [oracle.norms["input"]])] if "input" in oracle.norms else []
    for kind in KINDS:
        if kind in oracle.norms:
            kinds.append((kind, [norm for direction in oracle.norms[kind] for norm in direction]))
    return kinds


def running_of(norm: Norm) -> dict[str, Array]:
    """mean and var (C,) or (steps, C), and count (1,) or (steps, 1), as the product stores them; or nothing."""
    windows = getattr(norm, "rows", None) or getattr(norm, "window", None)
    if windows is None:
        return {}
    if not isinstance(windows, list):
        return {"mean": windows.mean, "var": windows.var, "count": np.array([windows.count])}
    stacks = {key: np.stack([getattr(window, key) for window in windows]) for key in ("mean", "var")}
    return {**stacks, "count": np.array([[window.count] for window in windows])}


def assert_running_equal(encoder: nn.Module, oracle: Layer, tolerance: float) -> int:
    """Running statistics of all norms, counts included; how many numbers were compared."""
    (layer,) = recurrent_layers(encoder)
    compared = 0
    for kind, norms in kinds_of(oracle):
        expected = [running_of(norm) for norm in norms]
        if not expected[0]:
            continue
        for key in ("mean", "var"):
            found, wanted = row(norms_of(layer, kind), key), np.concatenate([each[key] for each in expected], -1)
            assert found is not None, f"{kind}: no running {key}"
            np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance, err_msg=f"{kind} {key}")
            compared += wanted.size
        count = row(norms_of(layer, kind), "count")
        assert count is not None
        repeats = count.shape[-1]
        np.testing.assert_allclose(count, np.concatenate([expected[0]["count"]] * repeats, -1), rtol=1e-5)
    return compared
