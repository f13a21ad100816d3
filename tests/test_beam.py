"""The beam search against sums over all paths, with and without language model, lexicon and hot words."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_lm import Oracle

from asrkit import beam
from asrkit.beam import BeamDecoder
from asrkit.decoders import Decoder, GreedyDecoder, build_decoder
from asrkit.errors import AsrkitError, DataError, NumericError, RecipeError, TrustError
from asrkit.lm import estimate, write_arpa
from asrkit.lm.counts import read_text
from asrkit.tokenizers import CharacterTokenizer, SymbolTokenizer, Tokenizer

FRAMES = 6
TOKENIZER = CharacterTokenizer(" ab")
SENTENCES = [text.split() for text in ("a b", "ab a", "b ab", "a a b", "ab", "ba b", "a ba", "ab ab a", "b", "a b a")]
EVERYTHING: dict[str, Any] = {"beam": 100_000, "threshold": 1e6, "n_best": 12}


def noise(frames: int, size: int, seed: int, deviation: float = 1.5) -> torch.Tensor:
    """Log-probabilities (1, T', V)."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(1, frames, size, generator=generator) * deviation).log_softmax(-1)


def lm_file(folder: Path, unit: str, order: int = 3) -> tuple[Path, Oracle]:
    """A language model of SENTENCES as a file, and the same one as plain Python."""
    texts = SENTENCES if unit == "words" else [list("▁".join(words)) for words in SENTENCES]
    path = folder / f"{unit}.arpa"
    write_arpa(estimate(read_text(texts), order), path)
    return path, Oracle(texts, order)


def lm_score(oracle: Oracle, words: list[str]) -> float:
    """ln p of a sentence with its end."""
    marked = ["<s>", *words, "</s>"]
    return sum(math.log(oracle.p(marked[i], tuple(marked[:i]))) for i in range(1, len(marked)))


def sums(log_probs: torch.Tensor, key: Callable[[str], Any]) -> dict[Any, float]:
    """ln of the summed probability of all paths (V^T' of them) by `key` of their text; a key of None is left out."""
    table, total = log_probs[0].double().tolist(), defaultdict(float)
    for path in itertools.product(range(len(table[0])), repeat=len(table)):
        labels = [label for label, _ in itertools.groupby(path) if label]
        group = key(TOKENIZER.decode(labels))
        if group is not None:
            total[group] += math.exp(sum(table[t][label] for t, label in enumerate(path)))
    return {group: math.log(p) for group, p in total.items()}


def decode(decoder: Decoder, log_probs: torch.Tensor) -> list[tuple[str, float]]:
    """Texts and scores of the n-best of one utterance."""
    [found] = decoder(log_probs, torch.tensor([log_probs.shape[1]]))
    return [(TOKENIZER.decode(one.labels), one.score) for one in found]


def expect(found: list[tuple[str, float]], scores: dict[Any, float], text: Callable[[Any], str]) -> None:
    """The n-best are those of the highest scores, in their order."""
    best = sorted(scores.items(), key=lambda item: -item[1])[: len(found)]
    assert [t for t, _ in found] == [text(group) for group, _ in best]
    assert [s for _, s in found] == pytest.approx([s for _, s in best], abs=2e-3)


def tidy(text: str) -> str:
    """Free spelling gives spaces at the ends or twice no place in the output; those labellings stay apart in it."""
    return " ".join(text.split())


@pytest.mark.parametrize("seed", range(4))
def test_free_spelling_sums_over_alignments(seed: int) -> None:
    log_probs = noise(FRAMES, TOKENIZER.size, seed)
    best: dict[str, float] = {}
    for text, score in sorted(sums(log_probs, lambda text: text).items(), key=lambda item: -item[1]):
        best.setdefault(tidy(text), score)
    expect(decode(BeamDecoder(TOKENIZER, **EVERYTHING), log_probs), best, str)


@pytest.mark.parametrize("seed", range(4))
def test_free_spelling_with_a_language_model(seed: int, tmp_path: Path) -> None:
    path, oracle = lm_file(tmp_path, "characters")
    log_probs = noise(FRAMES, TOKENIZER.size, seed)
    scores = {
        text: score + 0.7 * lm_score(oracle, list(text.replace(" ", "▁")))
        for text, score in sums(log_probs, lambda text: text).items()
    }
    decoder = BeamDecoder(TOKENIZER, lm=path, lm_weight=0.7, **EVERYTHING)
    assert not decoder.uses_lexicon
    best: dict[str, float] = {}
    for text, score in sorted(scores.items(), key=lambda item: -item[1]):
        best.setdefault(tidy(text), score)
    expect(decode(decoder, log_probs), best, str)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("hot", [{}, {"ba": 2.5, "bb": 6.0}])
def test_words_of_a_lexicon(seed: int, hot: dict[str, float], tmp_path: Path) -> None:
    """Every word may have silence around it: spaces that are more or fewer than one are the same sentence."""
    path, oracle = lm_file(tmp_path, "words")
    lexicon = {"a", "b", "ab", "ba"} | hot.keys()
    log_probs = noise(FRAMES, TOKENIZER.size, seed)
    groups = sums(log_probs, lambda text: t if lexicon.issuperset(t := tuple(text.split())) else None)
    rarest = min(oracle.p(word, ()) for word in lexicon - {"bb"})

    def score(words: tuple[str, ...]) -> float:
        lm = lm_score(oracle, list(words))
        for i, word in enumerate(words):  # a hot word that the model does not know is as likely as its rarest one
            lm += max(0.0, math.log(rarest / oracle.p(word, ("<s>", *words[:i])))) if word == "bb" else 0.0
        return 0.6 * lm + 0.9 * len(words) + sum(hot.get(word, 0.0) for word in words)

    decoder = BeamDecoder(TOKENIZER, lm=path, lm_weight=0.6, word_bonus=0.9, hot_words=hot, **EVERYTHING)
    assert decoder.uses_lexicon
    expect(decode(decoder, log_probs), {words: s + score(words) for words, s in groups.items()}, " ".join)


@pytest.mark.parametrize("seed", range(3))
def test_a_lexicon_without_a_language_model(seed: int, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("ba  b a\nb\n\n", encoding="utf-8")
    log_probs = noise(FRAMES, TOKENIZER.size, seed)
    groups = sums(log_probs, lambda text: t if {"ba", "b"}.issuperset(t := tuple(text.split())) else None)
    decoder = BeamDecoder(TOKENIZER, lexicon=tmp_path / "words.txt", word_bonus=-0.5, **EVERYTHING)
    expect(decode(decoder, log_probs), {words: s - 0.5 * len(words) for words, s in groups.items()}, " ".join)


@pytest.mark.parametrize("with_lm", [False, True])
def test_hot_words_in_free_spelling_count_whole_words_only(with_lm: bool, tmp_path: Path) -> None:
    path, oracle = lm_file(tmp_path, "characters")
    log_probs = noise(FRAMES, TOKENIZER.size, 3)
    hot = {"ab": 3.0, "bab": 2.0}
    lm = {"lm": path, "lm_weight": 0.4} if with_lm else {}
    found = decode(BeamDecoder(TOKENIZER, hot_words=hot, **lm, **EVERYTHING), log_probs)
    scores = {
        text: score
        + sum(hot.get(word, 0.0) for word in text.split(" "))
        + (0.4 * lm_score(oracle, list(text.replace(" ", "▁"))) if with_lm else 0.0)
        for text, score in sums(log_probs, lambda text: text).items()
    }
    best = max(scores.items(), key=lambda item: item[1])
    assert found[0] == (tidy(best[0]), pytest.approx(best[1], abs=2e-3))
    plain = decode(BeamDecoder(TOKENIZER, **lm, **EVERYTHING), log_probs)
    assert plain[0][0] != found[0][0]  # the hot words made the difference
    assert {"ab", "bab"} & set(found[0][0].split())


def test_other_weights_are_those_of_a_new_decoder(tmp_path: Path) -> None:
    path, _ = lm_file(tmp_path, "words")
    log_probs = noise(FRAMES, TOKENIZER.size, 1)
    decoder = BeamDecoder(TOKENIZER, lm=path, **EVERYTHING)
    for weights in ((0.0, 1.0), (1.2, 0.0)):
        decoder.set_weights(*weights)
        fresh = BeamDecoder(TOKENIZER, lm=path, lm_weight=weights[0], word_bonus=weights[1], **EVERYTHING)
        assert decode(decoder, log_probs) == decode(fresh, log_probs)


def test_best_alignment_only() -> None:
    """`log_add: false` finds the best path of all, which is the greedy one."""
    log_probs = noise(30, TOKENIZER.size, 5)
    [[greedy]] = GreedyDecoder()(log_probs, torch.tensor([30]))
    [[found]] = BeamDecoder(TOKENIZER, log_add=False)(log_probs, torch.tensor([30]))
    assert found.score == pytest.approx(greedy.score, abs=1e-3)


def test_times_and_confidences_are_those_of_the_frames(tmp_path: Path) -> None:
    """Where the model is sure, the search agrees with greedy in everything, the spaces at the ends aside."""
    path, _ = lm_file(tmp_path, "words")
    text = [0, 1, 0, 2, 2, 3, 0, 0, 1, 1, 0, 3, 0, 1]  # blank, space, a a b, space, b, space
    log_probs = torch.full((1, len(text), 4), -12.0)
    log_probs[0, range(len(text)), text] = 0.0
    log_probs = log_probs.log_softmax(-1)
    [[greedy]] = GreedyDecoder()(log_probs, torch.tensor([len(text)]))
    assert TOKENIZER.decode(greedy.labels) == " ab b "
    for options in ({}, {"lm": path, "lm_weight": 0.3}):
        [[found]] = BeamDecoder(TOKENIZER, **options)(log_probs, torch.tensor([len(text)]))
        assert TOKENIZER.decode(found.labels) == "ab b"
        for key in ("labels", "starts", "ends", "confidences"):
            assert getattr(found, key) == getattr(greedy, key)[1:-1], key


def test_neighbours_and_padding_change_nothing(tmp_path: Path) -> None:
    path, _ = lm_file(tmp_path, "words")
    decoder = BeamDecoder(TOKENIZER, lm=path)
    batch = torch.cat([noise(20, 4, seed) for seed in range(3)])
    lengths = torch.tensor([20, 7, 0])
    together = decoder(batch, lengths)
    assert together[2][0].labels == ()
    for i in (1, 0):
        assert decoder(batch[i : i + 1, : lengths[i]], lengths[i : i + 1]) == together[i : i + 1]


@pytest.mark.parametrize("unit", ["words", "characters"])
def test_long_audio_is_settled_piece_by_piece(unit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = lm_file(tmp_path, unit)
    decoder = BeamDecoder(TOKENIZER, lm=path, hot_words={"ba": 1.0})
    log_probs, length = noise(600, 4, 9, 4.0), torch.tensor([600])
    monkeypatch.setattr(beam, "STEP", 10_000)
    [[whole]] = decoder(log_probs, length)
    for step, back in ((500, 250), (100, 40), (599, 200)):
        monkeypatch.setattr(beam, "STEP", step)
        monkeypatch.setattr(beam, "BACK", back)
        [[pieces]] = decoder(log_probs, length)
        assert vars(pieces) == {**vars(whole), "score": pytest.approx(whole.score, abs=1e-2)}
    assert len(whole.labels) > 100


def test_impossible_labels_and_nan() -> None:
    log_probs = noise(8, 4, 0)
    log_probs[0, :, 2] = -math.inf
    [[found]] = BeamDecoder(TOKENIZER)(log_probs, torch.tensor([8]))
    assert 2 not in found.labels
    assert math.isfinite(found.score)
    log_probs[0, 5, 1] = math.nan
    with pytest.raises(NumericError, match="NaN"):
        BeamDecoder(TOKENIZER)(log_probs, torch.tensor([8]))
    assert BeamDecoder(TOKENIZER)(log_probs, torch.tensor([5]))[0]  # beyond the length it says nothing


def test_a_word_that_no_frame_is_left_for(tmp_path: Path) -> None:
    """One frame that says a, where only `ab` is a word: what was heard comes out, with a finite score."""
    (tmp_path / "words.txt").write_text("ab\n", encoding="utf-8")
    log_probs = torch.tensor([[[-9.0, -9.0, 0.0, -9.0]]]).log_softmax(-1)
    decoder = BeamDecoder(TOKENIZER, lexicon=tmp_path / "words.txt", threshold=5.0)
    [[found]] = decoder(log_probs, torch.tensor([1]))
    assert TOKENIZER.decode(found.labels) == "a"
    assert abs(found.score) < 1


def test_labels_that_are_words(tmp_path: Path) -> None:
    """Phones: a language model of them is one of labels, and there is no space to spell words with."""
    tokenizer = SymbolTokenizer(["vcl", "d", "r"])
    path = tmp_path / "phones.arpa"
    write_arpa(estimate(read_text([["vcl", "d"], ["d", "r"], ["vcl", "d", "r"]]), 2), path)
    decoder = BeamDecoder(tokenizer, lm=path, lm_weight=2.0)
    assert not decoder.uses_lexicon
    log_probs = torch.tensor([[[0.0, 3, 0, 0], [3, 0, 0, 0], [0, 0, 0.1, 0]]]).log_softmax(-1)
    [[found]] = decoder(log_probs, torch.tensor([3]))
    assert tokenizer.decode(found.labels) == "vcl d"
    words, _ = lm_file(tmp_path, "words")
    with pytest.raises(RecipeError, match="no label for the space"):
        BeamDecoder(tokenizer, lm=words)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"beam": 0}, RecipeError, "beam = 0; possible: a whole number from 1"),
        ({"beam": 10.5}, RecipeError, "beam = 10.5"),
        ({"lm_weight": -1}, RecipeError, "lm_weight = -1"),
        ({"lm_weight": math.nan}, RecipeError, "lm_weight = nan"),
        ({"threshold": "wide"}, RecipeError, "threshold = 'wide'"),
        ({"word_bonus": 1.0}, RecipeError, "free spelling"),
        ({"hot_words": ["a b"]}, RecipeError, "not one word"),
        ({"hot_words": ["año"]}, RecipeError, "'ñ'"),
        ({"hot_words": {"a": "much"}}, RecipeError, "hot_words.a = 'much'"),
        ({"lm": "nowhere.arpa"}, DataError, "no such file"),
        ({"lexicon": "nowhere.txt"}, DataError, "no such file"),
        ({"baem": 3}, RecipeError, "did you mean 'beam'?"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], error: type[AsrkitError], said: str) -> None:
    with pytest.raises(error) as caught:
        build_decoder({"name": "beam", "options": options}, TOKENIZER)
    assert said in str(caught.value)


