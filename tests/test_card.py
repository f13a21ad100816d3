"""The model card says what the bundle and the run say: data, hashes, norms, scores with intervals, licence, limits."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
from toy import make_corpus, toy_recipe

from asrkit.bundle import load_bundle
from asrkit.bundle.card import model_card
from asrkit.cli import main
from asrkit.experiment import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return trained(folder, make_corpus(folder / "cv"))


def trained(folder: Path, corpus: Path) -> Path:
    quiet = [(f"training.{key}", 25) for key in ("epochs", "evaluate_every", "checkpoint_every")]
    recipe = toy_recipe(folder, corpus, *quiet, ("data.licence", "CC0-1.0"))
    return train(recipe, "", folder / "run", say=lambda _: None).folder


def sections(run: Path) -> dict[str, str]:
    text = (run / "model" / "README.md").read_text(encoding="utf-8")
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def rows(text: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in cells[2:]}


def test_the_card_says_what_the_config_says(run: Path) -> None:
    card, config = sections(run), json.loads((run / "model" / "config.json").read_text())
    assert list(card)[1:] == ["Scores", "Normalization", "Data", "Files", "Licence", "Limits"]
    assert card[""].startswith("---\nlibrary_name: asrkit\n")
    assert "language: es\n---\n\n# toy with sequence_batch_norm" in card[""]
    data = rows(card["Data"])
    assert list(data) == ["train", "dev"]
    for split, count in (("train", 12), ("dev", 4)):
        assert data[split][0] == str(count)
        assert data[split][2] == "3"
        assert data[split][3].strip("`") == config["splits"][split]
        assert 0 < float(data[split][1]) < 0.01
    for file in ("model.safetensors", "tokens.txt"):
        assert f"`{file}`: sha256 `{hashlib.sha256((run / 'model' / file).read_bytes()).hexdigest()}`" in card["Files"]
    assert "`sequence_batch_norm` of asrkit 0.1.0 (eps 1e-05, affine True, momentum 0.1" in card["Normalization"]
    assert "CMVN mode utterance, std True" in card["Normalization"]
    assert "rules `spanish`; characters, 35 labels" in card["Normalization"]
    assert card["Licence"].strip().startswith("Of the recordings: CC0-1.0.")
    assert "clips of up to 20 s" in card["Limits"]
    assert "12 at 8000 Hz" in card["Data"]
    assert model_card(config) == (run / "model" / "README.md").read_text(encoding="utf-8")


def test_scores_are_those_of_evaluate_and_test_is_added(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Dev when training ends, test when it is evaluated; what people have added stays, and the model still loads."""
    assert list(rows(sections(run)["Scores"])) == ["dev"]
    card = run / "model" / "README.md"
    card.write_text(card.read_text(encoding="utf-8") + "\nMine: ñ.\n", encoding="utf-8")
    at_first = rows(sections(run)["Scores"])["dev"]
    for split in ("dev", "test"):
        assert main(["evaluate", str(run), "--split", split, "--json"]) == 0
        figures = json.loads(capsys.readouterr().out)
        row = rows(sections(run)["Scores"])[split]
        low, high = figures["cer_interval"]
        assert row[0] == f"{figures['cer']:.2%} [{low:.2%}, {high:.2%}]"
        low, high = figures["wer_interval"]
        assert row[1] == f"{figures['wer']:.2%} [{low:.2%}, {high:.2%}]"
        assert row[2] == "4, 3"
        assert row[3].strip("`") == figures["split_hash"][:12]
        if split == "dev":
            assert row == at_first
            assert "`asrkit evaluate RUN` adds the test split" in sections(run)["Scores"]
    assert "adds the test split" not in sections(run)["Scores"]
    assert "bootstrap over speakers" in sections(run)["Scores"].replace("\n", " ")
    assert card.read_text(encoding="utf-8").endswith("\nMine: ñ.\n")
    assert list(load_bundle(run / "model").config["scores"]) == ["dev", "test"]
    scored = rows(sections(run)["Scores"])
    assert trained(run.parent, run.parent / "cv") == run  # a finished run that is started again
    assert rows(sections(run)["Scores"]) == scored


def test_a_card_of_less_says_so(run: Path) -> None:
    """An average without scores, frame-wise statistics, nothing known of the data."""
    config = json.loads((run / "model" / "config.json").read_text())
    for key in ("scores", "data", "licence", "source_rates", "longest_seconds"):
        config.pop(key, None)
    config |= {"average": {"steps": [7, 9], "recomputed": False}}
    config["encoder"]["name"] = "frame_batch_norm"
    config["recipe"]["defects"] = ["normal_biases"]
    text = model_card(config)
    for said in (
        "the average of the weights after updates 7, 9; statistics of norms averaged by the frames",
        "Not scored yet.",
        "That of the recordings was not stated",
        "sample rates of its training clips are unknown",
        "Steps beyond the 1024th of a norm share their statistics",
        "Trained with faults on purpose: normal_biases",
    ):
        assert said in text
