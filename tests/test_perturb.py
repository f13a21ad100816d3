"""Waveform augmentation: what it does to the signal, where its random numbers come from, and training with it."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from toy import make_corpus, sigterm_after, toy_recipe

from asrkit.audio import perturb
from asrkit.audio.perturb import Noise, Perturbation, build_perturbation, num_samples
from asrkit.errors import DataError, RecipeError, StoppedError
from asrkit.experiment import train
from asrkit.preparation import clips, prepare
from asrkit.preparation.feature_cache import FeatureTable, WaveformTable
from asrkit.preparation.splits import AugmentedSplit
from asrkit.runs import MetricsLog
from asrkit.training import CTCBrain

RATE = 16000
AUGMENT = [
    ("augment.speed", "[0.9, 1.0, 1.1]"),
    ("augment.noise.share", 0.5),
    ("augment.gain_db", "[-6, 6]"),
]
SPEEDS = (Fraction(9, 10), Fraction(1), Fraction(11, 10))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def tone(hertz: float = 440.0, seconds: float = 2.0, level: float = 0.1) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def decibels(ratio: float) -> float:
    return float(10 * np.log10(ratio))


# The signal.


@pytest.mark.parametrize("speed", [0.9, 1.1, 1.07])
def test_speed_changes_length_and_pitch(speed: float) -> None:
    exact = Fraction(str(speed))
    out = Perturbation(1, RATE, (exact,))(tone(), 1, "a")
    assert len(out) == num_samples(2 * RATE, exact) == int(np.ceil(2 * RATE / exact))
    spectrum = np.abs(np.fft.rfft(out * np.hanning(len(out))))
    assert np.argmax(spectrum) * RATE / len(out) == pytest.approx(440 * speed, abs=1)
    assert np.sqrt(np.mean(out[500:-500] ** 2)) == pytest.approx(0.1 / np.sqrt(2), rel=0.01)


@pytest.mark.parametrize("files", [False, True])
def test_noise_has_the_level_that_it_is_said_to_have(tmp_path: Path, files: bool) -> None:
    paths: tuple[Path, ...] = ()
    if files:
        soundfile.write(tmp_path / "n.wav", np.random.default_rng(0).standard_normal(RATE) * 0.2, RATE)
        paths = (tmp_path / "n.wav",)
    clean = tone()
    noisy = Perturbation(1, RATE, noise=Noise(0.5, (10, 30), paths))
    ratios = []
    for i in range(200):
        added = noisy(clean, 1, str(i)).astype(np.float64) - clean
        if added.any():
            ratios.append(decibels(np.mean(clean.astype(np.float64) ** 2) / np.mean(added**2)))
    assert 70 <= len(ratios) <= 130, "share 0.5: five standard deviations are 35"
    assert 9.99 <= min(ratios) < 12
    assert 28 < max(ratios) <= 30.01
    fixed = Perturbation(1, RATE, noise=Noise(1.0, (20, 20), paths))(clean, 1, "a").astype(np.float64) - clean
    assert decibels(np.mean(clean.astype(np.float64) ** 2) / np.mean(fixed**2)) == pytest.approx(20, abs=0.01)


@pytest.mark.parametrize("fall", [0.0, 0.5, 1.0])
def test_the_colour_of_generated_noise(fall: float) -> None:
    noise = perturb._generated(60 * RATE, RATE, fall, np.random.default_rng(1)).astype(np.float64)
    frames = noise.reshape(-1, 1600) * np.hanning(1600)
    power = np.mean(np.abs(np.fft.rfft(frames)) ** 2, axis=0)
    hertz = np.fft.rfftfreq(1600, 1 / RATE)
    used = (hertz >= 100) & (hertz <= 7000)
    slope = np.polyfit(np.log(hertz[used]), np.log(power[used]), 1)[0]
    assert slope == pytest.approx(-fall, abs=0.05)


def test_short_noise_files_are_repeated_and_starts_differ(tmp_path: Path) -> None:
    noise = np.zeros(1000)
    noise[0] = 0.5
    soundfile.write(tmp_path / "n.wav", noise, RATE, subtype="FLOAT")
    noisy = Perturbation(1, RATE, noise=Noise(1.0, (0, 0), (tmp_path / "n.wav",)))
    starts = set()
    for i in range(20):
        [places] = np.nonzero(noisy(tone(0, 1.0) + np.float32(0.01), 1, str(i)) > 0.05)
        assert set(np.diff(places)) == {1000}
        starts.add(int(places[0]))
    assert len(starts) > 10


def test_gain_is_uniform_in_decibels() -> None:
    louder = Perturbation(1, RATE, gain_db=(-6, 12))
    gains = [2 * decibels(np.abs(louder(tone(), 1, str(i))).max() / 0.1) for i in range(300)]
    assert -6.01 <= min(gains) < -5
    assert 11 < max(gains) <= 12.01
    assert np.mean(gains) == pytest.approx(3, abs=5 * 18 / np.sqrt(12 * 300))


def test_digital_silence_stays_silent() -> None:
    both = Perturbation(1, RATE, noise=Noise(1.0, (10, 10)), gain_db=(6, 6))
    assert not both(np.zeros(500, np.float32), 1, "a").any()


# The random numbers.


def test_everything_comes_from_seed_epoch_and_id() -> None:
    def draw(seed: int = 1, epoch: int = 1, identity: str = "a") -> np.ndarray:
        return Perturbation(seed, RATE, SPEEDS, Noise(1.0, (10, 30)), (-6, 6))(tone(), epoch, identity)

    assert np.array_equal(draw(), draw())
    others = [draw(seed=2), draw(epoch=2), draw(identity="b")]
    assert all(not np.array_equal(other, draw()) for other in others)
    np.testing.assert_array_equal(draw(epoch=0), tone())
    clean = tone()
    Perturbation(1, RATE, noise=Noise(1.0, (0, 0)), gain_db=(6, 6))(clean, 1, "a")
    np.testing.assert_array_equal(clean, tone(), err_msg="the input was changed")


def test_speeds_are_equally_likely_and_can_be_limited() -> None:
    drawn = Perturbation(1, RATE, SPEEDS)
    counts = Counter(drawn.speed(epoch, str(i)) for epoch in (1, 2, 3) for i in range(1000))
    assert counts.keys() == set(SPEEDS)
    assert all(870 < count < 1130 for count in counts.values()), "five standard deviations are 130"
    assert {drawn.speed(1, str(i), allowed=2) for i in range(50)} == set(SPEEDS[:2])
    assert {drawn.speed(1, str(i), allowed=0) for i in range(50)} == {Fraction(1)}


# The recipe.


def test_nothing_asked_for_is_nothing_done(tmp_path: Path, corpus: Path) -> None:
    assert build_perturbation(toy_recipe(tmp_path, corpus)) is None
    assert build_perturbation(toy_recipe(tmp_path, corpus, ("augment.speed", "[1.0]"))) is None
    assert build_perturbation({"seed": 1}) is None
    full = build_perturbation(toy_recipe(tmp_path, corpus, *AUGMENT, ("seed", 3)))
    assert full == Perturbation(3, 8000, SPEEDS, Noise(0.5, (10.0, 30.0)), (-6.0, 6.0))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("speed", "[0.9, 3.0]"),
        ("speed", "fast"),
        ("speed", "[0.12345]"),
        ("speed", "[1, .nan]"),
        ("noise.share", 2),
        ("noise.share", "much"),
        ("gain_db", 6),
        ("gain_db", "[6, -6]"),
        ("gain_db", "[.nan, 1]"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, corpus: Path, key: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=rf"augment\.{key}") as error:
        build_perturbation(toy_recipe(tmp_path, corpus, (f"augment.{key}", value)))
    assert error.value.reason == "augment"


def test_a_noise_folder_without_audio(tmp_path: Path, corpus: Path) -> None:
    options = [("augment.noise.share", 0.5), ("augment.noise.folder", str(tmp_path / "nowhere"))]
    with pytest.raises(DataError, match="holds no audio"):
        build_perturbation(toy_recipe(tmp_path, corpus, *options))


# The split.


def test_the_train_split_steps_out_of_the_feature_cache(tmp_path: Path, corpus: Path) -> None:
    splits = prepare(toy_recipe(tmp_path, corpus, *AUGMENT)).splits
    plain = prepare(toy_recipe(tmp_path, corpus)).splits
    train, dev = splits["train"], splits["dev"]
    assert isinstance(train, AugmentedSplit)
    assert isinstance(train.table, WaveformTable)
    assert isinstance(dev.table, FeatureTable)
    assert dev.table.origin.folder == plain["dev"].table.origin.folder
    assert train.frames == plain["train"].frames
    for i in range(len(train)):  # epoch 0 is the clean speech: 16 bits were written, 16 bits are kept
        np.testing.assert_array_equal(train[i][2], plain["train"][i][2])
    seen = []
    for epoch in (1, 2):
        train.set_epoch(epoch)
        items = [train[i] for i in range(len(train))]
        assert [len(item[2]) for item in items] == train.frames
        assert [item[3] for item in items] == train.labels
        assert all(item[2].dtype == np.float16 and np.isfinite(item[2]).all() for item in items)
        seen.append([item[2] for item in items])
    assert all(a.shape != b.shape or (a != b).any() for a, b in zip(*seen, strict=True))
    assert len({len(a) - len(b) for a, b in zip(*seen, strict=True)}) > 1


def test_preparing_again_decodes_nothing(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(toy_recipe(tmp_path, corpus, *AUGMENT))
    monkeypatch.setattr(clips, "read_audio", None)
    prepare(toy_recipe(tmp_path, corpus, *AUGMENT, ("augment.speed", "[0.8]")))


def test_a_speed_that_leaves_too_few_frames_is_not_drawn(tmp_path: Path, corpus: Path) -> None:
    """60 ms a letter, 20 ms an output frame: at speed 2 some clips cannot carry their labels, and are used slower."""
    options = [("augment.speed", "[1.0, 1.5, 2.0]"), ("layers.0", "{context: {left: 1, right: 1, stride: 4}}")]
    prepared = prepare(toy_recipe(tmp_path, corpus, *options))
    train = prepared.splits["train"]
    assert isinstance(train, AugmentedSplit)
    assert set(train.allowed) == {1, 2}
    for epoch in range(1, 9):
        train.set_epoch(epoch)
        for frames, labels in zip(train.frames, train.labels, strict=True):
            assert prepared.model.acoustic.encoder.num_frames(frames) >= len(labels)


# Training.


def run(folder: Path, corpus: Path, *overrides: tuple[str, Any], output: str) -> Path:
    recipe = toy_recipe(folder, corpus, *AUGMENT, ("training.epochs", 2), *overrides)
    return train(recipe, "", folder / output, say=lambda _: None).folder


def metrics(folder: Path) -> list[dict[str, Any]]:
    times = ("seconds", "cpu_seconds", "frames_per_second", "memory_mb")
    return [{k: v for k, v in line.items() if k not in times} for line in MetricsLog.read(folder / "metrics.jsonl")]


@pytest.mark.parametrize("step", [2, 5])
def test_resume_with_augmentation_is_bit_identical(tmp_path: Path, corpus: Path, step: int) -> None:
    whole = run(tmp_path, corpus, output="whole")
    with sigterm_after(step), pytest.raises(StoppedError):
        run(tmp_path, corpus, output="stopped")
    assert len(metrics(tmp_path / "stopped")) < len(metrics(whole))
    resumed = run(tmp_path, corpus, output="stopped")
    assert metrics(resumed) == metrics(whole)
    one, two = ((folder / "model" / "model.safetensors").read_bytes() for folder in (resumed, whole))
    assert one == two


def test_epochs_differ_and_batches_keep_their_size(tmp_path: Path, corpus: Path) -> None:
    """Without learning, dropout and SpecAugment, only the waveforms can change the loss from epoch to epoch."""
    still = [("training.lr", 1e-12), ("layers", "[{linear: 8}]"), ("encoder", "none"), ("spec_augment", "null")]
    losses = {}
    for name, extra in (("on", []), ("off", [("augment.speed", "null"), ("augment.noise.share", 0)])):
        extra = extra + [("augment.gain_db", "null")] * (name == "off")
        folder = run(tmp_path, corpus, *still, *extra, output=name)
        losses[name] = [line["train"]["loss"] for line in metrics(folder) if line["type"] == "epoch"]
    assert losses["off"][0] == pytest.approx(losses["off"][1], rel=1e-5)
    assert losses["on"][0] != pytest.approx(losses["on"][1], rel=1e-3)
    sizes = []
    fit_batch = CTCBrain.fit_batch

    def measured(brain: CTCBrain, batch: Any) -> Any:
        sizes.append(batch.features.shape[0] * batch.features.shape[1])
        return fit_batch(brain, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CTCBrain, "fit_batch", measured)
        run(tmp_path, corpus, ("augment.speed", "[0.7]"), ("training.epochs", 1), output="slow")
    assert max(sizes) <= 300
