"""Several training processes (torchrun): what they must agree on."""

from __future__ import annotations

import torch
from torch import distributed


def several() -> bool:
    """Whether this process is one of several."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def largest(number: int, device: torch.device, training: bool = True) -> int:
    """The largest of the processes' numbers; the number itself outside training, where each works alone."""
    if not training or not several():
        return number
    value = torch.tensor(number, device=device)
    distributed.all_reduce(value, distributed.ReduceOp.MAX)
    return int(value)
