"""From a language model to decoded text by the command line: tune on dev, evaluate, transcribe, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from test_lm import drawn
from toy import make_corpus, toy_recipe

import asrkit
from asrkit.beam import BeamDecoder
from asrkit.cli import main
from asrkit.cli.decoding_options import read_settings
from asrkit.errors import DataError, RecipeError, TrustError
from asrkit.experiment import train
from asrkit.lm import estimate, read_unigrams, write_arpa
from asrkit.lm.counts import read_text
from asrkit.subwords import SentencePieceTokenizer
from asrkit.tokenizers import CharacterTokenizer
from asrkit.tuning import Clip, Trial, tune


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy run, and beside it a language model of all its sentences: `words.arpa`."""
    folder = tmp_path_factory.mktemp("toy")
    corpus = make_corpus(folder / "cv", train=24, dev=6, test=4)
    recipe = toy_recipe(folder, corpus, ("training.epochs", 10))
    train(recipe, "", folder / "run", say=lambda _: None)
    tables = [str(corpus / f"{split}.tsv") for split in ("train", "dev", "test")]
    assert main(["lm", "build", *tables, "--order", "2", "--output", str(folder / "words.arpa"), "--json"]) == 0
    return folder / "run"


def test_tune_evaluate_transcribe(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lm, output = run.parent / "words.arpa", run.parent / "tuned" / "best.json"
    words = ["tune-decoder", str(run), "--lm", str(lm), "--output", str(output), "--beam", "20"]
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    greedy, *trials = report["trials"]
    assert report["utterances"] == 6
    assert [t["decoder"] for t in report["trials"]] == ["greedy"] + ["beam"] * len(trials)
    assert len(trials) >= 12
    assert trials[0]["wer"] == min(t["wer"] for t in trials) < greedy["wer"]
    written = json.loads(output.read_text(encoding="utf-8"))
    assert written["name"] == "beam"
    assert written["options"] == {
        "lm": str(lm), "beam": 20, "lm_weight": trials[0]["lm_weight"], "word_bonus": trials[0]["word_bonus"]
    }  # fmt: skip

    assert main(["evaluate", str(run), "--split", "dev", "--decoder-options", str(output), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["wer"] == pytest.approx(trials[0]["wer"])  # the figures of the table are those of evaluate
    assert figures["decoder"]["options"]["lm_weight"] == trials[0]["lm_weight"]
    assert main(["evaluate", str(run), "--split", "dev", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["wer"] == pytest.approx(greedy["wer"])

    clip = str(next((run.parent / "cv" / "clips").iterdir()))
    assert main(["transcribe", "--model", str(run), clip, "--decoder-options", str(output)]) == 0
    text = capsys.readouterr().out.strip()
    model = asrkit.load(run, decoder=written)
    assert isinstance(model.decoder, BeamDecoder)
    assert model.transcribe(clip).text == text
    assert text
    assert set(text.split()) <= read_unigrams(lm).log_probs.keys()


def test_what_is_typed_wins_over_the_file(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run.parent / "mine.json"  # the language model lies beside it
    path.write_text('{"name": "beam", "options": {"lm": "words.arpa", "lm_weight": 9}}', encoding="utf-8")
    typed = ["--lm-weight", "0.25", "--word-bonus", "-1", "--hot-word", "ab=2", "--hot-word", "ou"]
    capsys.readouterr()
    assert main(["evaluate", str(run), "--decoder-options", str(path), *typed, "--json"]) == 0
    options = json.loads(capsys.readouterr().out)["decoder"]["options"]
    assert options == {
        "lm": str(run.parent / "words.arpa"), "lm_weight": 0.25, "word_bonus": -1.0, "hot_words": {"ab": 2.0, "ou": 5.0}
    }  # fmt: skip
    assert main(["evaluate", str(run), "--decoder.name=beam", "--decoder.options={beam: 7}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["decoder"] == {"name": "beam", "options": {"beam": 7}}


def test_a_language_model_of_the_labels_of_a_model(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--model` gives the text rules and the labels; characters are then the same thing, `--recipe` gives rules too."""
    table, output = str(run.parent / "cv" / "train.tsv"), run.parent / "labels.arpa"
    build = ["lm", "build", table, "--order", "4", "--output", str(output), "--json"]
    assert main([*build, "--model", str(run), "--unit", "labels"]) == 0
    written = output.read_bytes()
    assert main([*build, "--recipe", str(run.parent / "toy.yaml"), "--unit", "characters"]) == 0
    assert output.read_bytes() == written
    capsys.readouterr()
    assert main(["evaluate", str(run), "--split", "train", "--lm", str(output), "--lm-weight", "1", "--json"]) == 0
    searched = json.loads(capsys.readouterr().out)
    assert main(["evaluate", str(run), "--split", "train", "--json"]) == 0
    assert searched["wer"] < json.loads(capsys.readouterr().out)["wer"]


def test_pieces_of_words(tmp_path: Path) -> None:
    """SentencePiece: n-grams of its pieces, in which a word begins with the mark of the space."""
    texts = [" ".join(words) for words in drawn(60, 2, ["ana", "nada", "dan", "ba", "na"])]
    tokenizer = SentencePieceTokenizer.fit(texts, size=11)
    path = tmp_path / "pieces.arpa"
    sentences = [[tokenizer.labels[i] for i in tokenizer.encode(text)] for text in texts]
    write_arpa(estimate(read_text(sentences), 3), path)
    decoder = BeamDecoder(tokenizer, lm=path, lm_weight=1.0)
    assert not decoder.uses_lexicon
    ids = tokenizer.encode("nada ba")
    log_probs = torch.full((1, 2 * len(ids), tokenizer.size), -9.0)
    for place, label in enumerate(ids):
        log_probs[0, 2 * place, label] = log_probs[0, 2 * place + 1, 0] = 0.0
    [[found]] = decoder(log_probs.log_softmax(-1), torch.tensor([2 * len(ids)]))
    assert tokenizer.decode(found.labels) == "nada ba"
    assert [word for word, _, _ in tokenizer.word_spans(found.labels)] == ["nada", "ba"]
    with pytest.raises(RecipeError, match="--unit labels"):
        BeamDecoder(tokenizer, lexicon=_lexicon(tmp_path))


def _lexicon(folder: Path) -> Path:
    (folder / "words.txt").write_text("nada\n", encoding="utf-8")
    return folder / "words.txt"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["tune-decoder", "RUN"], 2, "give a language model"),
        (["tune-decoder", "RUN", "--lm", "nowhere.arpa"], 3, "no such file"),
        (["tune-decoder", "RUN", "--lm", "LM", "--utterances", "0"], 2, "--utterances 0"),
        (["evaluate", "RUN", "--lm", "LM", "--decoder", "greedy"], 2, "decoder 'greedy' has no option 'lm'"),
        (["evaluate", "RUN", "--decoder", "baem"], 2, "did you mean 'beam'?"),
        (["evaluate", "RUN", "--lm", "LM", "--beam", "0"], 2, "beam = 0"),
        (["evaluate", "RUN", "--hot-word", "ab=x"], 2, "WORD=NUMBER"),
        (["evaluate", "RUN", "--decoder-options", "LM"], 3, "--decoder-options"),
        (["transcribe", "--model", "RUN", "x.wav", "--lm", "RUN/resolved.yaml"], 3, "instead of \\data\\"),
    ],
)
def test_what_is_refused(words: list[str], code: int, said: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = {"RUN": str(run), "LM": str(run.parent / "words.arpa")}
    for name, place in places.items():
        words = [word.replace(name, place) for word in words]
    capsys.readouterr()
    assert main(words) == code
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1


def test_a_misspelled_key_of_decoder_options_is_no_silence(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text('{"name": "beam", "option": {}, "options": {}}', encoding="utf-8")
    with pytest.raises(DataError, match="unknown 'option' beside name and options") as error:
        read_settings(tmp_path / "d.json")
    assert error.value.reason == "decoder_options"


def test_a_model_brings_its_own_language_model_and_no_other_file(run: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(run / "model", model)
    shutil.copy(run.parent / "words.arpa", model / "lm.arpa")
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    for lm, fine in (("lm.arpa", True), ("../lm.arpa", False), (str(run.parent / "words.arpa"), False)):
        config["recipe"]["decoder"] = {"name": "beam", "options": {"lm": lm}}
        (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
        if fine:
            assert asrkit.load(model).decoder.uses_lexicon
        else:
            with pytest.raises(TrustError, match="outside"):
                asrkit.load(model)
            assert asrkit.load(model, decoder="greedy").transcribe  # what the reader says himself goes
    odd = ([1], 5, {"name": 3}, {"name": "beam", "options": [1]}, {"name": "beam", "options": {"beam": 10**9}},
           {"name": "beam", "options": {"hot_words": {"a": [1]}}})  # fmt: skip
    for settings in odd:
        config["recipe"]["decoder"] = settings
        (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
        with pytest.raises(TrustError, match="is not a name with options"):
            asrkit.load(model)


def test_a_recipe_with_an_option_that_no_decoder_has_fails_before_training(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "cv", train=4, dev=2, test=0)
    recipe = toy_recipe(tmp_path, corpus, ("data.test", "null"), ("decoder.options", "{lm_wieght: 2}"))
    with pytest.raises(RecipeError, match="no option 'lm_wieght'"):
        train(recipe, "", tmp_path / "run", say=lambda _: None)
    assert not (tmp_path / "run").exists()


def test_the_search_comes_to_the_best_of_a_grid() -> None:
    """A decoder whose errors are a bowl around (0.9, 2.1): the steps end at its lowest point that they can reach."""

    class Bowl:
        uses_lexicon = True

        def set_weights(self, lm_weight: float, word_bonus: float) -> None:
            self.at = (lm_weight, word_bonus)

    def errors(lm_weight: float, word_bonus: float) -> int:
        return round(1000 * ((lm_weight - 0.9) ** 2 + 0.3 * (word_bonus - 2.1) ** 2))

    bowl, asked = Bowl(), []
    with pytest.MonkeyPatch.context() as patch:
        from asrkit import tuning
        from asrkit.scoring import Errors

        def counted(clips: object, decoder: Bowl, tokenizer: object) -> tuple[Errors, Errors]:
            return Errors(errors(*decoder.at), 0, 0, 5000), Errors(0, 0, 0, 1)

        patch.setattr(tuning, "_errors", counted)
        trials = tune([], bowl, CharacterTokenizer("a"), asked.append)  # type: ignore[arg-type]
    assert {(t.lm_weight, t.word_bonus) for t in asked} == {(t.lm_weight, t.word_bonus) for t in trials}
    grid = [(w / 8, b / 4) for w in range(20) for b in range(-8, 20)]
    assert errors(trials[0].lm_weight, trials[0].word_bonus) == min(errors(*point) for point in grid)


def test_free_spelling_has_no_bonus_to_tune(tmp_path: Path) -> None:
    path = tmp_path / "characters.arpa"
    write_arpa(estimate(read_text(drawn(40, 1, "ab")), 2), path)
    tokenizer = CharacterTokenizer("ab")
    decoder = BeamDecoder(tokenizer, lm=path)
    clips = [Clip("1", "s", torch.randn(9, 3).log_softmax(-1), "ab")]
    trials: list[Trial] = tune(clips, decoder, tokenizer)
    assert len(trials) >= 4
    assert {trial.word_bonus for trial in trials} == {0.0}
