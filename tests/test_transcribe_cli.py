"""`asrkit transcribe` loses no text, calls silence silence, and finds encoders that live in a file."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
from toy import RATE, RECIPE, make_corpus, tones, toy_recipe

from asrkit import registry
from asrkit.cli import main
from asrkit.cli.transcribe_outputs import targets_of
from asrkit.experiment import train

PLUGIN = """
import asrkit
from asrkit import registry


@asrkit.register_encoder("from_a_file")
class FromAFile(registry.load("encoders", "none")):
    pass
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    recipe = toy_recipe(folder, make_corpus(folder / "cv"), ("training.epochs", 1))
    return train(recipe, "", folder / "run", say=lambda _: None).bundle


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Three clips named x, a clip named y, and a page that is no clip."""
    for seed, name in enumerate(("a/x.wav", "b/x.wav", "a/x.flac", "a/deep/y.wav")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / name, tones("abe", seed), RATE)
    (tmp_path / "b" / "page.mp3").write_text("<html>")
    return tmp_path


@pytest.fixture
def no_file_plugins() -> Iterator[None]:
    yield
    registry._registered.pop(("encoders", "from_a_file"), None)


def outputs(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_every_input_has_its_own_output(model: Path, clips: Path) -> None:
    """Each record says which input it is of, so a lost one shows; folders are mirrored."""
    out = clips / "out"
    command = ["transcribe", "--model", str(model), "--format", "json", "--output-dir", str(out)]
    assert main([*command, str(clips / "a"), str(clips / "b")]) == 3
    found = {name: json.loads((out / name).read_text()) for name in outputs(out)}
    assert {name: Path(record["source"]).relative_to(clips).as_posix() for name, record in found.items()} == {
        "x.wav.json": "a/x.wav",
        "x.wav.2.json": "b/x.wav",
        "x.flac.json": "a/x.flac",
        "deep/y.json": "a/deep/y.wav",
        "page.json": "b/page.mp3",
    }
    assert {name: record["status"] for name, record in found.items() if record["status"] != "ok"} == {
        "page.json": "not_audio"
    }


def test_no_text_file_for_what_was_not_transcribed(model: Path, clips: Path) -> None:
    out = clips / "out"
    command = ["transcribe", "--model", str(model), "--output-dir", str(out)]
    assert main([*command, str(clips / "b"), str(clips / "missing.wav")]) == 3
    assert outputs(out) == ["x.txt"]


def test_targets() -> None:
    """Alone: the stem. With a twin: the suffix too. Still not alone: a number. Never the same twice."""

    def names(*places: str) -> list[str]:
        return [str(target) for target in targets_of([Path(place) for place in places], "txt")]

    assert names("x.mp3", "y.mp3", "deep/x.mp3") == ["x.txt", "y.txt", "deep/x.txt"]
    assert names("x.mp3", "x.wav") == ["x.mp3.txt", "x.wav.txt"]
    assert names("x.mp3", "x.mp3", "x.mp3") == ["x.mp3.txt", "x.mp3.2.txt", "x.mp3.3.txt"]
    assert names("X.mp3", "x.mp3") == ["X.mp3.txt", "x.mp3.2.txt"]  # one file on some file systems
    assert names("x.mp3.wav", "x.mp3", "x.wav") == ["x.mp3.txt", "x.mp3.2.txt", "x.wav.txt"]
    many = names(*["x.mp3", "x.mp3.2.wav", "x.wav"] * 50)
    assert len(set(many)) == len(many) == 150


def test_targets_take_linear_time() -> None:
    """Counted, not timed: how often a path is asked for its parts may not grow with the square of the inputs."""
    calls = 0

    class Counting(type(Path())):  # type: ignore[misc]
        def with_name(self, name: str) -> Path:
            nonlocal calls
            calls += 1
            return Path(super().with_name(name))

    targets_of([Counting("same.mp3") for _ in range(500)], "txt")
    assert calls <= 4 * 500


def test_output_dir_that_is_a_file(model: Path, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["transcribe", "--model", str(model), str(clips / "a"), "--output-dir", str(clips / "b" / "page.mp3")]
    assert main(command) == 5
    error = capsys.readouterr().err
    assert error.startswith("asrkit: error[storage]: ")
    assert error.count("\n") == 1


def test_unknown_device(model: Path, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", "--model", str(model), str(clips / "a"), "--device", "nonsense"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("asrkit: error[device]: device 'nonsense'")
    assert error.count("\n") == 1


def test_a_model_whose_encoder_is_in_a_file(
    clips: Path, capsys: pytest.CaptureFixture[str], no_file_plugins: None
) -> None:
    """Trained with --plugin, it is used with --plugin; without it the error says so."""
    (clips / "mine.py").write_text(PLUGIN)
    (clips / "toy.yaml").write_text(RECIPE)
    plugin, run = ["--plugin", str(clips / "mine.py")], clips / "run"
    corpus = make_corpus(clips / "cv")
    settings = [f"--data.root={corpus}", f"--data.cache={clips / 'cache'}", "--training.epochs=1"]
    command = ["train", str(clips / "toy.yaml"), "--encoder=from_a_file", "--output", str(run)]
    assert main([*command, *plugin, *settings]) == 0
    then = capsys.readouterr().out
    assert f"asrkit evaluate {run} {shlex.join(plugin)}\n" in then  # what it says to type next works as it stands
    assert f"asrkit transcribe --model {run / 'model'} {shlex.join(plugin)} CLIP..." in then
    clip = str(clips / "a" / "x.wav")
    for verb in (["transcribe", "--model", str(run), clip], ["evaluate", str(run)]):
        registry._registered.pop(("encoders", "from_a_file"))  # as in a process of its own
        capsys.readouterr()
        assert main(verb) == 7
        assert "--plugin FILE.py" in capsys.readouterr().err
        assert main([*verb, *plugin]) == 0, capsys.readouterr().err
