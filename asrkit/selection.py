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

from asrkit.errors import DataError, RecipeError, StorageError, nearest
from asrkit.tokenizers import name_symbols

if TYPE_CHECKING:
    from asrkit.corpus import Utterance
    from asrkit.text import TextRules
    from asrkit.tokenizers import Tokenizer

# The stable codes of exclusions; a plugin may add its own.
REASONS = {
    "missing": "no such audio file",
    "empty_file": "audio file of zero bytes",
    "not_audio": "not an audio file, whatever its name says",
    "truncated": "less audio than the header or the corpus says",
    "nonfinite": "NaN or infinite samples",
    "bad_scale": "samples far outside -1..1",
    "silent": "no energy: peak below -60 dB of full scale",
    "no_samples": "no audio in the file, or between start and end",
    "needs_pyav": "m4a, mp4 or alike, which needs PyAV",
    "too_short": "shorter than one frame",
    "too_short_for_ctc": "fewer frames than labels + repeats",
    "too_long": "longer than the recipe allows",
    "empty_text": "no text left after normalization",
    "unknown_character": "characters outside the alphabet",
    "duplicate": "the same row twice",
    "reported": "sentence reported by readers, left out by data.reported",
    "benchmark": "Benchmark segment, left out by data.segments",
    "no_text": "audio without a text file beside it",
}
POLICIES = ("error", "drop", "map")


class DataReport:
    """What was left out or noticed, utterance by utterance; `counts` is by reason.

    A `duplicate` is a row too many, not a lost utterance: it is counted, but not a reason to stop.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.lines: list[dict[str, Any]] = []

    def exclude(self, utterance: Utterance, reason: str, **numbers: Any) -> None:
        """This utterance is not used; `numbers` are what a reader needs to check it (frames, labels, line, ...)."""
        self.counts[reason] += 1
        self.lines.append({"excluded": reason, **_who(utterance), **numbers})

    def note(self, what: str, utterance: Utterance | None = None, **numbers: Any) -> None:
        """Something worth knowing that excludes nothing."""
        self.lines.append({"note": what, **(_who(utterance) if utterance else {}), **numbers})

    def write(self, path: Path | str) -> None:
        """One JSON object per line, in the order of events; exclusions have `excluded`, notes have `note`."""
        text = "".join(json.dumps(_plain(line), ensure_ascii=False, default=str) + "\n" for line in self.lines)
        try:
            Path(path).write_text(text, encoding="utf-8", newline="\n")
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}", reason="unwritable") from error

    def summary(self) -> str:
        """`7 excluded: 5 missing (no such audio file), 2 empty_text (...)`, or that nothing was."""
        if not self.counts:
            return "nothing excluded"
        parts = [
            f"{count} {reason}" + (f" ({REASONS[reason]})" if reason in REASONS else "")
            for reason, count in sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        ]
        return f"{self.counts.total()} excluded: {', '.join(parts)}"

    def check_limit(self, max_bad: float, total: int, excluded: int | None = None) -> None:
        """Raise DataError (`too_many_excluded`) if more than the share `max_bad` of `total` was excluded.

        `excluded` is how many of these were; None: all that this report knows, duplicates apart.
        """
        bad = self.counts.total() - self.counts["duplicate"] if excluded is None else excluded
        if bad > max_bad * total:
            raise DataError(
                f"{bad} of {total} utterances are unusable ({self.summary()})",
                possible=f"up to {max_bad:.2%} (max_bad)",
                fix="repair the data, or raise max_bad if this is expected",
                reason="too_many_excluded",
            )


def _who(utterance: Utterance) -> dict[str, Any]:
    return {"split": utterance.split, "id": utterance.id, "audio": str(utterance.audio)}


def _plain(line: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: write them as words."""
    odd = {key: str(value) for key, value in line.items() if isinstance(value, float) and not math.isfinite(value)}
    return line | odd


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

    Unknown speakers ("") are not compared. Audio is the same if the id is, or the file (by its hash where `hashes` has
    one) with overlapping start and end. Sentences are compared after `rules`, or else without regard to case.
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
    ids = {u.id for u in a}
    pieces: dict[str, list[tuple[float, float]]] = {}
    for u in a:
        pieces.setdefault(hashes.get(u.audio, str(u.audio)), []).append(_interval(u))
    shared = []
    for u in b:
        start, end = _interval(u)
        others = pieces.get(hashes.get(u.audio, str(u.audio)), [])
        if u.id in ids or any(start < other_end and other_start < end for other_start, other_end in others):
            shared.append(u.id)
    return sorted(shared)


def _interval(utterance: Utterance) -> tuple[float, float]:
    return utterance.start, math.inf if utterance.end is None else utterance.end
