"""The formulas behind the features: Kaldi's windows, mel filters, cosine transform, lifter; deltas; masks.

Constants are computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from asrkit.errors import DataError
from asrkit.masking import frame_mask

WINDOWS: dict[str, Callable[[Tensor], Tensor]] = {  # of the phase (N,), 0 at the first sample, 2 pi at the last
    "povey": lambda phase: (0.5 - 0.5 * phase.cos()) ** 0.85,
    "hanning": lambda phase: 0.5 - 0.5 * phase.cos(),
    "hamming": lambda phase: 0.54 - 0.46 * phase.cos(),
    "blackman": lambda phase: 0.42 - 0.5 * phase.cos() + 0.08 * (2 * phase).cos(),
    "rectangular": torch.ones_like,
}


def check_lengths(x: Tensor, lengths: Tensor) -> None:
    """Raise `DataError` (`bad_lengths`) unless x is (B, N, ...) and lengths (B,) are integers from 0 to N."""
    if torch.jit.is_tracing():
        return  # the answer would become a constant of the trace
    problem = None
    if lengths.is_floating_point() or lengths.shape != x.shape[:1]:
        problem = f"lengths {tuple(lengths.shape)} of {lengths.dtype} for a batch of {tuple(x.shape)}"
    elif (
        lengths.device.type == "cpu"
        and len(lengths)
        and not 0 <= int(lengths.min()) <= int(lengths.max()) <= x.shape[1]
    ):
        problem = f"lengths from {int(lengths.min())} to {int(lengths.max())} for a batch of {tuple(x.shape)}"
    if problem:  # values on an accelerator are not looked at: that would wait for it
        raise DataError(problem, possible="integers (B,) from 0 to the padded length", reason="bad_lengths")


def mel_filters(size: int, fft_size: int, sample_rate: int, low_hz: float, high_hz: float) -> Tensor:
    """Kaldi's triangular filters, straight on the mel scale 1127 ln(1 + f / 700): (fft_size // 2 + 1, F) float64.

    The bin at half the sample rate belongs to no filter.
    """

    def mel(hz: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(hz / 700.0)

    low, high = mel(torch.tensor([low_hz, high_hz], dtype=torch.float64)).tolist()
    step = (high - low) / (size + 1)
    left = low + step * torch.arange(size, dtype=torch.float64)
    bins = mel(torch.arange(fft_size // 2 + 1, dtype=torch.float64) * (sample_rate / fft_size))[:, None]
    filters = torch.minimum((bins - left) / step, (left + 2 * step - bins) / step).clamp(min=0)
    filters[-1] = 0
    return filters


def cepstral_matrix(size: int, num_mels: int, lifter: float) -> Tensor:
    """Orthonormal DCT-II with Kaldi's lifter 1 + lifter/2 sin(pi i / lifter), 0 for none: (num_mels, size) float64."""
    order = torch.arange(size, dtype=torch.float64)
    middle = torch.arange(num_mels, dtype=torch.float64)[:, None] + 0.5
    matrix = torch.cos(math.pi / num_mels * middle * order) * math.sqrt(2 / num_mels)
    matrix[:, 0] = math.sqrt(1 / num_mels)
    return matrix * (1 + lifter / 2 * torch.sin(math.pi * order / lifter)) if lifter else matrix


def deltas(x: Tensor, lengths: Tensor, reach: int = 2) -> Tensor:
    """Slope of each feature over time: d_t = sum_n n (x_{t+n} - x_{t-n}) / (2 sum_n n^2), n = 1..reach.

    (B, T, F), lengths (B,) -> (B, T, F). Beyond its own first and last real frame an utterance stands still.
    """
    frames = torch.arange(x.shape[1], device=x.device)
    last = (lengths - 1).clamp(min=0)[:, None]

    def at(places: Tensor) -> Tensor:
        index = torch.minimum(places.clamp(min=0).expand(len(x), -1), last)
        return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))

    slope = torch.zeros_like(x)
    for n in range(1, reach + 1):
        slope += n * (at(frames + n) - at(frames - n))
    slope /= 2 * sum(n * n for n in range(1, reach + 1))
    return slope.masked_fill(~frame_mask(lengths, x.shape[1])[:, :, None], 0)
