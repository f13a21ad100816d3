"""A bundle gives what the model gave, and anything that is not what it says is refused before it is used."""

from __future__ import annotations

import hashlib
import io
import json
import math
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from toy import RATE, make_corpus, tones, toy_recipe

import asrkit
from asrkit import registry
from asrkit.bundle import load_bundle
from asrkit.decoders import Hypothesis
from asrkit.errors import AsrkitError, AudioError, RecipeError, StorageError, TrustError
from asrkit.experiment import Result, train
from asrkit.model import build_model
from asrkit.transcribe import find_audio


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    folder = tmp_path_factory.mktemp("trained")
    corpus = make_corpus(folder / "cv")
    recipe = toy_recipe(
        folder, corpus, ("training.epochs", 25), ("training.evaluate_every", 25), ("training.checkpoint_every", 25)
    )
    return train(recipe, "", folder / "run", say=lambda _: None), corpus


@pytest.fixture
def copy(trained: tuple[Result, Path], tmp_path: Path) -> Path:
    """A bundle of one's own to damage."""
    for path in trained[0].bundle.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def wave(sentence: str = "abe iou", seed: int = 5) -> np.ndarray:
    return tones(sentence, seed)


def test_every_kind_of_input_gives_the_same_text(trained: tuple[Result, Path], tmp_path: Path) -> None:
    model = asrkit.load(trained[0].bundle)
    path = tmp_path / "clip.wav"
    soundfile.write(path, wave(), RATE, subtype="FLOAT")
    text = model.transcribe(path).text
    assert text
    assert model.transcribe(str(path)).text == text
    assert model.transcribe(path.read_bytes()).text == text
    assert model.transcribe(io.BytesIO(path.read_bytes())).text == text
    assert model.transcribe((wave(), RATE)).text == text
    assert [t.text for t in model.transcribe([path, (wave(), RATE)])] == [text, text]
    assert asrkit.load(trained[0].folder).transcribe(path).text == text  # the run folder will do


def test_text_does_not_depend_on_company(trained: tuple[Result, Path]) -> None:
    """Alone, in batches, in any order: the same words, times and confidences."""
    model = asrkit.load(trained[0].bundle)
    sources = [
        (wave(text, seed), RATE) for seed, text in enumerate(["a", "abe iou", "be", "iou abe oui", "eee aa", "u" * 30])
    ]
    alone = [model.transcribe(source) for source in sources]
    together = model.transcribe(sources)
    backwards = model.transcribe(sources[::-1])[::-1]
    for one, two, three in zip(alone, together, backwards, strict=True):
        assert one.text == two.text == three.text
        assert [(w.word, w.start, w.end) for w in one.words] == [(w.word, w.start, w.end) for w in two.words]
        assert [w.confidence for w in one.words] == pytest.approx([w.confidence for w in two.words], abs=1e-3)


def test_words_have_times_and_confidences(trained: tuple[Result, Path]) -> None:
    transcript = asrkit.load(trained[0].bundle).transcribe((wave("abe iou bebe"), RATE))
    assert " ".join(word.word for word in transcript.words) == transcript.text
    for word in transcript.words:
        assert 0 <= word.start < word.end <= transcript.seconds
        assert 0 < word.confidence <= 1
    data = json.loads(transcript.to("json"))
    assert data["text"] == transcript.text
    assert transcript.to("txt") == transcript.text + "\n"


def test_bad_input_in_a_list_stops_nothing(trained: tuple[Result, Path], tmp_path: Path) -> None:
    model = asrkit.load(trained[0].bundle)
    (tmp_path / "empty.wav").touch()
    (tmp_path / "page.mp3").write_text("<html>")
    sources = [
        tmp_path / "empty.wav",
        (wave(), RATE),
        tmp_path / "page.mp3",
        tmp_path / "nowhere.wav",
        (wave()[:30], RATE),
    ]
    results = model.transcribe(sources)
    assert [r.status for r in results] == ["empty_file", "ok", "not_audio", "missing", "too_short"]
    assert results[0].message.endswith("is empty (0 bytes); fix: record or download it again")
    with pytest.raises(AudioError, match="nowhere"):
        model.transcribe(tmp_path / "nowhere.wav")
    with pytest.raises(AudioError, match="shape"):
        model.transcribe((np.zeros((5, 2)), RATE))


def test_log_probs(trained: tuple[Result, Path]) -> None:
    model = asrkit.load(trained[0].bundle)
    log_probs = model.log_probs((wave(), RATE))
    assert log_probs.logsumexp(-1).abs().max() < 1e-4
    assert len(log_probs) == model.model.num_frames(len(wave()))


