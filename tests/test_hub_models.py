"""`hf://OWNER/NAME`: a bundle's own files, by name, and nothing else; with a client that is not the Hub."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from toy import RATE, make_corpus, tones, toy_recipe

import asrkit
from asrkit.cli import main
from asrkit.errors import AsrkitError, StorageError
from asrkit.experiment import train


class FakeHub(types.ModuleType):
    """A client that gives the files of one folder and remembers what it was asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__("huggingface_hub")
        self.folder, self.asked = folder, list[tuple[str, str, str | None]]()

    def hf_hub_download(self, repo_id: str, filename: str, *, revision: str | None, local_dir: Path) -> str:
        self.asked.append((repo_id, filename, revision))
        source = self.folder / filename
        if not source.is_file():
            raise OSError(f"404 Client Error: {filename}\nsecond line")
        local_dir.mkdir(parents=True, exist_ok=True)
        (local_dir / filename).write_bytes(source.read_bytes())
        return str(local_dir / filename)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    recipe = toy_recipe(folder, make_corpus(folder / "cv"), ("training.epochs", 1))
    return train(recipe, "", folder / "run", say=lambda _: None).bundle


@pytest.fixture
def hub(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    folder = tmp_path / "remote"
    folder.mkdir()
    for path in bundle.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "evil.py").write_text("raise SystemExit")
    fake = FakeHub(folder)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return fake


def test_a_model_of_the_hub_is_the_model(hub: FakeHub, bundle: Path) -> None:
    clip = (tones("abe iou", 3), RATE)
    model = asrkit.load("hf://someone/es-small@v1", device="cpu")
    assert np.allclose(model.log_probs(clip), asrkit.load(bundle, device="cpu").log_probs(clip))
    assert [name for _, name, _ in hub.asked] == ["config.json", "model.safetensors", "tokens.txt"]
    assert {(repository, revision) for repository, _, revision in hub.asked} == {("someone/es-small", "v1")}
    assert sorted(path.name for path in model.bundle.path.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokens.txt",
    ]


def test_nothing_is_asked_without_the_prefix(hub: FakeHub) -> None:
    with pytest.raises(StorageError, match="not a model"):
        asrkit.load("someone/es-small")
    assert hub.asked == []


@pytest.mark.parametrize(
    "address", ["hf://", "hf://name", "hf://a/b/c", "hf://a/..", "hf://../b", "hf://a b/c", "hf://a/b@", "hf://a/b?x"]
)
def test_addresses(hub: FakeHub, address: str) -> None:
    with pytest.raises(AsrkitError) as error:
        asrkit.load(address)
    assert error.value.reason == "hub_address"
    assert hub.asked == []


def test_a_config_cannot_ask_for_other_files(hub: FakeHub) -> None:
    data = json.loads((hub.folder / "config.json").read_text())
    data["files"]["../../evil.py"] = data["files"]["evil.py"] = "0" * 64
    (hub.folder / "config.json").write_text(json.dumps(data))
    with pytest.raises(AsrkitError) as error:
        asrkit.load("hf://someone/es-small")
    assert error.value.exit_code == 7
    assert "evil.py" not in {name for _, name, _ in hub.asked}


def test_what_the_hub_does_not_give(hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    (hub.folder / "model.safetensors").unlink()
    assert main(["transcribe", "--model", "hf://someone/es-small", "x.wav"]) == 3
    said = capsys.readouterr().err
    assert said.startswith(
        "asrkit: error[hub_model]: hf://someone/es-small: model.safetensors did not come (OSError: 404"
    )
    assert said.count("\n") == 1
    (hub.folder / "config.json").write_text("[1]")
    assert main(["transcribe", "--model", "hf://someone/es-small", "x.wav"]) == 3
    assert "is no asrkit model" in capsys.readouterr().err


def test_without_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(AsrkitError, match="pip install huggingface_hub"):
        asrkit.load("hf://someone/es-small")
