"""Initial scale of biases and weights, and gradients layer by layer."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor, nn

from asrkit.diagnostics.findings import Finding, finding
from asrkit.diagnostics.probes import short

# Libraries draw biases from +-1 / sqrt(fan in), or set them to 0 (with 1 for an LSTM's forget gates, or one odd value
# for the blank): their median is then below that bound. N(0, 1) has a median of 0.67.
FEWEST = 4  # biases, for a median
BIAS_MEDIAN, BIAS_BOUNDS = 0.3, 1.2
# RMS of a weight times sqrt(fan in): 0.58 torch's default, 1 orthogonal, 1.41 Kaiming. N(0, 1) has sqrt(fan in).
WEIGHT_HIGH, WEIGHT_LOW = 4.0, 0.01
# First over largest, RMS of the gradient per weight (normalization-facts 1.8, ten blocks, width 192): 8.5e-4 and less
# in the stacks that stay blank for ever, 1.8e-2 and more in those that train. Narrow ones are lower (1e-4 for width 8),
# and Adam makes up for scale, so it is no proof until next to nothing is left.
VANISHING_ERROR, VANISHING = 1e-6, 4e-3
# Norm of the gradient of the loss per label: 0.1 to 30 at the start of most runs, 1e4 in deep stacks with frame-wise
# batch norm, whose last steps have two live utterances and hardly any variance. float16 ends at 6.5e4.
EXPLODING = 6.5e4
MODULES_FOR_ORDER = 3  # with fewer layers than this there is no depth to vanish in


def fan_in(module: nn.Module, weight: Tensor) -> int:
    """Numbers that one output is summed over; asrkit's recurrent weights have the directions first."""
    convolution = isinstance(module, nn.modules.conv._ConvNd)
    return math.prod(weight.shape[1:]) if convolution else weight.shape[-1]


def check_scales(model: nn.Module) -> list[Finding]:
    """Biases and weights of a model that has not been trained yet."""
    found: list[Finding] = []
    for name, module in model.named_modules():
        own = {key: p.detach() for key, p in module.named_parameters(recurse=False) if not p.is_meta}
        weights = {key: p for key, p in own.items() if p.dim() >= 2 and "bias" not in key}
        if not weights:
            continue  # gains and biases of norms are not drawn
        fan = min(fan_in(module, w) for w in weights.values())
        biases = [p for key, p in own.items() if "bias" in key and p.numel() >= FEWEST]
        if biases:
            median = max(float(bias.abs().median()) for bias in biases)
            if median > max(BIAS_MEDIAN, BIAS_BOUNDS / math.sqrt(fan)):
                words = f"the median bias has size {median:.2f}; the usual bound is {1 / math.sqrt(fan):.2f}"
                found.append(finding("wild_bias_scale", "error", words, short(name)))
        for key, weight in weights.items():
            # Recurrent layers draw all weights by their own size, however wide the input is.
            gain = float(weight.double().square().mean().sqrt()) * math.sqrt(fan_in(module, weight))
            gain /= max(1.0, math.sqrt(fan_in(module, weight) / fan))
            if gain > WEIGHT_HIGH or 0 < gain < WEIGHT_LOW:
                words = f"RMS of {key} times sqrt(fan in) is {gain:.2g}; usual are 0.5 to 1.5"
                found.append(finding("wild_weight_scale", "error", words, short(name)))
    return found


def gradient_sizes(model: nn.Module) -> dict[str, float]:
    """RMS of the gradient per weight of each layer that has matrices, in the order of the model; torch's recurrent
    stacks, one module, are told apart by the `_l3` in the names of their weights."""
    grads: dict[str, list[Tensor]] = {}
    for name, module in model.named_modules():
        for key, p in module.named_parameters(recurse=False):
            if p.dim() >= 2 and p.requires_grad and "bias" not in key:
                inner = re.search(r"_l(\d+)", key)
                layer = f"{name}.{inner[1]}" if inner and isinstance(module, nn.RNNBase) else name
                grads.setdefault(layer, []).append(torch.zeros_like(p) if p.grad is None else p.grad)
    return {
        name: math.sqrt(sum(float(g.double().square().sum()) for g in parts) / sum(g.numel() for g in parts))
        for name, parts in grads.items()
    }


def check_gradients(model: nn.Module) -> list[Finding]:
    """After a backward pass of the loss per label, without dropout."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    total = math.sqrt(sum(float(g.double().square().sum()) for g in grads))
    if not math.isfinite(total):
        return [finding("nan", "error", "the gradient of a finite loss is not finite")]
    found = []
    if total > EXPLODING:
        found.append(finding("exploding_gradients", "warning", f"the norm of the gradient per label is {total:.3g}"))
    sizes = gradient_sizes(model)
    names = list(sizes)[:-1]  # the output layer's is of another size
    if len(names) >= MODULES_FOR_ORDER:
        first, largest = names[0], max(names[1:], key=lambda name: sizes[name])
        ratio = sizes[first] / max(sizes[largest], 1e-300)
        if ratio < VANISHING:
            words = f"its gradient per weight is {ratio:.1e} of that of {short(largest)}"
            severity = "error" if ratio < VANISHING_ERROR else "warning"
            found.append(finding("vanishing_gradients", severity, words, short(first)))
    return found
