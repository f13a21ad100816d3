"""How much audio a model can take at once: what one second of it costs, measured, against what is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from asrkit.model import CTCModel

PROBE = 4.0  # seconds of noise sent through the model
CPU_BYTES = 384 << 20  # for what the layers of one batch hold at once
GPU_SHARE = 0.25  # of the memory that is free
LONGEST = {"cpu": 240.0, "cuda": 3600.0}  # seconds in a batch; beyond it a batch gains nothing
FEW, PADDING = 4, 0.2  # inputs that share a batch whatever their lengths; share of padding otherwise
COPIES = 6.0  # of input and output: what a layer needs in between (measured: 5.7 with five GRUs of 512)


def bytes_per_second(model: CTCModel) -> float:
    """Bytes that the hungriest layer holds for one second of audio: its input, its output, and room to work."""
    largest = 0

    def look(_: nn.Module, given: tuple[Any, ...], returned: Any) -> None:
        nonlocal largest
        largest = max(largest, _size(given) + _size(returned))

    device = next(model.parameters()).device
    samples = int(PROBE * model.features.sample_rate)
    hooks = [module.register_forward_hook(look) for module in model.modules()]
    try:
        with torch.inference_mode():
            waveform = torch.zeros(1, samples, device=device)
            model(waveform, torch.tensor([samples], device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return COPIES * largest / PROBE


def _size(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(_size, value)) if isinstance(value, tuple | list) else 0


def batch_seconds(model: CTCModel) -> float:
    """Seconds of audio, padding included, that go into one forward pass."""
    device = next(model.parameters()).device
    room = CPU_BYTES if device.type != "cuda" else int(GPU_SHARE * torch.cuda.mem_get_info(device)[0])
    longest = LONGEST.get(device.type, LONGEST["cpu"])
    return min(longest, max(1.0, room / max(bytes_per_second(model), 1.0)))


def batches(seconds: Sequence[float], limit: float) -> list[list[int]]:
    """Places of inputs in batches of similar lengths, none with more than `limit` seconds, padding included, unless it
    holds one input. From four inputs on, a batch takes none that would make more than a fifth of it padding."""
    found: list[list[int]] = []
    real = 0.0
    for i in sorted(range(len(seconds)), key=lambda i: seconds[i]):
        size = len(found[-1]) + 1 if found else 0
        padded = seconds[i] * size
        if found and padded <= limit and (size <= FEW or (1 - PADDING) * padded <= real + seconds[i]):
            found[-1].append(i)
            real += seconds[i]
        else:
            found.append([i])
            real = seconds[i]
    return found
