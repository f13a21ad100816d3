"""Which utterances are used and why the others are not: exclusions with reasons, alphabet policies, hashes, leakage.

Nothing is dropped silently: every exclusion is a line in a `DataReport`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asrkit.corpus.data_report import REASONS, DataReport
from asrkit.errors import DataError, RecipeError, nearest
from asrkit.tokenizers import name_symbols

if TYPE_CHECKING:
    from asrkit.corpus import Utterance
    from asrkit.text import TextRules
    from asrkit.tokenizers import Tokenizer

__all__ = [
    "POLICIES",
    "REASONS",
    "DataReport",
    "Leakage",
    "compare_hashes",
    "leakage",
    "normalized",
    "select_texts",
    "split_hash",
]

POLICIES = ("error", "drop", "map")


def select_texts(
    utterances: Iterable[Utterance],
    rules: TextRules,
    tokenizer: Tokenizer,
    policy: str,
    mapping: Mapping[str, str] | None,
    report: DataReport,
) -> list[tuple[Utterance, str]]:
    """The utterances whose normalized text can be encoded, each with that text.

    The declared replacements of `mapping` are made first (see `normalized`), with any policy, and counted in the
    report. Empty texts are excluded (`empty_text`). What is still outside the alphabet: with `error` and `map`, a
    DataError that names and counts the characters; with `drop`, the utterance is excluded (`unknown_character`) and
    its characters listed.
    """
    if policy not in POLICIES:
        raise RecipeError(
            f"policy {policy!r} for unknown characters", possible=nearest(policy, POLICIES), reason="policy"
        )
    mapping = dict(mapping or {})
    if policy == "map" and not mapping:
        raise RecipeError(
            "policy 'map' without replacements", fix='give them, such as {"%": " por ciento"}', reason="policy"
        )
    selected: list[tuple[Utterance, str]] = []
    outside: list[tuple[Utterance, str, list[str]]] = []
    replaced: Counter[str] = Counter()
    for utterance in utterances:
        text = normalized(utterance.text, rules, mapping, replaced)
        unknown = tokenizer.unknown(text)
        if not text:
            report.exclude(utterance, "empty_text", sentence=utterance.text)
        elif unknown:
            outside.append((utterance, text, unknown))
        else:
            selected.append((utterance, text))
    for symbol, count in sorted(replaced.items()):
        report.note("mapped", symbol=symbol, replacement=mapping[symbol], count=count)
    if outside and policy != "drop":
        raise _outside_error(outside, len(selected) + len(outside), policy)
    for utterance, text, unknown in outside:
        report.exclude(utterance, "unknown_character", characters=sorted(set(unknown)), text=text)
    return selected


def normalized(
    text: str, rules: Callable[[str], str], mapping: Mapping[str, str], replaced: Counter[str] | None = None
) -> str:
    """The text after the rules and the declared replacements, which are made in the normalized text.

    So `{"à": "a"}` reaches "À" too, and `{"%": " por ciento"}` leaves single spaces. `replaced` counts them.
    """
    text = rules(text)
    if not mapping:
        return text
    for symbol in sorted(mapping, key=lambda s: (-len(s), s)):  # longer ones first, whatever the recipe's order
        if symbol in text:
            if replaced is not None:
                replaced[symbol] += text.count(symbol)
            text = text.replace(symbol, mapping[symbol])
    return rules(text)


def _outside_error(outside: list[tuple[Utterance, str, list[str]]], total: int, policy: str) -> DataError:
    utterance, text, _ = min(outside, key=lambda item: len(item[1]))
    text = text if len(text) <= 120 else text[:120] + "…"
    symbols = [symbol for _, _, unknown in outside for symbol in unknown]
    return DataError(
        f"{len(outside)} of {total} sentences of {utterance.split!r} are outside the alphabet: "
        f"{name_symbols(symbols)}; for example {utterance.id}: {text!r}",
        possible="policy 'error', 'drop' (these utterances are excluded and listed), 'map' (replacements first)",
        fix="set 'drop', or 'map' with a replacement for each" if policy == "error" else "add a replacement for each",
        reason="unknown_character",
    )


def split_hash(utterances: Iterable[Utterance]) -> str:
    """sha256 over the sorted (id, sentence, speaker) of a split, as hex digits; the order of rows does not matter."""
    lines = sorted(json.dumps([u.id, u.text, u.speaker]) for u in utterances)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def compare_hashes(figures_a: Mapping[str, Any], figures_b: Mapping[str, Any]) -> str | None:
    """Why the scores of two evaluations cannot be compared, in one line; None if they can.

    Takes what `asrkit evaluate` writes (`split`, `split_hash`, `utterances`, `text_rules`). Two scores compare if they
    are of the same utterances, sentences and speakers, normalized by the same rules; the split's name is not asked.
    """
    hashes = [str(figures.get("split_hash") or "") for figures in (figures_a, figures_b)]
    if not all(hashes):
        return "one of the two scores does not say of which utterances it is (no split_hash)"
    if hashes[0] != hashes[1]:
        sides = [
            f"{figures.get('split', 'split')} {one[:12]} ({figures.get('utterances', '?')} utterances)"
            for figures, one in zip((figures_a, figures_b), hashes, strict=True)
        ]
        return f"the two scores are of different data: {sides[0]} and {sides[1]}"
    rules = [figures.get("text_rules") for figures in (figures_a, figures_b)]
    if rules[0] != rules[1]:
        return f"the two scores are of texts by different rules: {rules[0]} and {rules[1]}"
    return None


@dataclass(frozen=True)
class Leakage:
    """What two splits have in common; the keys name pairs in the order of the splits, `train/test`.

    speakers, audio: what both have, sorted. sentences: how many utterances of the second split have a sentence that the
    first has too; every pair is there, with 0 where none has.
    """

    speakers: dict[str, list[str]] = field(default_factory=dict)
    audio: dict[str, list[str]] = field(default_factory=dict)
    sentences: dict[str, int] = field(default_factory=dict)

    def check(self, allow_shared_speakers: bool = False) -> None:
        """Raise DataError for shared audio (`shared_audio`), always, or shared speakers (`shared_speakers`)."""
        if self.audio:
            raise self._error("audio", self.audio, "take these out of one of the two splits")
        if self.speakers and not allow_shared_speakers:
            fix = "split by speaker, or set data.allow_shared_speakers=true for a corpus of one speaker"
            raise self._error("speakers", self.speakers, fix)

    def _error(self, what: str, shared: dict[str, list[str]], fix: str) -> DataError:
        parts = [f"{pair}: {len(names)} ({', '.join(names[:3])})" for pair, names in shared.items()]
        return DataError(
            f"{what} in more than one split: {', '.join(parts)}; the test error would be too good",
            fix=fix,
            reason=f"shared_{what}",
        )

    def summary(self) -> str:
        """One line: the utterances with shared sentences of every pair, and the shared speakers."""
        parts = [f"{pair}: {count} utterances with shared sentences" for pair, count in self.sentences.items()]
        parts += [f"{pair}: {len(names)} shared speakers" for pair, names in self.speakers.items()]
        return ", ".join(parts) or "one split, nothing to share"


def leakage(
    splits: Mapping[str, Sequence[Utterance]],
    rules: Callable[[str], str] | None = None,
    hashes: Mapping[Path, str] | None = None,
) -> Leakage:
    """Compare every two splits; `check` of the result judges.

    Unknown speakers ("") are not compared. Audio is the same if the file is (by its hash where `hashes` has one) with
    overlapping start and end; ids are names within a split, and say nothing about another. Sentences are compared after
    `rules`, or else without regard to case.
    """
    found = Leakage()
    normalize = rules or str.casefold
    texts = {name: [normalize(u.text) for u in utterances] for name, utterances in splits.items()}
    for a, b in combinations(splits, 2):
        speakers = ({u.speaker for u in splits[a]} & {u.speaker for u in splits[b]}) - {""}
        audio = _shared_audio(splits[a], splits[b], hashes or {})
        if speakers:
            found.speakers[f"{a}/{b}"] = sorted(speakers)
        if audio:
            found.audio[f"{a}/{b}"] = audio
        known = set(texts[a])
        found.sentences[f"{a}/{b}"] = sum(text in known for text in texts[b])
    return found


def _shared_audio(a: Sequence[Utterance], b: Sequence[Utterance], hashes: Mapping[Path, str]) -> list[str]:
    """Ids of `b` whose audio is in `a`."""
    pieces: dict[str, list[tuple[float, float]]] = {}
    for u in a:
        pieces.setdefault(hashes.get(u.audio, str(u.audio)), []).append(_interval(u))
    shared = []
    for u in b:
        start, end = _interval(u)
        others = pieces.get(hashes.get(u.audio, str(u.audio)), [])
        if any(start < other_end and other_start < end for other_start, other_end in others):
            shared.append(u.id)
    return sorted(shared)


def _interval(utterance: Utterance) -> tuple[float, float]:
    return utterance.start, math.inf if utterance.end is None else utterance.end
