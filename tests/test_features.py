"""Features against torchaudio's Kaldi functions and NumPy; invariance to padding and to batch mates."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchaudio
from torch import Tensor

from asrkit.errors import DataError, RecipeError
from asrkit.features import CMVN, MFCC, Fbank, FeatureExtractor, SpecAugment, frame_mask

kaldi = torchaudio.compliance.kaldi


def one(extractor: FeatureExtractor, x: Tensor) -> Tensor:
    """Features (T, F) of one waveform (S,)."""
    return extractor(x[None], torch.tensor([len(x)]))[0][0]


def noisy_tone(seconds: float, rate: int, offset: float = 0.0) -> Tensor:
    t = torch.arange(int(seconds * rate)) / rate
    return 0.2 * torch.sin(2 * math.pi * 220 * t) * (1 + t) + 0.05 * torch.randn(len(t)) + offset


def assert_log_close(ours: Tensor, theirs: Tensor) -> None:
    """1e-4 relative in energy, where it is not 70 dB below its frame's peak: there float32 rounds, the oracle too."""
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().mean() < 3e-5
    error = (ours.exp() - theirs.exp()).abs()
    assert bool((error <= 1e-4 * theirs.exp() + 1e-7 * theirs.exp().amax(dim=1, keepdim=True)).all())


@pytest.mark.parametrize("snip", [False, True])
@pytest.mark.parametrize(
    ("size", "rate", "high"),
    [(40, 16000, 0.0), (80, 16000, -400.0), (128, 16000, 7000.0), (40, 8000, -200.0), (80, 22050, 0.0)],
)
def test_fbank_equals_kaldi(size: int, rate: int, high: float, snip: bool) -> None:
    x = noisy_tone(1.234, rate, offset=0.1)
    options = {"num_mel_bins": size, "sample_frequency": rate, "high_freq": high, "snip_edges": snip}
    assert_log_close(one(Fbank(size, rate, high_hz=high, snip_edges=snip), x), kaldi.fbank(x[None], **options))


@pytest.mark.parametrize("window", ["povey", "hanning", "hamming", "blackman", "rectangular"])
@pytest.mark.parametrize("remove_dc", [False, True])
@pytest.mark.parametrize("preemphasis", [0.0, 0.97])
def test_fbank_options_equal_kaldi(window: str, remove_dc: bool, preemphasis: float) -> None:
    x = noisy_tone(0.5, 16000, offset=0.1)
    ours = Fbank(window=window, remove_dc=remove_dc, preemphasis=preemphasis, log=False, high_hz=0.0)
    theirs = kaldi.fbank(
        x[None],
        window_type=window,
        remove_dc_offset=remove_dc,
        preemphasis_coefficient=preemphasis,
        use_log_fbank=False,
        num_mel_bins=80,
        snip_edges=False,
    )
    torch.testing.assert_close(one(ours, x), theirs, rtol=1e-4, atol=1e-6 * float(theirs.max()))


def test_fbank_equals_kaldi_on_real_speech(shared_data) -> None:
    from asrkit.audio import read_audio

    clips = sorted((shared_data / "asterisk_core_es" / "clips").glob("*.wav"))[:5]
    assert clips
    for clip in clips:
        x = torch.from_numpy(read_audio(clip).samples)
        assert_log_close(one(Fbank(), x), kaldi.fbank(x[None], num_mel_bins=80, high_freq=-400.0, snip_edges=False))


