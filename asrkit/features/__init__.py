"""Waveforms to features: the `FeatureExtractor` contract, Kaldi's log-mel (`Fbank`) and cepstra (`MFCC`), `CMVN`.

Every extractor takes waveforms (B, S) with integer lengths (B,) in samples and returns features (B, T, F) with
lengths (B,) in frames. The real frames of an utterance depend on its own samples only, never on padding or on
batch mates, and frames beyond its length are 0.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from asrkit.errors import RecipeError, nearest
from asrkit.features.augment import SpecAugment
from asrkit.features.cmvn import CMVN
from asrkit.features.formulas import WINDOWS, cepstral_matrix, check_lengths, deltas, mel_filters
from asrkit.masking import frame_mask

__all__ = ["CMVN", "MFCC", "Fbank", "FeatureExtractor", "SpecAugment", "frame_mask"]

Count = TypeVar("Count", int, Tensor)

ENERGY_FLOOR = torch.finfo(torch.float32).eps  # Kaldi's: silence has log-mel energies of -15.94
MEL_GROUPS = 4
CPU_ROWS, GPU_ROWS = 512, 1 << 16  # frames worked on at once: a CPU wants them in its cache


class FeatureExtractor(nn.Module):
    """The contract of `asrkit.features` plugins.

    `size` is F, `sample_rate` what the waveforms must have, `frame_seconds` the time from a frame to the next.
    """

    asrkit_api = 1
    size: int
    sample_rate: int
    frame_seconds: float

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (B, S) float32 and lengths (B,) int64 in samples -> features (B, T, F), lengths (B,) in frames.

        T is `num_frames(S)`; frames beyond an utterance's own length are 0.
        """
        raise NotImplementedError

    def num_frames(self, samples: Count) -> Count:
        """Exact number of frames for a number of samples, or for a tensor of them."""
        raise NotImplementedError


