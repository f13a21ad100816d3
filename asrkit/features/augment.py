"""SpecAugment: features with blocks of time and frequency taken out, for training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from asrkit.errors import RecipeError
from asrkit.masking import frame_mask


class SpecAugment(nn.Module):
    """Blocks of frequencies and of time set to `fill`, in training mode only (Park et al. 2019, section 2).

    Per utterance and mask: a width from 0 to `freq_width` (at most F), then a start that keeps it inside the F
    features; likewise in time, within the utterance's own length T_b, with widths from 0 to
    min(`time_width`, floor(`time_share` T_b)). Masks may overlap; so at most `time_masks` * `time_share` of an
    utterance is lost. All bounds are inclusive. With `fill` 0 it belongs after `CMVN`, where 0 is the mean.

    Each utterance takes 2 (`freq_masks` + `time_masks`) random numbers, whatever its length and padding, from
    `generator` or else from torch's CPU generator: same seed and place in the batch, same masks on any device.
    """

    def __init__(
        self,
        freq_masks: int = 2,
        freq_width: int = 27,
        time_masks: int = 2,
        time_width: int = 100,
        time_share: float = 0.2,
        fill: float = 0.0,
    ) -> None:
        super().__init__()
        if min(freq_masks, freq_width, time_masks, time_width) < 0 or not 0 <= time_share <= 1:
            raise RecipeError(
                f"SpecAugment with {freq_masks} x {freq_width} and {time_masks} x {time_width}, share {time_share}",
                possible="counts and widths from 0, time_share from 0 to 1",
                reason="bad_augment",
            )
        self.freq_masks, self.freq_width = freq_masks, freq_width
        self.time_masks, self.time_width, self.time_share = time_masks, time_width, time_share
        self.fill = fill

    def forward(self, x: Tensor, lengths: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """x (B, T, F), lengths (B,) in frames -> a masked copy (B, T, F); x itself in evaluation mode."""
        if not self.training:
            return x
        batch, frames, size = x.shape
        lengths = lengths.to(x.device)
        device = generator.device if generator is not None else torch.device("cpu")
        masks = self.freq_masks + self.time_masks
        draws = torch.rand(batch, masks, 2, generator=generator, device=device, dtype=torch.float64).to(x.device)
        sizes = torch.full_like(lengths, size)
        in_freq = _blocks(draws[:, : self.freq_masks], sizes, sizes.clamp(max=self.freq_width), size)
        widest = (lengths * self.time_share).long().clamp(max=self.time_width)
        in_time = _blocks(draws[:, self.freq_masks :], lengths, widest, frames)
        masked = (in_time[:, :, None] | in_freq[:, None, :]) & frame_mask(lengths, frames)[:, :, None]
        return x.masked_fill(masked, self.fill)


def _blocks(draws: Tensor, extents: Tensor, widest: Tensor, size: int) -> Tensor:
    """Whether each place lies in a block: draws (B, M, 2) in [0, 1), extents and widest (B,) -> (B, size) bool."""
    widths = (draws[:, :, 0] * (widest[:, None] + 1)).long()
    starts = (draws[:, :, 1] * (extents[:, None] - widths + 1)).long()
    places = torch.arange(size, device=draws.device)
    return ((places >= starts[:, :, None]) & (places < (starts + widths)[:, :, None])).any(dim=1)
