"""m4a, mp4, webm and the like, against what went into them and against FFmpeg's own whole-file decoding."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from test_audio import reason

from asrkit import registry
from asrkit.audio import read_audio
from asrkit.audio.av_reader import AvReader
from asrkit.audio.stream import audio_blocks
from asrkit.errors import AudioError

av = pytest.importorskip("av")

KINDS = [  # container, codec, rate, how far off the length may be
    ("mp4", "aac", 44100), ("ipod", "aac", 48000), ("webm", "libopus", 48000), ("matroska", "flac", 16000),
    ("adts", "aac", 16000), ("asf", "wmav2", 44100),
]  # fmt: skip


def encode(samples: np.ndarray, form: str, codec: str, rate: int) -> bytes:
    """Samples (S, channels) in a container of FFmpeg's."""
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout = "mono" if samples.shape[1] == 1 else "stereo"
        stream.bit_rate = 96_000
        for start in range(0, len(samples), 1024):
            planar = np.ascontiguousarray(samples[start : start + 1024].T, dtype=np.float32)
            frame = av.AudioFrame.from_ndarray(planar, format="fltp", layout=stream.layout.name)
            frame.sample_rate, frame.pts = rate, start
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return file.getvalue()


def chirp(seconds: float, rate: int) -> np.ndarray:
    time = np.arange(int(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * (200 * time + 150 * time**2))).astype(np.float32)[:, None]


@pytest.mark.parametrize(("form", "codec", "rate"), KINDS, ids=[kind[0] for kind in KINDS])
def test_what_went_in_comes_out(form: str, codec: str, rate: int, tmp_path: Path) -> None:
    x = chirp(3.0, rate)
    data = encode(x, form, codec, rate)
    path = tmp_path / "concat:clip.m4a"  # which FFmpeg itself would take for an address
    path.write_bytes(data)
    audio = read_audio(path)
    assert (audio.sample_rate, audio.source_rate, audio.source_channels) == (16000, rate, 1)
    assert audio.seconds == pytest.approx(3.0, abs=0.15)  # encoders pad at both ends
    expected = chirp(3.0, 16000)[:, 0]
    middle = audio.samples[16000:24000]
    lags = range(-2400, 2400)
    match = max(np.corrcoef(middle, expected[16000 + lag : 24000 + lag])[0, 1] for lag in lags)
    assert match > 0.99
    for source in (data, io.BytesIO(data)):
        assert np.array_equal(read_audio(source).samples, audio.samples)
    assert np.abs(np.concatenate(list(audio_blocks(path, 16000))) - audio.samples).max() < 2e-6


def test_part_of_a_file() -> None:
    data = encode(chirp(3.0, 16000), "matroska", "flac", 16000)  # lossless, so places are exact
    whole = read_audio(data)
    assert len(whole.samples) == 48000
    part = read_audio(data, start=0.5, end=1.25)
    assert np.array_equal(part.samples, whole.samples[8000:20000])
    assert part.notes == ()
    cut = read_audio(data, max_seconds=1.0)
    assert (len(cut.samples), cut.notes) == (16000, ("cut",))
    assert read_audio(data, max_seconds=3.0).notes == ()
    assert len(read_audio(data, start=2.5, end=9.0).samples) == 8000
    assert reason(data, start=4.0) == "no_samples"


def test_two_channels_become_one() -> None:
    left = chirp(1.0, 48000)
    data = encode(np.concatenate([left, 0 * left], 1), "matroska", "flac", 48000)
    audio = read_audio(data, 48000)
    assert audio.source_channels == 2
    assert np.abs(audio.samples - left[:, 0] / 2).max() < 1e-3


@pytest.mark.parametrize("form", ["mp4", "webm"])
def test_damage_is_named(form: str) -> None:
    codec, rate = ("aac", 44100) if form == "mp4" else ("libopus", 48000)
    noise = np.random.default_rng(0).normal(0, 0.1, (rate * 4, 1)).astype(np.float32)
    data = encode(noise, form, codec, rate)
    assert reason(data[: len(data) // 2]) in ("truncated", "not_audio")  # the index of an mp4 is at its end
    assert reason(data[:100]) in ("not_audio", "truncated", "no_samples")
    holes = bytearray(data)
    holes[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
    with contextlib.suppress(AudioError):  # codecs may conceal it; whatever they do, it is no crash
        read_audio(bytes(holes))


def test_a_film_without_sound() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(5):
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    with pytest.raises(AudioError, match="no audio stream"):
        read_audio(file.getvalue())


def test_it_comes_through_the_door_of_guests() -> None:
    assert registry.load("audio", "pyav") is AvReader
    assert not AvReader().can_read(b"RIFF\0\0\0\0WAVE")  # libsndfile's