class Fbank(FeatureExtractor):
    """Log-mel energies as Kaldi computes them (`compute-fbank-feats`), waveform full scale 1.

    `size` triangular filters, equally spaced on the mel scale 1127 ln(1 + f / 700) from `low_hz` to `high_hz`
    (zero or negative: counted down from half the sample rate), on the power spectrum of frames of `window_ms`
    every `hop_ms`, padded to a power of two. Each frame loses its mean (`remove_dc`) and is pre-emphasized.

    `snip_edges=True` keeps the frames that fit, 1 + (S - window) // hop, so under one window there are none.
    `snip_edges=False` centres frame t on sample (t + 1/2) hop and mirrors the waveform at its own two ends, as
    often as it takes: (S + hop // 2) // hop frames, none for under half a hop. A filter too narrow to hold a
    frequency bin (many filters, low rate) stays at the floor.

    `dither` is the deviation of normal noise added to the samples in training mode, drawn from torch's CPU
    generator. No gradient flows to the waveform. Always computes in float32, also under autocast.
    """

    window: Tensor
    offset: Tensor
    filters: Tensor

    def __init__(
        self,
        size: int = 80,
        sample_rate: int = 16000,
        window_ms: float = 25.0,
        hop_ms: float = 10.0,
        low_hz: float = 20.0,
        high_hz: float = -400.0,
        preemphasis: float = 0.97,
        window: str = "povey",
        snip_edges: bool = False,
        dither: float = 0.0,
        remove_dc: bool = True,
        log: bool = True,
    ) -> None:
        super().__init__()
        self.size, self.sample_rate = size, sample_rate
        # A tenth of a microsecond keeps 25.0 ms at 16 kHz from becoming 399 samples by rounding.
        self.window_size = int(sample_rate * window_ms / 1000 + 1e-7)
        self.hop = int(sample_rate * hop_ms / 1000 + 1e-7)
        self.frame_seconds = self.hop / sample_rate
        self.low_hz, self.high_hz = low_hz, high_hz if high_hz > 0 else sample_rate / 2 + high_hz
        self.preemphasis, self.dither = preemphasis, dither
        self.snip_edges, self.remove_dc, self.log = snip_edges, remove_dc, log
        self._check(window)
        self.fft_size = 1 << (self.window_size - 1).bit_length()
        self.window_name = window
        self._build(None)

    def _check(self, window: str) -> None:
        if window not in WINDOWS:
            raise RecipeError(f"unknown window {window!r}", possible=nearest(window, WINDOWS), reason="bad_features")
        if not 0 <= self.low_hz < self.high_hz <= self.sample_rate / 2:
            raise RecipeError(
                f"mel filters from {self.low_hz:g} to {self.high_hz:g} Hz at {self.sample_rate} samples per second",
                possible=f"0 <= low_hz < high_hz <= {self.sample_rate / 2:g}",
                reason="bad_features",
            )
        if self.window_size < 2 or self.hop < 1 or self.size < 1:
            raise RecipeError(
                f"{self.size} filters on windows of {self.window_size} samples every {self.hop}",
                possible="at least 1 filter, 2 samples per window and 1 per hop",
                reason="bad_features",
            )

    def _build(self, device: torch.device | None) -> None:
        """Constants, in float64 and then rounded once; what can be recomputed does not belong in a checkpoint."""
        phase = torch.arange(self.window_size, dtype=torch.float64) * (2 * math.pi / (self.window_size - 1))
        window = WINDOWS[self.window_name](phase)
        # A frame's mean m is still there after pre-emphasis, as (1 - preemphasis) m.
        offset = window * ((self.preemphasis - 1) / self.window_size)
        filters = mel_filters(self.size, self.fft_size, self.sample_rate, self.low_hz, self.high_hz)
        # A filter spans few bins, so filters go in groups, each with the bins that it needs. Every bin comes as two
        # squares, of its real and its imaginary part, and what they have in common is added up in the product.
        self.groups: list[tuple[slice, slice]] = []
        for group in torch.arange(self.size).chunk(MEL_GROUPS):
            columns = slice(int(group[0]), int(group[-1]) + 1)
            used = filters[:, columns].any(dim=1).nonzero().flatten().tolist() or [0]
            self.groups.append((columns, slice(2 * used[0], 2 * used[-1] + 2)))
        self.register_buffer("window", window.float().to(device), persistent=False)
        self.register_buffer("offset", offset.float().to(device), persistent=False)
        self.register_buffer("filters", filters.repeat_interleave(2, 0).float().to(device), persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Fbank:
        """`model.half()` must not round the constants: they follow the device only."""
        super()._apply(fn, recurse)
        if self.window.dtype != torch.float32:
            self._build(self.window.device)
        return self

    def num_frames(self, samples: Count) -> Count:
        """Exact number of frames for a number of samples, or for a tensor of them."""
        if not self.snip_edges:
            return (samples + self.hop // 2) // self.hop
        frames = 1 + (samples - self.window_size) // self.hop
        return frames.clamp(min=0) if isinstance(frames, Tensor) else max(0, frames)

    @torch.no_grad()
    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (B, S), lengths (B,) in samples -> log-mel (B, T, F), lengths (B,) in frames.

        Raises `DataError` (`bad_lengths`) for lengths that are not integers or exceed S.
        """
        check_lengths(waveforms, lengths)
        lengths = lengths.to(waveforms.device)
        with torch.autocast(waveforms.device.type, enabled=False):
            signal = self._extend(waveforms.float(), lengths)
            mel = self._mel(signal, self.num_frames(waveforms.shape[1]))
        frames = self.num_frames(lengths)
        if lengths.device.type != "cpu" or bool((lengths < waveforms.shape[1]).any()):
            mel.masked_fill_(~frame_mask(frames, mel.shape[1])[:, :, None], 0)
        return mel, frames

    def _extend(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Dither, and mirror each utterance at its own ends: (B, S) -> (B, before + S + after)."""
        if self.dither and self.training:  # drawn per utterance, so that padding does not shift the noise
            waveforms = waveforms.clone()
            for waveform, length in zip(waveforms, lengths.tolist(), strict=True):
                waveform[:length] += self.dither * torch.randn(length).to(waveform.device)
        if self.snip_edges:
            return waveforms.contiguous()
        before = max(0, self.window_size // 2 - self.hop // 2)
        after = self.window_size - self.window_size // 2
        batch, samples = waveforms.shape
        signal = waveforms.new_zeros(batch, before + samples + after)
        if samples == 0:
            return signal
        signal[:, before : before + samples] = waveforms
        if lengths.device.type == "cpu" and samples >= after and bool((lengths == samples).all()):
            signal[:, :before] = waveforms[:, :before].flip(1)  # the common case of one clip, in fewer steps
            signal[:, before + samples :] = waveforms[:, samples - after :].flip(1)
            return signal
        ends = lengths[:, None]
        left = torch.arange(-before, 0, device=lengths.device).expand(batch, -1)
        right = ends + torch.arange(after, device=lengths.device)
        places = torch.cat([left, right], dim=1)
        period = (2 * ends).clamp(min=1)
        mirrored = places.remainder(period)
        mirrored = torch.minimum(mirrored, period - 1 - mirrored)
        return signal.scatter_(1, places + before, waveforms.gather(1, mirrored))

    def _mel(self, signal: Tensor, frames: int) -> Tensor:
        """Mel energies (B, T, F) of the frames of `signal`.

        Pre-emphasis and the removal of the mean are linear: the first is done once on the waveform, not per frame,
        the second is one rank-one update. Frames go through in blocks that stay in the cache.
        """
        batch, size, fft_size = len(signal), self.window_size, self.fft_size
        mel = signal.new_empty(batch, frames, self.size)
        if mel.numel() == 0:
            return mel
        start = 0 if self.snip_edges else max(0, self.hop // 2 - size // 2)
        emphasized = torch.empty_like(signal)
        torch.sub(signal[:, 1:], signal[:, :-1], alpha=self.preemphasis, out=emphasized[:, 1:])
        emphasized[:, 0] = 0  # the first sample of a frame has no predecessor in it, see below
        plain = signal[:, start:].unfold(1, size, self.hop)
        moving = emphasized[:, start:].unfold(1, size, self.hop)
        step = max(1, (CPU_ROWS if signal.device.type == "cpu" else GPU_ROWS) // batch)
        rows = min(step, frames) * batch
        padded = signal.new_zeros(rows, fft_size)
        spectrum = torch.empty(rows, fft_size // 2 + 1, dtype=torch.complex64, device=signal.device)
        squares = torch.view_as_real(spectrum).view(rows, -1)
        energies = signal.new_empty(rows, self.size)
        window, offset = self.window, self.offset
        groups = [(energies[:, columns], bins, self.filters[bins, columns]) for columns, bins in self.groups]
        for t in range(0, frames, step):
            width = min(step, frames - t)
            n = width * batch
            now = slice(t, t + width)
            block = padded[:n].view(batch, width, fft_size)[:, :, :size]
            torch.mul(moving[:, now], window, out=block)
            if self.window_name not in ("povey", "hanning"):  # the others do not begin with a zero
                block[:, :, 0] = plain[:, now, 0] * (window[0] * (1 - self.preemphasis))
            if self.remove_dc:
                padded[:n, :size].addr_(plain[:, now].sum(-1).view(-1), offset)
            torch.fft.rfft(padded[:n], out=spectrum[:n])
            squares[:n].square_()
            for out, bins, filters in groups:
                torch.mm(squares[:n, bins], filters, out=out[:n])
            done = energies[:n].clamp_(min=ENERGY_FLOOR).log_() if self.log else energies[:n]
            mel[:, now] = done.view(batch, width, self.size)
        return mel


class MFCC(FeatureExtractor):
    """Mel-frequency cepstral coefficients as Kaldi computes them (`compute-mfcc-feats`, without its energy option).

    `size` coefficients (C0 first) of `num_mels` log-mel energies, orthonormal DCT-II, liftered by
    1 + L/2 sin(pi i / L) with L = `cepstral_lifter` (0: not). `deltas` appends that many orders of slopes, each
    d_t = sum_n n (c_{t+n} - c_{t-n}) / (2 sum_n n^2), n = 1, 2, of the order before; past its own first and last
    frame an utterance is continued with that frame. F is `size` (1 + `deltas`). All other options are `Fbank`'s.
    """

    matrix: Tensor

    def __init__(
        self,
        size: int = 13,
        sample_rate: int = 16000,
        num_mels: int = 23,
        cepstral_lifter: float = 22.0,
        deltas: int = 0,
        **fbank: Any,
    ) -> None:
        super().__init__()
        if not 1 <= size <= num_mels or deltas not in (0, 1, 2) or fbank.get("log", True) is not True:
            raise RecipeError(
                f"MFCC of {size} coefficients from {num_mels} log-mel energies, with {deltas} deltas",
                possible="1 <= size <= num_mels, deltas 0, 1 or 2, log always",
                reason="bad_features",
            )
        self.mel = Fbank(num_mels, sample_rate, **fbank)
        self.coefficients, self.cepstral_lifter, self.deltas = size, cepstral_lifter, deltas
        self.size, self.sample_rate, self.frame_seconds = size * (1 + deltas), sample_rate, self.mel.frame_seconds
        self._build(None)

    def _build(self, device: torch.device | None) -> None:
        matrix = cepstral_matrix(self.coefficients, self.mel.size, self.cepstral_lifter)
        self.register_buffer("matrix", matrix.float().to(device), persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> MFCC:
        """`model.half()` must not round the constants: they follow the device only."""
        super()._apply(fn, recurse)
        if self.matrix.dtype != torch.float32:
            self._build(self.matrix.device)
        return self

    def num_frames(self, samples: Count) -> Count:
        """Exact number of frames for a number of samples, or for a tensor of them."""
        return self.mel.num_frames(samples)

    @torch.no_grad()
    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (B, S), lengths (B,) in samples -> cepstra (B, T, F), lengths (B,) in frames; errors as `Fbank`."""
        mel, frames = self.mel(waveforms, lengths)
        with torch.autocast(mel.device.type, enabled=False):
            orders = [mel @ self.matrix]  # padding is 0 in mel, so it is 0 in every order
            for _ in range(self.deltas):
                orders.append(deltas(orders[-1], frames))
        return torch.cat(orders, dim=-1), frames
