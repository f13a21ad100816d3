"""Torch's generators: seeded for every batch, and put back after something that draws from them or seeds them."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def kept_generators() -> AbstractContextManager[None]:
    """Inside, draw and seed at will; after it the generators go on as if nothing had been.

    Those of GPUs only where they are in use: torch's own default wakes every GPU of the machine for that, which takes
    seconds and memory on each, and prints a warning where there are several.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    return torch.random.fork_rng(devices=list(devices))


def seed_generators(seed: int) -> None:
    """Those of the CPU and of all GPUs that are in use draw the same from here on, as after torch.manual_seed.

    That one also remembers the seed for devices that were never woken, with a text of the whole call stack for each,
    which takes the longer the deeper it is called; a training loop seeds for every batch.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
