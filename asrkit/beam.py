"""Beam search over label sequences with a language model, on flashlight-text (Kahn et al., ICML 2022).

Of the labellings y of the log-probabilities x it looks for the one with the highest

    ln p_CTC(y | x) + lm_weight ln p_LM(y) + word_bonus |words of y| + the weights of its hot words

where p_CTC sums over alignments as far as they stay in the beam (Hannun et al. 2014, "First-pass large vocabulary
continuous speech recognition using bi-directional recurrent DNNs"; `log_add: false`: the best alignment only).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asrkit.ctc import BLANK
from asrkit.decoders import Decoder, Hypothesis, collapse
from asrkit.errors import NumericError, RecipeError
from asrkit.lm.counts import SPECIAL, UNK
from asrkit.lm.kenlm import flashlight, lm_words, load_kenlm
from asrkit.lm.lexicon import check_hot_words, read_lexicon, space_label, spelling_tree, spellings
from asrkit.tokenizers import SPACE_MARK, Tokenizer

LN10 = math.log(10)  # language models are in log10, the search is in nats
NEVER = -1e5  # for -inf, which flashlight would turn into NaN
HOT_WEIGHT = 5.0
STEP, BACK = 500, 250  # frames searched between settlements, and left open then


class BeamDecoder(Decoder):
    """Beam search with a lexicon, or with free spelling.

    lm: an ARPA or KenLM file. One of words limits the output to its words; one whose entries are labels of the model
    (`asrkit lm build --unit characters`) leaves the spelling free. lexicon: a file of the words to write, instead of
    those of `lm`. lm_weight, word_bonus (nats per word, of a lexicon only): `asrkit tune-decoder` finds them on dev.
    beam: hypotheses kept per frame; a label sequence that ends in a blank and
    the same one that does not are two. threshold: nats below the best at which one is dropped. token_beam: the best
    labels of a frame that are tried. hot_words: words, or words with their weights in nats (default 5).
    n_best: how many hypotheses are returned at most.
    """

    asrkit_api = 1
    files = ("lm", "lexicon")

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        lm: str | Path | None = None,
        lexicon: str | Path | None = None,
        lm_weight: float = 0.5,
        word_bonus: float = 0.0,
        beam: int = 100,
        threshold: float = 15.0,
        token_beam: int = 40,
        hot_words: Mapping[str, float] | Sequence[str] | None = None,
        n_best: int = 1,
        log_add: bool = True,
    ) -> None:
        _check(beam=beam, token_beam=token_beam, n_best=n_best, threshold=threshold, lm_weight=lm_weight)
        _check(word_bonus=word_bonus)
        self.tokenizer, self.n_best, self.log_add = tokenizer, n_best, log_add
        self.beam, self.threshold, self.token_beam = beam, threshold, token_beam
        self.hot_words = _hot_words(hot_words)
        check_hot_words(self.hot_words, tokenizer)
        self._space = space_label(tokenizer)
        self._lock = threading.Lock()  # the search keeps its beams in the object
        flashlight("decoder")
        words = None if lm is None else lm_words(Path(lm))
        self.uses_lexicon = lexicon is not None or (words is not None and not self._are_labels(words))
        self.has_lm = lm is not None
        if self.uses_lexicon:
            listed = read_lexicon(Path(lexicon)) if lexicon is not None else list(words or ())
            self._with_words(listed, words, lm, str(lexicon if lexicon is not None else lm))
        else:
            written = [SPACE_MARK if label == " " else label for label in tokenizer.labels]
            self._lm = flashlight("decoder").ZeroLM() if lm is None else load_kenlm(Path(lm), written)
        self.set_weights(lm_weight, word_bonus)

    def set_weights(self, lm_weight: float, word_bonus: float) -> None:
        """Other weights for the same language model and lexicon.

        Raises RecipeError (`decoder_option`) for a word bonus with free spelling, where flashlight has none.
        """
        if word_bonus and not self.uses_lexicon:
            raise RecipeError(
                f"word_bonus = {word_bonus:g} with free spelling",
                possible="0, or a language model of words or a lexicon",
                reason="decoder_option",
            )
        self.lm_weight, self.word_bonus = lm_weight, word_bonus
        decoder = flashlight("decoder")
        unit = lm_weight * LN10 if self.has_lm and lm_weight else 1.0  # nats per unit of the scores that it asks for
        options = {
            "beam_size": self.beam,
            "beam_size_token": min(self.token_beam, self.tokenizer.size),
            "beam_threshold": self.threshold,
            "lm_weight": unit,
            "sil_score": 0.0,
            "log_add": self.log_add,
            "criterion_type": decoder.CriterionType.CTC,
        }
        lm = self._heated(self._lm if lm_weight else decoder.ZeroLM(), unit)
        # The search begins as if this label had been said: with words a space at the beginning is none then.
        silence = self._space or BLANK if self.uses_lexicon else BLANK
        if self.uses_lexicon:
            options |= {"word_score": word_bonus, "unk_score": -math.inf}
            known = self._scores if lm_weight else dict.fromkeys(self._scores, 0.0)
            scores = [score + self.hot_words.get(word, 0.0) / unit for word, score in known.items()]
            tree = spelling_tree(list(self._spelled.values()), scores, self.tokenizer.size, silence)
            unknown = len(self._spelled)
            self._search = decoder.LexiconDecoder(
                decoder.LexiconDecoderOptions(**options), tree, lm, silence, BLANK, unknown, [], False
            )
        else:
            self._search = decoder.LexiconFreeDecoder(
                decoder.LexiconFreeDecoderOptions(**options), lm, silence, BLANK, []
            )
        self._kept = lm  # the search holds a bare reference to it

    def __call__(self, log_probs: Tensor, lengths: Tensor) -> list[list[Hypothesis]]:
        """Log-probabilities (B, T', V) and lengths (B,) -> up to `n_best` hypotheses each, the best first.

        Raises NumericError for NaN among the real frames.
        """
        log_probs = log_probs.detach().float().cpu()
        return [self._decode(log_probs[i, :length]) for i, length in enumerate(lengths.tolist())]

    def _decode(self, log_probs: Tensor) -> list[Hypothesis]:
        frames, size = log_probs.shape
        if not frames:
            return [Hypothesis((), 0.0, (), (), ())]
        if torch.isnan(log_probs).any():
            raise NumericError("log-probabilities with NaN cannot be decoded", fix="see `asrkit diagnose`")
        real = log_probs.clamp(min=NEVER)
        given = real
        if self.uses_lexicon:  # spellings end in a space, the last one too: give it a frame for that, at no cost
            end = torch.full((1, size), NEVER)
            end[0, self._space or BLANK] = 0.0
            given = torch.cat([real, end])
        with self._lock:
            begun, before, results = self._searched(given.contiguous())
        found: dict[tuple[int, ...], Hypothesis] = {}
        for result in results:
            path = torch.tensor([*begun, *result.tokens[1:]][:frames])
            hypothesis = self._hypothesis(path, real.gather(1, path[:, None])[:, 0], before + result.score)
            found.setdefault(hypothesis.labels, hypothesis)
            if len(found) == self.n_best:
                break
        return list(found.values())

    def _searched(self, given: Tensor) -> tuple[list[int], float, list[Any]]:
        """The path that is settled, its score, and the ways on from there, the best first.

        In free spelling flashlight keeps every label that it has tried, megabytes for a second of audio. What lies BACK
        frames behind is settled by the best hypothesis of now, and forgotten. With a lexicon it tries few, and its
        score would be lost.
        """
        frames, size = given.shape
        path: list[int] = []
        score = 0.0
        search = self._search
        search.decode_begin()
        for start in range(0, frames, STEP):
            some = given[start : start + STEP]
            search.decode_step(some.data_ptr(), len(some), size)
            if start + STEP < frames and not self.uses_lexicon:
                path += search.get_best_hypothesis(BACK).tokens[1:]
                best = search.get_best_hypothesis(0).score
                search.prune(BACK)
                score += best - search.get_best_hypothesis(0).score  # it starts from 0 again
        search.decode_end()
        return path, score, search.get_all_final_hypothesis()

    def _hypothesis(self, path: Tensor, best: Tensor, score: float) -> Hypothesis:
        """A path (T',) without the spaces that part no words: the search may begin and end with them."""
        one = collapse(path, best)
        score = score - NEVER if score < NEVER / 2 else score  # no word was finished: no frame for a space at the end
        kept: list[int] = []
        for i, label in enumerate(one.labels):
            if label != self._space or (kept and one.labels[kept[-1]] != self._space):
                kept.append(i)
        if kept and one.labels[kept[-1]] == self._space:
            kept.pop()
        labels, starts, ends = (tuple(values[i] for i in kept) for values in (one.labels, one.starts, one.ends))
        return Hypothesis(labels, score, starts, ends, tuple(one.confidences[i] for i in kept))

    def _are_labels(self, words: Mapping[str, float]) -> bool:
        written = {SPACE_MARK if label == " " else label for label in self.tokenizer.labels}
        return written.issuperset(word for word in words if word not in SPECIAL)

    def _with_words(
        self, listed: list[str], words: Mapping[str, float] | None, lm: str | Path | None, source: str
    ) -> None:
        self._spelled = spellings(dict.fromkeys([*listed, *self.hot_words]), self.tokenizer, source)
        entries = list(self._spelled)
        if lm is None:
            self._lm = flashlight("decoder").ZeroLM()
            self._scores = dict.fromkeys(entries, 0.0)
            self._floor: dict[str, float] = {}
            return
        self._lm = load_kenlm(Path(lm), [*entries, UNK])
        if words is None:  # a KenLM binary: what it says of each word at the beginning
            start = self._lm.start(False)
            self._scores = {word: self._lm.score(start, i)[1] for i, word in enumerate(entries)}
            self._floor = {}
            return
        rarest = min(value for word, value in words.items() if word not in SPECIAL)
        unknown = words.get(UNK, rarest)
        self._floor = {word: rarest for word in self.hot_words if word not in words}
        self._scores = {word: words.get(word, self._floor.get(word, unknown)) for word in entries}

    def _heated(self, lm: Any, unit: float) -> Any:
        """The language model, with the hot words on top where there are some."""
        if not self.hot_words:
            return lm
        from asrkit.lm.hot_words import HotSpellings, HotWords

        bonus = {word: weight / unit for word, weight in self.hot_words.items()}
        if not self.uses_lexicon:
            spelled = [(self.tokenizer.encode(word), value) for word, value in bonus.items()]
            return HotSpellings(lm, spelled, -1 if self._space is None else self._space)
        places = {word: i for i, word in enumerate(self._spelled)}
        floor = {places[word]: value for word, value in self._floor.items()}
        return HotWords(lm, {places[word]: value for word, value in bonus.items()}, floor)


def _hot_words(given: Mapping[str, float] | Sequence[str] | None) -> dict[str, float]:
    if given is None or isinstance(given, Mapping):
        hot = dict(given or {})
    else:
        hot = dict.fromkeys([given] if isinstance(given, str) else given, HOT_WEIGHT)
    for word, weight in hot.items():
        _check(**{f"hot_words.{word}": weight})
    return hot


def _check(**options: Any) -> None:
    """RecipeError (`decoder_option`) for a number that its option cannot be."""
    for key, value in options.items():
        whole = key in ("beam", "token_beam", "n_best")
        right = (
            isinstance(value, int if whole else int | float) and not isinstance(value, bool) and math.isfinite(value)
        )
        low = 1 if whole else 0 if key in ("threshold", "lm_weight") else -math.inf
        if not right or value < low:
            possible = f"a {'whole ' if whole else ''}number{'' if low == -math.inf else f' from {low}'}"
            raise RecipeError(f"decoder option {key} = {value!r}", possible=possible, reason="decoder_option")