def test_language_models_that_do_not_fit(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.arpa"
    write_arpa(estimate(read_text([["HOLA", "MUNDO"]]), 2), foreign)
    with pytest.raises(DataError, match="none of its 2 words can be written"):
        BeamDecoder(TOKENIZER, lm=foreign)
    for order, possible in ((7, "--order 6"), (1, "--order 2")):
        path = tmp_path / f"{order}.arpa"
        write_arpa(estimate(read_text([["a"] * 9]), order), path)
        with pytest.raises(RecipeError, match=possible):
            BeamDecoder(TOKENIZER, lm=path)


class Guest(Decoder):
    """A plugin with an option of its own."""

    asrkit_api = 1
    files = ("table",)

    def __init__(self, tokenizer: Tokenizer, table: str | None = None) -> None:
        self.tokenizer, self.table = tokenizer, table


def test_decoders_get_tokenizer_and_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from asrkit import registry

    monkeypatch.setattr(registry, "_registered", {})
    registry.register("decoders", "guest")(Guest)
    made = build_decoder({"name": "guest", "options": {"table": "x"}}, TOKENIZER)
    assert isinstance(made, Guest)
    assert (made.tokenizer, made.table) == (TOKENIZER, "x")
    assert build_decoder(made, TOKENIZER) is made
    assert isinstance(build_decoder("greedy", TOKENIZER), GreedyDecoder)
    with pytest.raises(RecipeError, match="no option 'lm'; possible: no options at all"):
        build_decoder({"name": "greedy", "options": {"lm": "x"}}, TOKENIZER)
    with pytest.raises(RecipeError, match=r"'option'.*did you mean 'options'"):
        build_decoder({"name": "beam", "option": {"beam": 5}}, TOKENIZER)
    inside = build_decoder({"name": "guest", "options": {"table": "x"}}, TOKENIZER, inside=tmp_path)
    assert isinstance(inside, Guest)
    assert inside.table == tmp_path / "x"
    for path in ("/etc/passwd", "../x", "a/../../x"):
        with pytest.raises(TrustError, match="outside"):
            build_decoder({"name": "guest", "options": {"table": path}}, TOKENIZER, inside=tmp_path)
