"""Decoding by content, reasons for what cannot be used, notes for what was done, and resampling."""

from __future__ import annotations

import io
import struct
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from asrkit import registry
from asrkit.audio import Audio, Decoded, SoundfileReader, mp3_length, num_samples_after, read_audio, resample
from asrkit.audio.mp3_length import claimed_mp3_frames
from asrkit.errors import AudioError


def tone(seconds: float = 1.0, rate: int = 16000, hz: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def encode(samples: np.ndarray, rate: int = 16000, container: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=container, subtype=subtype)
    return file.getvalue()


def reason(source: object, **options: float) -> str:
    with pytest.raises(AudioError) as caught:
        read_audio(source, **options)  # type: ignore[arg-type]
    assert caught.value.exit_code == 3
    return caught.value.reason


FORMATS = [
    ("WAV", "PCM_16"),
    ("WAV", "FLOAT"),
    ("FLAC", None),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", None),
    ("AIFF", None),
    ("AU", None),
]


@pytest.mark.parametrize(("container", "subtype"), FORMATS)
def test_reads_paths_bytes_and_files_alike(container: str, subtype: str | None, tmp_path: Path) -> None:
    x = tone()
    data = encode(x, container=container, subtype=subtype)
    path = tmp_path / "clip.txt"  # content decides, not the name
    path.write_bytes(data)
    audio = read_audio(path)
    assert isinstance(audio, Audio)
    assert audio.samples.dtype == np.float32
    assert (audio.sample_rate, audio.source_rate, audio.source_channels) == (16000, 16000, 1)
    assert audio.notes == ()
    assert abs(audio.seconds - 1.0) < 0.01
    length = min(len(x), len(audio.samples))
    exact = container not in ("OGG", "MP3")
    assert np.abs(audio.samples[:length] - x[:length])[500:-500].max() < (1e-4 if exact else 0.05)
    for source in (str(path), data, io.BytesIO(data)):
        assert np.array_equal(read_audio(source).samples, audio.samples)


def test_real_recordings(shared_data: Path) -> None:
    mp3 = sorted((shared_data / "cv-corpus-6.1-2020-12-11" / "es" / "clips").glob("*.mp3"))[0]
    ogg = sorted((shared_data / "tuxpaint_stamps_es" / "clips").glob("*.ogg"))[0]
    wav = sorted((shared_data / "asterisk_core_es" / "clips").glob("*.wav"))[0]
    for path, rate, channels, notes in (
        (mp3, 48000, 1, ()),
        (ogg, 44100, 2, ("clipped",)),
        (wav, 8000, 1, ("low_rate",)),
    ):
        audio = read_audio(path)
        assert (audio.source_rate, audio.source_channels, audio.notes) == (rate, channels, notes)
        plain, _ = soundfile.read(path, dtype="float32", always_2d=True)
        expected = torchaudio.functional.resample(torch.from_numpy(plain.mean(axis=1)), rate, 16000).numpy()
        assert np.abs(audio.samples - expected).max() < 1e-4


def test_interval_and_limit(tmp_path: Path) -> None:
    x = np.arange(32000, dtype=np.float32) / 32768
    for container in ("WAV", "FLAC"):
        data = encode(x, container=container)
        part = read_audio(data, start=0.5, end=1.25)
        assert np.abs(part.samples - x[8000:20000]).max() < 1e-4
        assert part.notes == ()
        cut = read_audio(data, max_seconds=0.25)
        assert (len(cut.samples), cut.notes) == (4000, ("cut",))
        assert read_audio(data, max_seconds=2.0).notes == ()
        assert len(read_audio(data, start=1.5, end=9.0).samples) == 8000
        assert reason(data, start=3.0) == "no_samples"
        assert reason(data, start=1.0, end=1.0) == "no_samples"


def test_missing_empty_and_foreign(tmp_path: Path) -> None:
    assert reason(tmp_path / "nothing.mp3") == "missing"
    assert reason(tmp_path) == "not_audio"
    (tmp_path / "zero.mp3").touch()
    assert reason(tmp_path / "zero.mp3") == "empty_file"
    assert reason(b"") == "empty_file"
    assert reason(b"<!DOCTYPE html><html>404</html>" * 99) == "not_audio"
    assert reason(b"\xff\xfb\x90\x64" + bytes(range(256)) * 9) == "not_audio"
    assert reason(encode(tone(0.0))) == "no_samples"


@pytest.mark.parametrize("head", [b"\0\0\0\x20ftypM4A ", b"\x1aE\xdf\xa3\x01", b"\xff\xf1\x50\x80", b"#!AMR\n"])
def test_formats_that_need_pyav(head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)  # as where it is not installed
    with pytest.raises(AudioError, match=r"asrkit\[audio\]") as caught:
        read_audio(head + b"\0" * 500)
    assert caught.value.reason == "needs_pyav"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("container", ["WAV", "FLAC", "MP3", "AIFF", "AU"])
def test_truncated(container: str, share: float) -> None:
    data = encode(tone(5.0) + np.random.default_rng(0).normal(0, 0.01, 80000).astype(np.float32), container=container)
    assert reason(data[: int(share * len(data))]) == "truncated"


def test_flac_of_unknown_or_lying_length() -> None:
    data = bytearray(encode(tone(5.0), container="FLAC"))  # byte 21 on: 36 bits, the number of samples
    data[21:26] = bytes([data[21] & 0xF0]) + bytes(4)
    assert len(read_audio(bytes(data)).samples) == 80000
    data[21:26] = bytes([data[21] | 0x0F]) + b"\xff" * 4  # 1,193 hours
    tracemalloc.start()
    try:
        assert reason(bytes(data)) == "truncated"
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    assert len(read_audio(bytes(data), max_seconds=1.0).samples) == 16000


def test_streamed_wav_promises_nothing() -> None:
    data = encode(tone())
    at = data.index(b"data") + 4
    assert len(read_audio(data[:at] + b"\xff" * 4 + data[at + 4 :]).samples) == 16000


def test_mp3_without_a_xing_header() -> None:
    data = encode(tone(5.0), container="MP3")
    body = data[data.index(data[:2], 2) :]  # its first frame is the Xing header, the others vary in rate
    assert reason(body) == "truncated"  # libsndfile stops by the rate of the first frame; that is not passed over


def test_real_mp3_with_pictures_and_holes(shared_data: Path) -> None:
    """Common Voice clips have no Xing header and a constant rate."""
    data = sorted((shared_data / "cv-corpus-6.1-2020-12-11" / "es" / "clips").glob("*.mp3"))[0].read_bytes()
    body, whole = data[45:], read_audio(data)
    size = 300_000  # of a picture in front, which the decoder takes for audio when it guesses the length
    front = b"ID3\x03\0\0" + bytes((size >> shift) & 127 for shift in (21, 14, 7, 0)) + bytes(size)
    assert np.array_equal(read_audio(front + body).samples, whole.samples)
    assert reason(front + body[:8000] + b"\x55" * 900 + body[8900:]) == "truncated"
    assert read_audio(body[: len(body) // 2]).seconds < 0.6 * whole.seconds  # a clean cut is not to be seen here


def test_hours_of_mp3_are_counted_in_pieces(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour without a Xing header, true to a few frames, in the memory of one piece."""
    clip = sorted((shared_data / "cv-corpus-6.1-2020-12-11" / "es" / "clips").glob("*.mp3"))[0].read_bytes()[45:]
    times = int(3600 * 48000 / (len(clip) / 192 * 1152)) + 1  # 64 kbit/s: frames of 192 bytes
    expected = times * len(clip) / 192 * 1152
    tracemalloc.start()
    try:
        found = claimed_mp3_frames(1, 48000, io.BytesIO(clip * times))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == pytest.approx(expected, rel=1e-3)
    assert peak - times * len(clip) < 8e6
    whole = claimed_mp3_frames(1, 48000, io.BytesIO(clip))
    monkeypatch.setattr(mp3_length, "PIECE_BYTES", 777)
    assert claimed_mp3_frames(1, 48000, io.BytesIO(clip)) == whole


@pytest.mark.parametrize(
    ("value", "expected"),
    [(np.nan, "nonfinite"), (np.inf, "nonfinite"), (-np.inf, "nonfinite"), (1e30, "bad_scale"), (-9.0, "bad_scale")],
)
def test_unusable_samples(value: float, expected: str) -> None:
    x = tone()
    x[777] = value
    assert reason(encode(x, subtype="FLOAT")) == expected


def test_channels() -> None:
    left, right = tone(hz=300), tone(hz=500)
    audio = read_audio(encode(np.stack([left, right], 1), subtype="FLOAT"))
    assert np.abs(audio.samples - (left + right) / 2).max() < 1e-6
    assert (audio.source_channels, audio.notes) == (2, ())
    opposed = read_audio(encode(np.stack([left, -0.99 * left], 1), subtype="FLOAT"))
    assert np.abs(opposed.samples - left).max() < 1e-6
    assert opposed.notes == ("anti_phase",)
    one_sided = read_audio(encode(np.stack([0 * left, left], 1), subtype="FLOAT"))
    assert np.abs(one_sided.samples - left / 2).max() < 1e-6
    silent = read_audio(encode(np.zeros((1600, 2), np.float32)))
    assert (silent.notes, silent.samples.any()) == ((), np.False_)


def test_notes_on_clipping_and_low_rate() -> None:
    assert read_audio(encode(np.clip(4 * tone(), -1, 1))).notes == ("clipped",)
    assert read_audio(encode(tone(rate=8000), 8000)).notes == ("low_rate",)
    assert len(read_audio(encode(tone(rate=8000), 8000)).samples) == 16000


@pytest.mark.parametrize(
    "rates", [(48000, 16000), (44100, 16000), (8000, 16000), (22050, 16000), (16000, 44100), (16000, 16000)]
)
def test_resample_equals_torchaudio(rates: tuple[int, int]) -> None:
    for samples in (1, 2, 99, 4801, 70001):
        x = torch.randn(samples)
        expected = torchaudio.functional.resample(x.double(), *rates).float()
        ours = torch.from_numpy(resample(x.numpy(), *rates))
        assert len(ours) == num_samples_after(samples, *rates)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_odd_rates_cost_no_memory_and_forged_ones_are_refused() -> None:
    tracemalloc.start()
    try:
        audio = read_audio(encode(tone(1.0, 44101), 44101))
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    assert abs(audio.seconds - 1) < 1e-3
    spectrum = np.abs(np.fft.rfft(audio.samples[:16000]))
    assert spectrum.argmax() == 440
    data = encode(tone())
    assert reason(data[:24] + struct.pack("<I", 1) + data[28:]) == "not_audio"


def test_decoders_leave_stderr_clean_and_others_reach_it(capfd: pytest.CaptureFixture[str]) -> None:
    data = encode(tone(5.0), container="MP3")
    damaged = data[:4000] + bytes(4000) + data[8000:]
    reasons: list[str] = []
    threads = [threading.Thread(target=lambda: reasons.append(reason(damaged))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reasons == ["truncated"] * 4
    print_to_fd_2 = b"something else went wrong\n"
    from asrkit.audio import soundfile_reader

    with soundfile_reader.quiet_decoders():
        soundfile_reader.os.write(2, b"Note: Trying to resync...\n" + print_to_fd_2)
    soundfile_reader.os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == print_to_fd_2.decode() + "afterwards\n"


def test_the_reader_is_a_plugin_and_guests_are_asked_next(monkeypatch: pytest.MonkeyPatch) -> None:
    assert registry.load("audio", "soundfile") is SoundfileReader
    assert SoundfileReader().can_read(b"fLaC")
    assert not SoundfileReader().can_read(b"ZZZZ")
    monkeypatch.setattr(registry, "_registered", {})

    @registry.register("audio", "zeros")
    class ZerosReader:
        asrkit_api = 1
        formats = ("zzzz",)

        def can_read(self, head: bytes) -> bool:
            return head.startswith(b"ZZZZ")

        def read(self, source: object, start: float, end: float | None, limit: float | None) -> Decoded:
            return Decoded(np.zeros((800, 1), np.float32), 8000)

    assert len(read_audio(b"ZZZZ").samples) == 1600
