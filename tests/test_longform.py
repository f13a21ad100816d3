"""Audio of any length: blocks are the whole, windows joined are one pass, and memory stays flat."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from toy import LETTERS, RATE, tones, trained_bundle

import asrkit
from asrkit.audio import read_audio, resample
from asrkit.audio.sources import Piece
from asrkit.audio.stream import Resampler, audio_blocks
from asrkit.audio.vad import speech_of
from asrkit.ctc import BLANK
from asrkit.decoders import GreedyDecoder
from asrkit.errors import AudioError, RecipeError
from asrkit.model import build_model
from asrkit.transcribe import Transcriber
from asrkit.transcribe.longform import Grid, decode_pieces

SECTIONS = {
    "features": {"name": "fbank", "options": {"size": 16}},
    "data": {"sample_rate": RATE},
    "norm": {},
    "seed": 1,
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned to read tones."""
    return trained_bundle(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def model(bundle: Path) -> Transcriber:
    return asrkit.load(bundle, device="cpu")


def speech(seconds: float, seed: int = 0) -> np.ndarray:
    """Words of tones with pauses between them: (S,)."""
    random = np.random.default_rng(seed)
    parts, samples = [], 0
    while samples < seconds * RATE:
        words = ["".join(random.choice(list(LETTERS), random.integers(2, 5))) for _ in range(random.integers(1, 6))]
        parts += [tones(" ".join(words), seed), 0.003 * random.standard_normal(random.integers(800, 8000))]
        samples += len(parts[-1]) + len(parts[-2])
    return np.concatenate(parts).astype(np.float32)


def pieces(x: np.ndarray, seed: int = 0) -> Iterator[np.ndarray]:
    """The same samples in pieces of random sizes, none and one among them."""
    random = np.random.default_rng(seed)
    at = 0
    while at < len(x):
        size = int(random.choice([0, 1, 7, 1000, 65536, 1_000_000]))
        yield x[at : at + size]
        at += size


@pytest.mark.parametrize("rates", [(48000, 16000), (44100, 16000), (8000, 16000), (22050, 8000), (16000, 16000)])
@pytest.mark.parametrize("samples", [1, 99, 4801, 200_001])
def test_resampling_in_pieces_is_resampling(rates: tuple[int, int], samples: int) -> None:
    x = np.random.default_rng(samples).uniform(-1, 1, samples).astype(np.float32)
    resampler = Resampler(*rates)
    parts = [resampler.push(piece) for piece in pieces(x)] + [resampler.finish()]
    whole = resample(x, *rates)
    assert sum(map(len, parts)) == len(whole)
    assert np.abs(np.concatenate(parts) - whole).max() < 2e-6


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3"])
def test_blocks_are_the_whole(form: str, tmp_path: Path) -> None:
    """Stereo at 44.1 kHz, longer than several blocks."""
    random = np.random.default_rng(1)
    left = np.cumsum(random.normal(0, 0.02, 400_000)) % 0.5
    path = tmp_path / "x"
    soundfile.write(path, np.stack([left, left * 0.5], 1), 44100, format=form)
    whole = read_audio(path).samples
    for source in (path, path.read_bytes()):
        blocks = list(audio_blocks(source, 16000))
        assert len(blocks) > 3
        assert np.abs(np.concatenate(blocks) - whole).max() < 2e-6


def test_blocks_say_what_is_wrong() -> None:
    file = io.BytesIO()
    soundfile.write(file, speech(30), RATE, format="FLAC")
    data = file.getvalue()
    for source, reason in (
        (data[: len(data) // 2], "truncated"), (b"", "empty_file"), (b"<html>" * 9, "not_audio"),
        ("nowhere.wav", "missing"),
    ):  # fmt: skip
        with pytest.raises(AudioError) as error:
            list(audio_blocks(source, RATE))
        assert error.value.reason == reason
    bad = speech(30)
    bad[-5] = np.nan
    file = io.BytesIO()
    soundfile.write(file, bad, RATE, format="WAV", subtype="FLOAT")
    with pytest.raises(AudioError) as error:
        list(audio_blocks(file.getvalue(), RATE))
    assert error.value.reason == "nonfinite"


STACKS = {
    "stride 1": [{"linear": 8}],
    "stride 3": [{"conv": {"channels": 4, "kernel": [5, 5], "stride": [3, 2]}}],
    "context": [{"context": {"left": 2, "right": 3, "stride": 2}}],
    "valid": [{"conv": {"channels": 4, "kernel": [4, 3], "stride": [2, 1], "padding": 0}}, {"linear": 8}],
}


@pytest.mark.parametrize("snip_edges", [True, False])
@pytest.mark.parametrize("name", list(STACKS))
def test_windows_of_a_model_without_memory_are_exact(name: str, snip_edges: bool) -> None:
    """Without recurrence a frame depends on its surroundings only, so joined windows are one pass, frame by frame."""
    features = {"name": "fbank", "options": {"size": 16, "snip_edges": snip_edges}}
    model = build_model({**SECTIONS, "features": features, "cmvn": {}, "encoder": "none", "layers": STACKS[name]}, 5)
    model.eval()
    grid = Grid.of(model, hop=1.0, context=0.5)
    transcriber = object.__new__(Transcriber)
    transcriber.model, transcriber.grid, transcriber.sample_rate = model, grid, RATE
    transcriber.device, transcriber.batch_seconds = torch.device("cpu"), 8.0 / 0.25
    for samples in (grid.one_pass + 1, 5 * RATE, 5 * RATE + 77, 6 * RATE - 1):
        x = speech(7)[:samples]
        windows = list(grid.windows(pieces(x)))
        assert len(windows) > 1
        joined = transcriber.log_probs((x, RATE))
        with torch.inference_mode():
            whole, lengths = model(torch.from_numpy(x)[None], torch.tensor([samples]))
        assert len(joined) == int(lengths[0]) == model.num_frames(samples)
        assert (joined - whole[0]).abs().max() < 1e-4


def test_windows_do_not_depend_on_the_sizes_of_blocks(model: Transcriber) -> None:
    grid = Grid.of(model.model, hop=2.0, context=0.5)
    x = speech(11)
    given = [[(len(w.samples), w.first, w.last) for w in grid.windows(pieces(x, seed))] for seed in range(5)]
    assert all(one == given[0] for one in given)
    fits = x[: grid.one_pass]
    (window,) = grid.windows([fits])
    assert (len(window.samples), window.first, window.last) == (grid.one_pass, 0, None)


def test_joined_text_is_that_of_one_pass(model: Transcriber) -> None:
    """A trained bidirectional model, three minutes, 17 joins: the same words at the same times."""
    x = speech(180)
    model.grid = Grid.of(model.model, hop=1e5)
    whole, expected = model.log_probs((x, RATE)), model.transcribe((x, RATE))
    assert len(expected.words) > 100, "a model that says nothing of anything proves nothing"
    model.grid = Grid.of(model.model, hop=10.0)
    joined, found = model.log_probs((x, RATE)), model.transcribe((x, RATE))
    assert joined.shape == whole.shape
    assert (joined.exp() - whole.exp()).abs().max() < 1e-3
    assert found.text == expected.text
    assert [(w.word, w.start, w.end) for w in found.words] == [(w.word, w.start, w.end) for w in expected.words]
    assert found.seconds == expected.seconds == round(len(x) / RATE, 3)


def test_joined_text_of_real_recordings(model: Transcriber, shared_data: Path) -> None:
    """Two minutes of telephone prompts and two of Common Voice, each clip after the other."""
    for clips in (
        sorted((shared_data / "asterisk_core_es" / "clips").rglob("*.wav"))[:80],
        sorted((shared_data / "cv-corpus-6.1-2020-12-11" / "es" / "clips").glob("*.mp3"))[:25],
    ):
        x = np.concatenate([read_audio(clip, RATE).samples for clip in clips])[: 120 * RATE]
        assert len(x) > 100 * RATE
        model.grid = Grid.of(model.model, hop=1e5)
        expected = model.transcribe((x, RATE))
        assert len(expected.text) > 200
        model.grid = Grid.of(model.model)
        assert model.transcribe((x, RATE)).text == expected.text


def test_cmvn_of_windows_is_that_of_the_whole(model: Transcriber) -> None:
    """A quiet first half and a loud second one: statistics of single windows would be far off."""
    x = np.concatenate([0.01 * speech(30, 1), speech(30, 2)])
    model.grid = Grid.of(model.model, hop=1e5)
    whole = model.log_probs((x, RATE))
    model.grid = Grid.of(model.model, hop=5.0)
    assert (model.log_probs((x, RATE)).exp() - whole.exp()).abs().max() < 1e-3


def test_pieces_are_decoded_like_the_whole() -> None:
    """Flat posteriors, peaked ones, and without any blank: best paths do not care where they are cut."""
    for scale, blank in ((0.3, 0.0), (6.0, 8.0), (6.0, -100.0), (6.0, 0.0)):
        scores = scale * torch.randn(3000, 7)
        scores = scores.repeat_interleave(3, 0)
        scores[:, BLANK] += blank
        log_probs = scores.log_softmax(-1)
        whole = GreedyDecoder()(log_probs[None], torch.tensor([len(log_probs)]))[0][0]
        for frame_seconds in (0.03, 0.1, 3.0):
            found = decode_pieces(GreedyDecoder(), iter(log_probs.split(501)), frame_seconds)
            assert (found.labels, found.starts, found.ends) == (whole.labels, whole.starts, whole.ends)
            assert found.confidences == whole.confidences
            assert found.score == pytest.approx(whole.score, rel=1e-5)


def test_pieces_are_cut_in_pauses() -> None:
    """What is decoded together ends in the longest silence, not in a word."""
    cuts: list[int] = []

    class Watching(GreedyDecoder):
        def __call__(self, log_probs: torch.Tensor, lengths: torch.Tensor) -> list:
            cuts.append(int(lengths[0]))
            return super().__call__(log_probs, lengths)

    scores = torch.zeros(100, 3)
    scores[:, 1] = 5.0
    scores[40], scores[60:70] = torch.tensor([9.0, 0, 0]), torch.tensor([9.0, 0, 0])
    decode_pieces(Watching(), iter([scores.log_softmax(-1)]), 1.0)
    assert cuts[0] == 65


def test_long_silence_is_silence(model: Transcriber, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.flac", np.zeros(90 * RATE, np.int16), RATE)
    found = model.transcribe(tmp_path / "x.flac")
    assert (found.status, found.text, found.seconds, found.message) == ("ok", "", 90.0, "silence: it peaks nowhere")


def test_long_files_beside_short_ones(model: Transcriber, tmp_path: Path) -> None:
    """In order, each as alone; damage at the far end of a long file is a status."""
    names = ["short.wav", "long.flac", "damaged.flac", "short2.wav"]
    for seed, name in enumerate(names):
        soundfile.write(tmp_path / name, speech(100 if name.endswith("flac") else 3, seed), RATE)
    data = (tmp_path / "damaged.flac").read_bytes()
    (tmp_path / "damaged.flac").write_bytes(data[: len(data) * 3 // 4])
    found = model.transcribe([tmp_path / name for name in names])
    assert [f.status for f in found] == ["ok", "ok", "truncated", "ok"]
    assert [Path(f.source).name for f in found] == names
    assert found[1] == model.transcribe(tmp_path / "long.flac")
    with pytest.raises(AudioError, match="damaged"):
        model.transcribe(tmp_path / "damaged.flac")


def said(pattern: list[tuple[int, float]]) -> Any:
    """A detector that says this: (chunks, probability)."""
    values = iter([probability for count, probability in pattern for _ in range(count)])
    return lambda _: next(values)


@pytest.mark.parametrize(("start", "end"), [(0.0, 70.0), (12.5, 75.25), (31.0, None), (80.0, 85.0)])
def test_a_piece_of_a_long_file_is_that_piece(
    model: Transcriber, tmp_path: Path, start: float, end: float | None
) -> None:
    x = speech(90)
    soundfile.write(tmp_path / "long.wav", x, RATE, subtype="FLOAT")
    part = x[round(start * RATE) : None if end is None else round(end * RATE)]
    found, alone = model.transcribe(Piece(tmp_path / "long.wav", start, end)), model.transcribe((part, RATE))
    assert found.text
    assert (found.text, found.words, found.seconds) == (alone.text, alone.words, alone.seconds)


def test_stretches_of_speech() -> None:
    """Chunks of 32 ms; speech begins at 0.5, survives a short dip, ends after 0.3 s below 0.35, and keeps 0.2 s."""
    pattern = [(50, 0.1), (40, 0.9), (5, 0.0), (10, 0.4), (30, 0.0), (3, 0.49), (20, 0.0), (30, 0.6)]
    x = np.arange(sum(count for count, _ in pattern) * 512, dtype=np.float32)
    found = list(speech_of(pieces(x), 16000, said(pattern)))
    assert [(s.start // 512, len(s.samples) // 512) for s in found] == [(44, 67), (152, 36)]
    for speech_found in found:
        assert speech_found.samples[0] == speech_found.start
        assert (np.diff(speech_found.samples) == 1).all()


def test_long_speech_is_cut_where_it_is_least_likely() -> None:
    """A minute and a half without a pause: stretches follow each other without a gap, and none is over 28 s."""
    pattern = [(700, 0.9), (1, 0.6), (800, 0.9), (1, 0.7), (1300, 0.9)]
    x = np.arange(sum(count for count, _ in pattern) * 256, dtype=np.float32)
    found = list(speech_of(pieces(x), 8000, said([*pattern, (99, 0.9)])))
    assert [s.start // 256 for s in found][:3] == [0, 700, 1501]
    assert np.array_equal(np.concatenate([s.samples for s in found]), x)
    assert all(len(s.samples) <= 28.1 * 8000 for s in found)


def test_silero_hears_speech_and_not_the_pauses(shared_data: Path) -> None:
    """Five real clips with five seconds of faint noise between them."""
    pytest.importorskip("silero_vad")
    clips = sorted((shared_data / "cv-corpus-6.1-2020-12-11" / "es" / "clips").glob("*.mp3"))[:5]
    noise = np.random.default_rng(0)
    parts, spoken = [], []
    for clip in clips:
        parts.append(1e-4 * noise.standard_normal(5 * 16000).astype(np.float32))
        parts.append(read_audio(clip, 16000).samples)
        spoken += [False] * len(parts[-2]) + [True] * len(parts[-1])
    threads = torch.get_num_threads()
    heard = np.zeros(len(spoken), bool)
    for stretch in speech_of(pieces(np.concatenate(parts)), 16000):
        heard[stretch.start : stretch.start + len(stretch.samples)] = True
    assert torch.get_num_threads() == threads
    assert heard[np.array(spoken)].mean() > 0.6  # clips begin and end with silence of their own
    assert heard[~np.array(spoken)].mean() < 0.1


def test_text_of_stretches(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words keep their times in the whole; the tones of the toy are no speech, so their loudness speaks for them."""
    import asrkit.audio.vad

    monkeypatch.setattr(asrkit.audio.vad, "silero", lambda: lambda chunk: float(np.abs(chunk).max() > 0.05))
    model = asrkit.load(bundle, device="cpu")
    words = [tones(text, seed) for seed, text in enumerate(("abe iou", "be", "oui abe"))]
    gap = np.full(15 * RATE, 1e-4, np.float32)
    x = np.concatenate([gap, words[0], gap, words[1], gap, words[2], gap])
    stretches = list(speech_of([x], RATE))
    assert len(stretches) == 3
    alone = [model.transcribe((stretch.samples, RATE)) for stretch in stretches]
    model.vad = True
    found = model.transcribe((x, RATE))
    assert found.text == " ".join(one.text for one in alone)
    assert len(found.text) > 6
    expected = [(w.word, w.start + s.start / RATE) for s, one in zip(stretches, alone, strict=True) for w in one.words]
    assert [w.word for w in found.words] == [word for word, _ in expected]
    assert [w.start for w in found.words] == pytest.approx([start for _, start in expected], abs=2e-3)


def test_without_silero(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "silero_vad", None)
    with pytest.raises(RecipeError, match=r"asrkit\[longform\]"):
        asrkit.load(bundle, vad=True)


MEASURE = """
import json, re, sys
import torch
torch.set_num_threads(1)
import asrkit
def peak_memory():  # of this program alone: ru_maxrss would begin with that of the process it was forked from
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1e3
base = peak_memory()
model = asrkit.load(sys.argv[1], device="cpu")
for path in sys.argv[2:]:
    seconds = model.transcribe(path).seconds
    peak = peak_memory()
    print(json.dumps({"seconds": seconds, "peak": peak, "over_torch": peak - base}), flush=True)
"""


def peaks(model: Path, *files: Path) -> list[dict[str, float]]:
    """Peak memory in MB of one process after each of the files, in all and over that of a bare `import torch`."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(model), *map(str, files)], capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def write_long(path: Path, minutes: float) -> Path:
    block = speech(60)[: 60 * RATE]
    with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16") as file:
        for _ in range(int(minutes)):
            file.write(block)
    return path


needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs /proc")


@needs_proc
def test_memory_does_not_grow_with_the_length(bundle: Path, tmp_path: Path) -> None:
    """Fifteen minutes more, which as samples alone are 29 MB and as features 23 MB."""
    five, twenty = peaks(bundle, write_long(tmp_path / "5.flac", 5), write_long(tmp_path / "20.flac", 20))
    assert (five["seconds"], twenty["seconds"]) == (300, 1200)
    assert twenty["peak"] - five["peak"] < 20
    assert twenty["over_torch"] < 120


@needs_proc
@pytest.mark.soak
def test_three_hours(bundle: Path, tmp_path: Path) -> None:
    """A torch built for CUDA takes 510 MB before asrkit has done anything, one for CPUs about 220."""
    (found,) = peaks(bundle, write_long(tmp_path / "x.flac", 180))
    print(found)
    assert found["seconds"] == 10800
    assert found["over_torch"] < 120
    assert found["peak"] < 600


def test_transcribing_brings_no_arrow_along(bundle: Path) -> None:
    """It would be 26 MB of memory for nothing."""
    code = "import sys, asrkit; asrkit.load(sys.argv[1], device='cpu'); print('pyarrow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(bundle)], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


MANY = """
import json, re, sys
import numpy as np
import torch
from asrkit.cli.common import default_environment
default_environment()
torch.set_num_threads(1)
import asrkit
def resident(): return int(re.search(r"VmRSS:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1e3
model = asrkit.load(sys.argv[1], device="cpu")
random = np.random.default_rng(0)
def clips(count):
    for _ in range(count):
        yield (0.1 * random.standard_normal(random.integers(2000, 80000))).astype(np.float32), 8000
found = []
for part in range(6):
    for result in model.stream(clips(500), jobs=2):
        assert result.status == "ok"
    found.append(resident())
print(json.dumps(found))
"""


@needs_proc
@pytest.mark.soak
def test_three_thousand_files(bundle: Path) -> None:
    """Every length is another one; after the first 500 memory grows by less than 100 MB, in the end by hardly any."""
    done = subprocess.run([sys.executable, "-c", MANY, str(bundle)], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    print(found)
    assert found[-1] - found[0] < 100, found
    assert found[-1] - found[-2] < 10, found
