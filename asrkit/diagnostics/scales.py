"""Initial scale of biases and weights, and gradients layer by layer."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from torch import Tensor, nn

from asrkit.diagnostics.findings import Finding, finding
from asrkit.diagnostics.probes import short
from asrkit.recurrent.layer import RecurrentLayer

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


# Whose weights are drawn by their fan in: not tables, norms, or whatever else has an axis more.
DRAWN = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, RecurrentLayer)
# Of a bias of the output layer, |mean| over RMS: one log prior for all labels has 0.95, N(0, 1) 0.1 to 0.3.
PRIOR = 0.7


def fan_in(module: nn.Module, weight: Tensor) -> int:
    """Numbers that one output is summed over; asrkit's recurrent weights have the directions first."""
    convolution = isinstance(module, nn.modules.conv._ConvNd)
    return math.prod(weight.shape[1:]) if convolution else weight.shape[-1]


def _drawn(module: nn.Module) -> dict[str, Tensor]:
    """A layer's own weights and biases, by name; where they are computed from others (weight norm), what comes out."""
    own = dict(module.named_parameters(recurse=False))
    names = set(own) | set(getattr(module, "parametrizations", ()))
    for name in [name for name in own if name.endswith("_g") and f"{name[:-2]}_v" in own]:  # weight norm of old
        names = names - {name, f"{name[:-2]}_v"} | {name[:-2]}
    found = {name: getattr(module, name, None) for name in sorted(names)}
    return {name: p.detach() for name, p in found.items() if isinstance(p, Tensor) and not p.is_meta}


def check_scales(model: nn.Module, labels: int | None = None) -> list[Finding]:
    """Biases and weights of a model that has not been trained yet.

    labels: V, by which the output layer is known: its bias may be the logarithm of the labels' frequencies.
    """
    found: list[Finding] = []
    for name, module in model.named_modules():
        own = _drawn(module) if isinstance(module, DRAWN) else {}
        weights = {key: p for key, p in own.items() if p.dim() >= 2 and "bias" not in key}
        if not weights:
            continue
        fan = min(fan_in(module, w) for w in weights.values())
        biases = [p for key, p in own.items() if "bias" in key and p.numel() >= FEWEST]
        biases = [p for p in biases if p.numel() != labels or not _is_prior(p)]
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


def _is_prior(bias: Tensor) -> bool:
    return float(bias.double().mean().abs()) > PRIOR * float(bias.double().square().mean().sqrt())


def _matrices(model: nn.Module) -> dict[str, dict[str, list[nn.Parameter]]]:
    """Trained matrices by module and then by layer: torch's recurrent stacks, one module, are told apart by the `_l3`
    in the names of their weights. Without tables, of which most rows have no gradient."""
    found: dict[str, dict[str, list[nn.Parameter]]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            continue
        for key, p in module.named_parameters(recurse=False):
            if p.dim() >= 2 and p.requires_grad and "bias" not in key:
                inner = re.search(r"_l(\d+)", key)
                layer = f"{name}.{inner[1]}" if inner and isinstance(module, nn.RNNBase) else name
                found.setdefault(name, {}).setdefault(layer, []).append(p)
    return found


def _in_order(model: nn.Module, order: Sequence[str]) -> dict[str, dict[str, list[nn.Parameter]]]:
    """Of the modules that were called, or have a gradient all the same (used by the module around them), in the order
    of their calls."""
    place = {name: i for i, name in enumerate(order)}

    def called(name: str) -> int:
        while name and name not in place:
            name = name.rpartition(".")[0]
        return place.get(name, 0)

    used = {
        name: layers
        for name, layers in _matrices(model).items()
        if name in place or any(p.grad is not None for parts in layers.values() for p in parts)
    }
    return {name: used[name] for name in sorted(used, key=called)}


def gradient_sizes(model: nn.Module, order: Sequence[str]) -> dict[str, float]:
    """RMS of the gradient per weight of each layer that has matrices, in the order in which they were called."""
    sizes = {}
    for layers in _in_order(model, order).values():
        for layer, parts in layers.items():
            squares = sum(float(p.grad.double().square().sum()) for p in parts if p.grad is not None)
            sizes[layer] = math.sqrt(squares / sum(p.numel() for p in parts))
    return sizes


def silent_layers(model: nn.Module, order: Sequence[str]) -> list[str]:
    """Modules with matrices that were called and have no gradient at all, in the order of their calls."""
    called = set(order)
    return [
        name
        for name, layers in _in_order(model, order).items()
        if name in called and not any(p.grad is not None and bool(p.grad.any()) for q in layers.values() for p in q)
    ]


def check_gradients(model: nn.Module, order: Sequence[str]) -> list[Finding]:
    """After a backward pass of the loss per label, without dropout. order: paths of modules as they were called."""
    sizes = gradient_sizes(model, order)
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    total = math.sqrt(sum(float(g.double().square().sum()) for g in grads))
    if not math.isfinite(total):
        return _check_overflow(model, sizes)
    found = []
    if total > EXPLODING:
        found.append(finding("exploding_gradients", "warning", f"the norm of the gradient per label is {total:.3g}"))
    names = list(sizes)[:-1]  # the output layer's is of another size
    if len(names) >= MODULES_FOR_ORDER:
        first, largest = names[0], max(names[1:], key=lambda name: sizes[name])
        ratio = sizes[first] / max(sizes[largest], 1e-300)
        if ratio < VANISHING and sizes[largest] > 0:  # nothing at all comes from a last layer of zeros
            words = f"its gradient per weight is {ratio:.1e} of that of {short(largest)}"
            severity = "error" if ratio < VANISHING_ERROR else "warning"
            found.append(finding("vanishing_gradients", severity, words, short(first)))
    return found


def _check_overflow(model: nn.Module, sizes: dict[str, float]) -> list[Finding]:
    """A gradient that is not finite, of a loss that is. Of weights that are finite it has grown too large on its way:
    backwards, so in the last layer that has one; the output layer's is that of what the layers below give."""
    found = [finding("nan", "error", "the gradient of a finite loss is not finite")]
    wrong = [name for name, size in sizes.items() if not math.isfinite(size)]
    below = [name for name in wrong if name != list(sizes)[-1]]
    if wrong and all(bool(p.isfinite().all()) for p in model.parameters()):
        words = "its gradient is too large for a number, of finite weights and a finite loss"
        found.append(finding("exploding_gradients", "error", words, short((below or wrong)[-1])))
    return found