@pytest.mark.parametrize(
    ("size", "mels", "lifter", "rate"), [(13, 23, 22.0, 16000), (40, 40, 0.0, 16000), (20, 30, 22.0, 8000)]
)
@pytest.mark.parametrize("snip", [False, True])
def test_mfcc_equals_kaldi(size: int, mels: int, lifter: float, rate: int, snip: bool) -> None:
    x = noisy_tone(1.0, rate)
    ours = one(MFCC(size, rate, mels, lifter, high_hz=0.0, snip_edges=snip), x)
    theirs = kaldi.mfcc(
        x[None], num_ceps=size, num_mel_bins=mels, cepstral_lifter=lifter, sample_frequency=rate, snip_edges=snip
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_deltas_equal_torchaudio() -> None:
    y = one(MFCC(13, deltas=2), noisy_tone(1.0, 16000))
    assert y.shape == (100, 39)
    first = torchaudio.functional.compute_deltas(y[:, :13].T, win_length=5).T
    second = torchaudio.functional.compute_deltas(first.T, win_length=5).T
    torch.testing.assert_close(y[:, 13:26], first, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(y[:, 26:], second, rtol=1e-5, atol=1e-5)


EXTRACTORS = {
    "fbank": lambda: Fbank(),
    "snipped": lambda: Fbank(snip_edges=True, window="hamming"),
    "linear": lambda: Fbank(40, log=False),
    "sparse": lambda: Fbank(40, window_ms=5.0, hop_ms=20.0),
    "mfcc": lambda: MFCC(13, deltas=2),
}


@pytest.fixture(params=list(EXTRACTORS))
def extractor(request: pytest.FixtureRequest) -> FeatureExtractor:
    return EXTRACTORS[request.param]()


def test_frames_depend_on_own_samples_only(extractor: FeatureExtractor) -> None:
    lengths = torch.tensor([0, 1, 79, 80, 100, 201, 400, 4000, 16017, 12345])
    batch = torch.full((len(lengths), 20000), float("nan"))  # whatever is in the padding must not be seen
    for x, length in zip(batch, lengths.tolist(), strict=True):
        x[:length] = noisy_tone(2.0, 16000)[:length]
    features, frames = extractor(batch, lengths)
    assert features.shape == (len(lengths), extractor.num_frames(20000), extractor.size)
    assert frames.dtype == torch.int64
    assert torch.equal(frames, extractor.num_frames(lengths))
    for i, (length, count) in enumerate(zip(lengths.tolist(), frames.tolist(), strict=True)):
        assert not features[i, count:].any()
        alone = one(extractor, batch[i, :length])
        assert alone.shape[0] == count == extractor.num_frames(length)
        torch.testing.assert_close(features[i, :count], alone, rtol=1e-5, atol=1e-4)


def test_num_frames_is_the_real_shape(extractor: FeatureExtractor) -> None:
    for samples in [*range(0, 1000, 37), 79, 80, 81, 399, 400, 401, 559, 560, 32000]:
        y, frames = extractor(torch.randn(2, samples), torch.tensor([samples, samples // 2]))
        assert y.shape[1] == extractor.num_frames(samples) == int(frames[0])
        assert int(frames[1]) == extractor.num_frames(samples // 2)
        assert y.isfinite().all()


@pytest.mark.parametrize(
    ("samples", "centred", "snipped"),
    [(0, 0, 0), (1, 0, 0), (79, 0, 0), (80, 1, 0), (100, 1, 0), (200, 1, 0), (201, 1, 0), (400, 3, 1)],
)
def test_short_clips(samples: int, centred: int, snipped: int) -> None:
    x = torch.randn(samples)
    assert len(one(Fbank(), x)) == centred
    assert len(one(Fbank(snip_edges=True), x)) == snipped


def test_short_clip_is_mirrored_as_often_as_needed() -> None:
    x = torch.randn(90)  # the window of 400 samples reaches past both ends, several times
    places = np.arange(-120, 280) % 180
    frame = x.numpy()[np.where(places < 90, places, 179 - places)]
    expected = one(Fbank(snip_edges=True), torch.from_numpy(frame))
    torch.testing.assert_close(one(Fbank(), x), expected, rtol=1e-5, atol=1e-4)


def test_silence_is_finite_and_at_the_floor(extractor: FeatureExtractor) -> None:
    for level in (0.0, 0.5):
        assert one(extractor, torch.full((8000,), level)).isfinite().all()
    floor = math.log(torch.finfo(torch.float32).eps)
    assert torch.allclose(one(Fbank(), torch.zeros(8000)), torch.tensor(floor))


def test_long_clip_spans_several_blocks() -> None:
    x = noisy_tone(13.0, 16000)
    whole = one(Fbank(snip_edges=True), x)
    part = one(Fbank(snip_edges=True), x[160 * 700 :])
    torch.testing.assert_close(whole[700:], part, rtol=1e-5, atol=1e-3)


def test_constants_stay_out_of_checkpoints_and_in_float32(extractor: FeatureExtractor) -> None:
    x = noisy_tone(0.5, 16000)
    before = one(extractor, x)
    assert not extractor.state_dict()
    assert torch.equal(one(extractor.to(torch.bfloat16), x), before)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(one(extractor, x), before)


def test_dither_is_for_training_and_ignores_padding() -> None:
    fbank, x = Fbank(dither=1e-3), noisy_tone(0.5, 16000)
    assert torch.equal(one(fbank.eval(), x), one(Fbank(), x))
    fbank.train()
    torch.manual_seed(3)
    noisy = one(fbank, x)
    torch.manual_seed(3)
    padded = fbank(torch.nn.functional.pad(x, (0, 999))[None], torch.tensor([len(x)]))[0][0, : len(noisy)]
    assert not torch.allclose(noisy, one(Fbank(), x), atol=1e-3)
    torch.testing.assert_close(noisy, padded, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "lengths", [torch.tensor([0.5, 1.0]), torch.tensor([100, 801]), torch.tensor([-1, 5]), torch.tensor([800])]
)
def test_wrong_lengths_are_refused(lengths: Tensor) -> None:
    with pytest.raises(DataError, match="lengths") as caught:
        Fbank()(torch.zeros(2, 800), lengths)
    assert caught.value.reason == "bad_lengths"


@pytest.mark.parametrize(
    "options", [{"window": "povay"}, {"low_hz": 9000.0}, {"hop_ms": 0.0}, {"size": 0}, {"high_hz": 9000.0}]
)
def test_wrong_options_are_refused(options: dict) -> None:
    with pytest.raises(RecipeError):
        Fbank(**options)
    with pytest.raises(RecipeError):
        MFCC(24, num_mels=23)


# --- CMVN


def features_with_lengths() -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([50, 17, 1, 0])
    x = torch.randn(4, 60, 5) * torch.tensor([1.0, 3.0, 0.1, 10.0, 0.0]) + torch.tensor([0.0, 5.0, -2.0, 100.0, 7.0])
    return x.masked_fill(~frame_mask(lengths, 60)[:, :, None], 1e6), lengths


@pytest.mark.parametrize("std", [False, True])
def test_utterance_cmvn_equals_numpy(std: bool) -> None:
    x, lengths = features_with_lengths()
    y = CMVN(std=std)(x, lengths)
    for i, n in enumerate(lengths.tolist()):
        assert not y[i, n:].any()
        real = x[i, :n].numpy().astype(np.float64)
        if n:
            expected = real - real.mean(0)
            if std:
                varies = real.std(0) > 1e-5
                expected = np.where(varies, expected / np.where(varies, real.std(0), 1), 0)
            np.testing.assert_allclose(y[i, :n].numpy(), expected, rtol=1e-4, atol=1e-4)


def test_global_cmvn_equals_numpy_and_is_saved() -> None:
    x, lengths = features_with_lengths()
    cmvn = CMVN("global", size=5)
    with pytest.raises(RecipeError) as caught:
        cmvn(x, lengths)
    assert caught.value.reason == "not_fitted"
    cmvn.fit([(x[:1], lengths[:1]), (x[1:], lengths[1:])])
    real = np.concatenate([x[i, :n].numpy() for i, n in enumerate(lengths.tolist())]).astype(np.float64)
    np.testing.assert_allclose(cmvn.mean.numpy(), real.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(cmvn.deviation.numpy(), real.std(0), rtol=1e-4, atol=1e-5)
    assert int(cmvn.frames) == len(real)
    again = CMVN("global", size=5)
    again.load_state_dict(cmvn.state_dict())
    y = again(x, lengths)
    assert torch.equal(y, cmvn(x, lengths))
    assert not y[frame_mask(lengths, 60).logical_not()].any()
    expected = (x[0, :50].numpy() - real.mean(0))[:, :4] / real.std(0)[:4]
    np.testing.assert_allclose(y[0, :50, :4].numpy(), expected, rtol=1e-4, atol=1e-4)
    assert not y[0, :50, 4].any()  # the constant


def test_a_mel_band_without_a_frequency_becomes_zero_at_every_length() -> None:
    """Of 128 mel bands at 16 kHz the second holds no bin: a constant whose float32 mean is often one rounding off."""
    fbank = Fbank(128)
    band = fbank(torch.randn(1, 16000), torch.tensor([16000]))[0][0, :, 1]
    assert (band == band[0]).all()
    lengths = torch.arange(1, 400)
    x = torch.randn(len(lengths), 400, 3)
    x[:, :, 1] = band[0]
    assert not CMVN()(x, lengths)[:, :, 1].any()
    fitted = CMVN("global", size=3).fit([(x.half().float(), lengths)])  # as features are stored
    assert not fitted(x, lengths)[:, :, 1].any()
    mean, deviation = x[0, :, :].mean(0), x[0].std(0, correction=0)
    assert not CMVN()(x, lengths, (mean, deviation.index_fill(0, torch.tensor([1]), 2e-7)))[:, :, 1].any()


def test_cmvn_refuses_what_it_cannot_use() -> None:
    x, lengths = features_with_lengths()
    assert CMVN("none")(x, lengths) is x
    for wrong in (lambda: CMVN("utterence"), lambda: CMVN("global"), lambda: CMVN().fit([])):
        with pytest.raises(RecipeError):
            wrong()
    for batches in ([], [(torch.full((1, 3, 5), float("nan")), torch.tensor([2]))]):
        with pytest.raises(DataError):
            CMVN("global", size=5).fit(batches)


# --- SpecAugment


def masks(lengths: Tensor, frames: int = 200, seed: int = 1, **options: float) -> Tensor:
    """True where SpecAugment has put its fill, (B, T, F)."""
    x = torch.ones(len(lengths), frames, 80)
    y = SpecAugment(**options)(x, lengths, torch.Generator().manual_seed(seed))  # type: ignore[arg-type]
    assert bool((x == 1).all()), "the input was changed"
    return y == 0


def test_specaugment_widths_and_places() -> None:
    lengths = torch.randint(0, 200, (400,))
    in_time = masks(lengths, freq_masks=0, time_masks=1, time_width=30)
    in_freq = masks(lengths, freq_masks=1, time_masks=0, freq_width=10)
    for mask, axis, widest in ((in_time, 2, 30), (in_freq, 1, 10)):
        seen = set()
        for i, n in enumerate(lengths.tolist()):
            assert not mask[i, n:].any()
            if n == 0:
                continue
            real = mask[i, :n]
            line = real.any(dim=axis - 1)
            assert torch.equal(real, line[:, None].expand_as(real) if axis == 2 else line.expand_as(real))
            places = line.nonzero().flatten().tolist()
            assert places == list(range(places[0], places[0] + len(places))) if places else True
            assert len(places) <= (min(widest, int(0.2 * n)) if axis == 2 else widest)
            seen.add(len(places))
        assert {0, widest} <= seen, "every width from 0 to the widest is drawn"


def test_specaugment_reaches_both_ends() -> None:
    lengths = torch.full((2000,), 20)
    mask = masks(lengths, frames=20, freq_masks=0, time_masks=1, time_width=4)[:, :, 0]
    assert mask[:, 0].any()
    assert mask[:, -1].any()
    # Mean width is 2 of 20 frames; the standard error over 2,000 utterances is 0.002.
    assert abs(float(mask.float().mean()) - 0.1) < 0.01


def test_specaugment_ignores_padding_and_repeats_with_its_seed() -> None:
    lengths = torch.tensor([150, 90, 10, 0])
    short, long = masks(lengths, 160), masks(lengths, 500)
    assert torch.equal(short, long[:, :160])
    assert torch.equal(short, masks(lengths, 160))
    assert not torch.equal(short, masks(lengths, 160, seed=2))
    torch.manual_seed(5)
    x = torch.ones(4, 160, 80)
    first = SpecAugment()(x, lengths)
    torch.manual_seed(5)
    assert torch.equal(first, SpecAugment()(x, lengths))


def test_specaugment_is_the_identity_in_evaluation() -> None:
    x = torch.randn(2, 30, 80)
    state = torch.get_rng_state()
    assert SpecAugment().eval()(x, torch.tensor([30, 20])) is x
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(RecipeError):
        SpecAugment(time_share=1.5)