def test_find_audio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.mp3", "a.wav", "deep/c.FLAC", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.name for p in find_audio([str(tmp_path)])] == ["a.wav", "b.mp3", "c.FLAC"]
    assert [p.name for p in find_audio([str(tmp_path / "*.wav"), str(tmp_path / "b.mp3")])] == ["a.wav", "b.mp3"]
    monkeypatch.chdir(tmp_path)
    assert [p.name for p in find_audio(["*.mp3", "missing.wav"])] == ["b.mp3", "missing.wav"]
    assert [str(p) for p in find_audio(["**/*.FLAC", "dee**/c.FLAC"])] == ["deep/c.FLAC", "deep/c.FLAC"]


def test_find_audio_loses_nothing_that_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever holds no audio stays in its place, so that it gets a status."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.wav", "[b].wav", "empty/notes.txt", "d.wav/c.txt", ".hidden.wav"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    given = ["a.wav", "nothing*.mp3", "gone[1].wav", "[b].wav", "empty", "d*.wav", str(tmp_path / "e**.wav"), "[a.wav"]
    assert [str(p) for p in find_audio(given)] == given
    assert [str(p) for p in find_audio(["*.wav"])] == [".hidden.wav", "[b].wav", "a.wav"]


def edit(config: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = json.loads((folder / "config.json").read_text())
        config(data)
        (folder / "config.json").write_text(json.dumps(data))

    return change


def rewrite(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """New weights with a matching hash: what a hostile author would do."""
    save_file(tensors, folder / "model.safetensors")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    edit(lambda c: c["files"].update({"model.safetensors": digest}))(folder)


def poison(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["head.linear.bias"][0] = float("nan")
    rewrite(folder, tensors)


def reshape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["head.linear.bias"] = torch.zeros(10**6)
    rewrite(folder, tensors)


def huge_header(folder: Path) -> None:
    data = struct.pack("<Q", 1 << 40) + b"{}"
    (folder / "model.safetensors").write_bytes(data)
    edit(lambda c: c["files"].update({"model.safetensors": hashlib.sha256(data).hexdigest()}))(folder)


def flip(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (folder / "model.safetensors").write_bytes(bytes(data))


def scale(folder: Path) -> None:
    rewrite(folder, {k: v * 1.5 for k, v in load_file(folder / "model.safetensors").items()})


def outside(folder: Path) -> None:
    edit(lambda c: c["files"].update({"../evil.txt": "0" * 64}))(folder)


def link(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "elsewhere")
    (folder / "model.safetensors").symlink_to(folder / "elsewhere")


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (poison, TrustError, "not finite"),
        (reshape, TrustError, "has shape"),
        (huge_header, TrustError, "header"),
        (outside, TrustError, "no asrkit model has"),
        (link, TrustError, "link"),
        (flip, StorageError, "damaged"),
        (scale, StorageError, "numbers it gave"),
        (
            edit(lambda c: c["encoder"].update(name="someones_norm", package="someones-pkg")),
            TrustError,
            "pip install someones-pkg",
        ),
        (
            edit(lambda c: c["encoder"].update(name="mine", package="(this process)")),
            TrustError,
            "--plugin FILE.py",
        ),
        (edit(lambda c: c["encoder"].update(name="x", package="evil; rm -rf ~")), TrustError, "ask its author"),
        (edit(lambda c: c["encoder"].update(name="x", package="--index-url=http://e")), TrustError, "ask its author"),
        (edit(lambda c: c.pop("recipe")), TrustError, "missing or malformed: recipe"),
        (edit(lambda c: c.update(format=99)), StorageError, "format 99"),
        (lambda f: (f / "config.json").write_text("[" * 10**5), TrustError, "not an asrkit model"),
        (lambda f: (f / "config.json").write_text(" " * (2 << 20)), TrustError, "1 MiB"),
        (lambda f: (f / "config.json").unlink(), StorageError, "no config.json"),
        (lambda f: (f / "tokens.txt").write_text("x 1\n"), StorageError, "damaged"),
    ],
)
def test_damage_is_refused(copy: Path, damage: Callable[[Path], None], kind: type[AsrkitError], message: str) -> None:
    load_bundle(copy)  # it was whole
    damage(copy)
    with pytest.raises(kind, match=message) as error:
        load_bundle(copy)
    assert error.value.exit_code == (7 if kind is TrustError else 5)
    assert error.value.reason
    assert str(error.value).isprintable()


def recipe_edit(part: str, **changes: Any) -> Callable[[Path], None]:
    return edit(lambda c: c["recipe"][part].update(changes))


def layers(*new: Any) -> Callable[[Path], None]:
    return edit(lambda c: c["recipe"].update(layers=list(new)))


def without(*keys: str) -> Callable[[Path], None]:
    def remove(config: dict[str, Any]) -> None:
        for key in keys[:-1]:
            config = config[key]
        del config[keys[-1]]

    return edit(remove)


def header(change: Callable[[Any], Any], body: bytes | None = None) -> Callable[[Path], None]:
    """Another header over the same bytes, with a matching hash."""

    def rewrite_header(folder: Path) -> None:
        data = (folder / "model.safetensors").read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        text = json.dumps(change(json.loads(data[8 : 8 + size]))).encode()
        data = struct.pack("<Q", len(text)) + text + (data[8 + size :] if body is None else body)
        (folder / "model.safetensors").write_bytes(data)
        edit(lambda c: c["files"].update({"model.safetensors": hashlib.sha256(data).hexdigest()}))(folder)

    return rewrite_header


def entries(**changes: Any) -> Callable[[Path], None]:
    return header(lambda h: {name: {**entry, **changes} for name, entry in h.items()})


def repeats(depth: int) -> Any:
    return {"repeat": {"times": 100, "layers": [repeats(depth - 1)]}} if depth else "relu"


STRANGE: dict[str, Callable[[Path], None]] = {
    "no norm": without("recipe", "norm"),
    "no text": without("recipe", "text"),
    "no rules": without("recipe", "text", "rules"),
    "unknown rules": recipe_edit("text", rules="klingon"),
    "no data": without("recipe", "data"),
    "no features": without("recipe", "features"),
    "extra norm key": recipe_edit("norm", surprise=1),
    "extra cmvn key": recipe_edit("cmvn", surprise=1),
    "eps is text": recipe_edit("norm", eps="x"),
    "eps 0": recipe_edit("norm", eps=0.0),
    "eps is huge": recipe_edit("norm", eps=10**400),
    "momentum 2": recipe_edit("norm", momentum=2.0),
    "momentum below 0": recipe_edit("norm", momentum=-0.5),
    "min_count 0": recipe_edit("norm", min_count=0),
    "groups 0": recipe_edit("norm", groups=0),
    "groups below 0": recipe_edit("norm", groups=-8),
    "gain nan": recipe_edit("norm", gain=float("nan")),
    "gain below 0": recipe_edit("norm", gain=-1.0),
    "renorm_r below 1": recipe_edit("norm", renorm_r=0.5),
    "renorm_d below 0": recipe_edit("norm", renorm_d=-1.0),
    "renorm_warmup below 0": recipe_edit("norm", renorm_warmup=-1),
    "renorm_warmup is huge": recipe_edit("norm", renorm_warmup=10**400),
    "norm batch of another kind": recipe_edit("norm", batch="macro"),
    "ctc is a list": edit(lambda c: c["recipe"].update(ctc=[0.3])),
    "ctc of training": edit(lambda c: c["recipe"].update(ctc={"label_prior": 0.3})),
    "ctc prior 2": edit(lambda c: c["recipe"].update(ctc={"decode_prior": 2})),
    "ctc prior nan": edit(lambda c: c["recipe"].update(ctc={"decode_prior": float("nan")})),
    "ctc prior without its tensor": edit(lambda c: c["recipe"].update(ctc={"decode_prior": 0.3})),
    "sample_rate 0": recipe_edit("data", sample_rate=0),
    "sample_rate true": recipe_edit("data", sample_rate=True),
    "no tokenizer name": without("tokenizer", "name"),
    "unknown tokenizer": edit(lambda c: c["tokenizer"].update(name="runes")),
    "no seed": without("seed"),
    "seed is text": edit(lambda c: c.update(seed="x")),
    "seed too large": edit(lambda c: c.update(seed=10**30)),
    "no tensors": without("files", "model.safetensors"),
    "hash is no text": edit(lambda c: c["files"].update({"tokens.txt": 1})),
    "empty self check": edit(lambda c: c.update(self_check={})),
    "huge self check": edit(lambda c: c["self_check"].update(mean=10**400)),
    "encoder name is a list": edit(lambda c: c["encoder"].update(name=[])),
    "header is a list": header(lambda h: []),
    "entries are integers": header(lambda h: dict.fromkeys(h, 1)),
    "entries without shape": header(lambda h: {name: {"dtype": "F32"} for name in h}),
    "shapes are text": entries(shape="x"),
    "unknown type": entries(dtype="F1"),
    "other type": header(lambda h: h, b""),
    "control characters": header(lambda h: {"\x1b[31m" + name: entry for name, entry in h.items()}),
    "nested header": header(lambda h: {"a": json.loads("[" * 900 + "]" * 900)}),
    "unknown layer": layers("tanhh"),
    "stride 0": layers({"context": {"stride": 0}}),
    "layers are no list": edit(lambda c: c["recipe"].update(layers={"linear": 4})),
    "options are a list": recipe_edit("features", options=[1]),
    "no features at all": recipe_edit("features", options={"size": 0}),
    "window is null": recipe_edit("features", options={"window_ms": None}),
}
GREEDY: dict[str, Callable[[Path], None]] = {
    "rate": recipe_edit("data", sample_rate=10**9),
    "linear": layers({"linear": 10**12}),
    "square": layers({"linear": 12_000}, {"linear": 12_000}),
    "wide": layers({"linear": 60_000}, {"linear": 60_000}),
    "recurrent": layers({"bigru": {"size": 12_000, "layers": 5}}),
    "residual": layers({"linear": 12_000}, {"residual": [{"linear": 12_000}, "norm"]}),
    "conv": layers({"conv": {"channels": 8_000}}, {"conv": {"channels": 8_000, "kernel": 99}}),
    "repeats": layers(repeats(4)),
    "context": layers({"context": {"left": 10**9}}),
    "filters": recipe_edit("features", options={"size": 10**7}),
    "window": recipe_edit("features", options={"size": 2_000, "window_ms": 1_000}),
    "steps": recipe_edit("norm", max_steps=10**10),
    "nan": layers({"dropout": float("nan")}),
    "declared": header(lambda h: {n: {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]} for n in h}),
}


@pytest.mark.parametrize("name", STRANGE)
def test_strange_config_is_refused(copy: Path, name: str) -> None:
    """Whatever a stranger writes, the answer is one line and exit code 7, never a bare exception."""
    STRANGE[name](copy)
    with pytest.raises(TrustError) as error:
        load_bundle(copy)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000


GREEDY_PROCESS = """
import pathlib, resource, sys
from asrkit.bundle import load_bundle
from asrkit.errors import TrustError
whole, *greedy = map(pathlib.Path, sys.argv[1:])
load_bundle(whole)
used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20),) * 2)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for folder in greedy:
    try:
        load_bundle(folder)
        print(folder.name, "was loaded")
    except TrustError as error:
        if "alloc" in str(error) or "MemoryError" in str(error):
            print(folder.name, "was built:", error)
    now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if now - peak > 48 << 10:
        print(folder.name, "took", now - peak, "KiB")
    peak = max(peak, now)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and the resident set in KiB")
def test_greedy_config_takes_no_memory(trained: tuple[Result, Path], tmp_path: Path) -> None:
    """Sizes that the tensor file does not have are refused before anything of that size exists."""
    for name, damage in GREEDY.items():
        shutil.copytree(trained[0].bundle, tmp_path / name)
        damage(tmp_path / name)
    command = [sys.executable, "-c", GREEDY_PROCESS, str(trained[0].bundle), *(str(tmp_path / name) for name in GREEDY)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout + done.stderr == ""
    assert done.returncode == 0


def test_encoders_whose_constructor_reads_numbers_load(copy: Path) -> None:
    """The check before allocation must not refuse a guest that looks at a tensor while it is built."""
    from asrkit.encoders import StackEncoder

    class Curious(registry.load("encoders", "none")):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.rates = torch.linspace(0, 1, 3).tolist() + torch.ones(2).tolist()

    assert issubclass(Curious, StackEncoder)
    config = json.loads((copy / "config.json").read_text())
    norm = registry.load("encoders", config["encoder"]["name"])
    Curious.make_norm = norm.make_norm
    registry.register_encoder("curious")(Curious)
    try:
        edit(lambda c: c["encoder"].update(name="curious", package="(this process)"))(copy)
        assert load_bundle(copy).model.acoustic.encoder.rates == [0.0, 0.5, 1.0, 1.0, 1.0]
    finally:
        registry._registered.pop(("encoders", "curious"))


def test_unknown_device_is_the_readers_mistake(trained: tuple[Result, Path]) -> None:
    for device in ("nonsense", "cuda:99", ""):
        with pytest.raises(RecipeError) as error:
            asrkit.load(trained[0].bundle, device)
        assert error.value.reason == "device"
        assert "xpu" not in str(error.value)  # torch's list of two dozen


@pytest.mark.parametrize("dtype", ["int16", "int32", "int8", "uint8", "float64", "float32"])
def test_arrays_of_any_type_have_their_own_full_scale(trained: tuple[Result, Path], dtype: str) -> None:
    """The oracle: soundfile, which reads 0.5 of full scale as 0.5 from any integer type."""
    model = asrkit.load(trained[0].bundle)
    half = {"int16": 1 << 14, "int32": 1 << 30, "int8": 1 << 6, "uint8": 128 + 64}.get(dtype, 0.5)
    audio = model._open((np.full(4000, half, dtype), RATE)).audio
    assert audio.samples.dtype == np.float32
    assert audio.samples.tolist() == [0.5] * 4000
    quantized = (wave() * 32768).astype(np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, quantized, RATE, format="WAV", subtype="PCM_16")
    assert np.array_equal(model._open((quantized, RATE)).audio.samples, model._open(buffer.getvalue()).audio.samples)
    assert model.transcribe((torch.from_numpy(wave()), RATE)).text == model.transcribe((wave(), RATE)).text


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ((wave(), 0), "bad_rate"),
        ((wave(), -5), "bad_rate"),
        ((wave(), 8000.5), "bad_rate"),
        ((wave(), "8000"), "bad_rate"),
        ((wave(), None), "bad_rate"),
        ((wave(), float("nan")), "bad_rate"),
        ((wave(), 1), "bad_rate"),
        ((wave() * 32768, RATE), "bad_scale"),
        ((wave().astype(np.float64) * 1e300, RATE), "bad_scale"),
        ((np.array([0.0, np.nan]), RATE), "nonfinite"),
        ((np.zeros(0, np.float32), RATE), "no_samples"),
        ((np.zeros(100, np.int64), RATE), "bad_array"),
        ((np.zeros(100, bool), RATE), "bad_array"),
        ((np.array(["a"]), RATE), "bad_array"),
        ((wave(), RATE, 1), "bad_array"),
        (wave(), "bad_source"),
        (torch.from_numpy(wave()), "bad_source"),
        ({"array": wave(), "sampling_rate": RATE}, "bad_source"),
        (None, "bad_source"),
        (io.StringIO("clip.wav"), "bad_source"),
        (io.TextIOWrapper(io.BytesIO(b"\xff\xfb")), "bad_source"),
    ],
)
def test_bad_arrays(trained: tuple[Result, Path], source: Any, reason: str) -> None:
    model = asrkit.load(trained[0].bundle)
    with pytest.raises(AudioError) as error:
        model.transcribe(source)
    assert error.value.reason == reason
    assert [t.status for t in model.transcribe([source, (wave(), float(RATE))])] == [reason, "ok"]


def test_too_short_is_a_status_and_has_no_log_probs(trained: tuple[Result, Path]) -> None:
    model = asrkit.load(trained[0].bundle)
    assert model.transcribe((wave()[:30], RATE)).status == "too_short"
    with pytest.raises(AudioError, match="shorter than one frame"):
        model.log_probs((wave()[:30], RATE))


def test_word_times_stay_within_the_audio(trained: tuple[Result, Path]) -> None:
    """Frames may end, and even start, after the last sample."""
    model = asrkit.load(trained[0].bundle)
    label = model.tokenizer.encode("a")[0]
    late = Hypothesis((label,), 0.0, (1000,), (1001,), (0.5,))
    (word,) = model._transcript("late", 0.1234, late).words
    assert (word.start, word.end) == (0.123, 0.123)


@pytest.mark.parametrize("strides", [(1,), (2,), (3,), (4,), (5,), (6,), (7,), (8,), (3, 3), (7, 7), (8, 8), (5, 6, 7)])
def test_frame_seconds_is_exact(strides: tuple[int, ...]) -> None:
    """10 ms times the product of the strides, whatever the kernels do at the edges."""
    stack: list[Any] = [{"conv": {"channels": 1, "kernel": [4, 1], "stride": [s, 1], "padding": 0}} for s in strides]
    sections = {"features": {"name": "fbank"}, "data": {"sample_rate": 16000}, "cmvn": {}, "norm": {}, "seed": 1}
    model = build_model({**sections, "encoder": "none", "layers": stack}, 3)
    assert model.frame_seconds == pytest.approx(0.01 * math.prod(strides), rel=1e-12)
