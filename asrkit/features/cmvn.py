"""Cepstral mean and variance normalization of features, over real frames only."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from asrkit.errors import DataError, RecipeError, nearest
from asrkit.features.formulas import check_lengths
from asrkit.masking import frame_mask

MODES = ("utterance", "global", "none")


class CMVN(nn.Module):
    """Features (B, T, F) minus their mean and, with `std`, divided by their standard deviation.

    `mode` "utterance": each utterance by its own real frames. "global": by the statistics that `fit` has
    gathered, which are saved with the model; needs `size` = F. "none": the identity. The deviation is the
    population's (divided by the number of frames). A feature that deviates by no more than `floor` is a constant, such
    as a mel band that no frequency falls into, and becomes 0: what is left of it is the rounding of its mean, and
    would not be the same for stored and for fresh features. Padding is 0 afterwards (in every mode but "none", which
    leaves x alone).
    """

    mean: Tensor
    deviation: Tensor
    frames: Tensor

    def __init__(self, mode: str = "utterance", size: int | None = None, std: bool = True, floor: float = 1e-5) -> None:
        super().__init__()
        if mode not in MODES:
            raise RecipeError(f"unknown CMVN mode {mode!r}", possible=nearest(mode, MODES), reason="bad_features")
        if mode == "global" and size is None:
            raise RecipeError(
                "global CMVN without a size", fix="give size, the number of features", reason="bad_features"
            )
        self.mode, self.std, self.floor = mode, std, floor
        if mode == "global" and size is not None:
            self.register_buffer("mean", torch.zeros(size))
            self.register_buffer("deviation", torch.ones(size))
            self.register_buffer("frames", torch.zeros((), dtype=torch.int64))  # 0: not fitted yet

    @torch.no_grad()
    def fit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> CMVN:
        """Gather global statistics from (features (B, T, F), lengths (B,)) in float64, over real frames.

        Raises `RecipeError` in another mode, `DataError` when the batches hold no frame or a non-finite one.
        """
        if self.mode != "global":
            raise RecipeError(f"CMVN mode {self.mode!r} has nothing to fit", possible="global", reason="bad_features")
        count = 0
        total = torch.zeros(len(self.mean), dtype=torch.float64)
        squares = torch.zeros_like(total)
        for x, lengths in batches:
            check_lengths(x, lengths)
            real = x[frame_mask(lengths.to(x.device), x.shape[1])].to("cpu", torch.float64)
            count += len(real)
            total += real.sum(0)
            squares += real.square().sum(0)
        if count == 0 or not bool((total + squares).isfinite().all()):
            what = "no frame" if count == 0 else "a frame that is not finite"
            raise DataError(
                f"CMVN statistics over {what}", fix="check the audio of the corpus", reason="bad_statistics"
            )
        mean = total / count
        self.mean.copy_(mean)
        self.deviation.copy_((squares / count - mean.square()).clamp(min=0).sqrt())
        self.frames.fill_(count)
        return self

    def forward(self, x: Tensor, lengths: Tensor, statistics: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """x (B, T, F), lengths (B,) in frames -> (B, T, F). Raises `RecipeError` if global and never fitted.

        statistics: mean (F,) and deviation (F,) of the whole utterances of which x are windows, for the mode
        "utterance".
        """
        if self.mode == "none":
            return x
        check_lengths(x, lengths)
        padding = ~frame_mask(lengths.to(x.device), x.shape[1])[:, :, None]
        if self.mode == "global":
            centred, deviation = x - self._fitted_mean(), self.deviation
        elif statistics is not None:
            centred, deviation = x - statistics[0], statistics[1]
        else:
            x = (x - x[:, :1]).masked_fill(padding, 0)  # the mean of a constant is exact then
            count = lengths.to(x.device).clamp(min=1)[:, None, None]
            centred = (x - x.sum(dim=1, keepdim=True) / count).masked_fill(padding, 0)
            deviation = (centred.square().sum(dim=1, keepdim=True) / count).sqrt() if self.std else x
        if self.std:
            centred = (centred / deviation.clamp(min=self.floor)).masked_fill(deviation <= self.floor, 0)
        return centred.masked_fill(padding, 0)

    def _fitted_mean(self) -> Tensor:
        if not self._fitted:
            self._fitted = bool(self.frames > 0)  # asked once: it would wait for an accelerator every time
        if not self._fitted:
            raise RecipeError("global CMVN has no statistics", fix="call fit, or load a model", reason="not_fitted")
        return self.mean

    _fitted = False
