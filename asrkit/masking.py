"""Integer lengths and the masks that follow from them: the one place that says which frames are real."""

from __future__ import annotations

import torch
from torch import Tensor


def frame_mask(lengths: Tensor, frames: int) -> Tensor:
    """Which frames are real: lengths (B,) integers -> (B, T) bool with T = `frames`."""
    return torch.arange(frames, device=lengths.device) < lengths.unsqueeze(1)


def zero_padding(x: Tensor, lengths: Tensor) -> Tensor:
    """x (B, T, C) with every frame beyond its utterance's length set to 0; NaN there leaves no trace."""
    return x.masked_fill(~frame_mask(lengths, x.shape[1]).unsqueeze(-1), 0.0)
