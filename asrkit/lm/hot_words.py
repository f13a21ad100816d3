"""Hot words: a bonus in nats for words that the speaker is known to say, on top of any language model.

Flashlight asks a Python object for each score then, which costs microseconds; imported only where there are hot words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flashlight.lib.text.decoder import LM


class HotWords(LM):  # type: ignore[misc]
    """For a search over whole words: the scores of `lm`, and `bonus[index]` more for each hot word.

    bonus: in the unit of the scores of `lm`. floor: what a hot word gets at least that `lm` does not know; the score of
    <unk> would outweigh any bonus.
    """

    def __init__(self, lm: Any, bonus: Mapping[int, float], floor: Mapping[int, float]) -> None:
        super().__init__()
        self.lm, self.bonus, self.floor = lm, dict(bonus), dict(floor)

    def start(self, start_with_nothing: bool) -> Any:
        """The state before the first word."""
        return self.lm.start(start_with_nothing)

    def score(self, state: Any, index: int) -> tuple[Any, float]:
        """The state after a word, and its score."""
        after, score = self.lm.score(state, index)
        if index in self.bonus:
            score = max(score, self.floor.get(index, score)) + self.bonus[index]
        return after, score

    def finish(self, state: Any) -> tuple[Any, float]:
        """The score of the end of the sentence."""
        return self.lm.finish(state)


class HotSpellings(LM):  # type: ignore[misc]
    """For free spelling: each label of a hot word brings its share of the bonus, which is taken back where the word
    goes on in another way or is not finished.

    spellings: labels of each hot word with its bonus; space: the label between words.
    """

    def __init__(self, lm: Any, spellings: Sequence[tuple[list[int], float]], space: int) -> None:
        super().__init__()
        self.lm, self.space = lm, space
        self.root: dict[Any, Any] = {}
        for labels, bonus in spellings:
            node = self.root
            for place, label in enumerate(labels, start=1):
                node = node.setdefault(label, {})
                node["paid"] = max(node.get("paid", 0.0), bonus * place / len(labels))
            node["word"] = max(node.get("word", 0.0), bonus)
        self.places: dict[Any, Any] = {}

    def start(self, start_with_nothing: bool) -> Any:
        """The state before the first label; what is known of states of the sentence before is forgotten."""
        state = self.lm.start(start_with_nothing)
        self.places = {state: self.root}
        return state

    def score(self, state: Any, label: int) -> tuple[Any, float]:
        """The state after a label, and its score."""
        after, score = self.lm.score(state, label)
        node = self.places.get(state)
        paid = node.get("paid", 0.0) if node else 0.0
        if label == self.space:
            following: dict[Any, Any] | None = self.root
            kept = node.get("word", 0.0) if node else 0.0
        else:
            following = node.get(label) if node is not None else None
            kept = following["paid"] if following else 0.0
        if following is not None:
            self.places[after] = following
        return after, score + kept - paid

    def finish(self, state: Any) -> tuple[Any, float]:
        """The score of the end of the sentence, where an unfinished hot word gives back what it got."""
        after, score = self.lm.finish(state)
        node = self.places.get(state) or {}
        return after, score + node.get("word", 0.0) - node.get("paid", 0.0)
