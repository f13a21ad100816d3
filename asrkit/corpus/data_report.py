"""What was left out of a corpus and why, and what was noticed: each exclusion is a line with its reason and numbers."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from asrkit.corpus.utterances import Utterance
from asrkit.errors import DataError, StorageError

# The stable codes of exclusions; a plugin may add its own.
REASONS = {
    "missing": "no such audio file",
    "empty_file": "audio file of zero bytes",
    "not_audio": "not an audio file, whatever its name says",
    "codec": "a codec that asrkit does not decode, such as ADPCM in a wav",
    "truncated": "less audio than the header or the corpus says",
    "too_large": "over 2 GiB of samples",
    "decoder_died": "the process that decoded it ended (--isolate)",
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
    "outside_splits": "audio beside the folders of the splits, which belongs to none",
}
# Reasons that say nothing against the data: rows too many, and what the recipe itself leaves out.
CHOICES = ("duplicate", "reported", "benchmark")


class DataReport:
    """What was left out or noticed, utterance by utterance; `counts` is by reason.

    The reasons in `CHOICES` are no lost utterances: they are counted, but are no reason to stop.
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
        """`7 excluded: 5 missing (no such audio file), 2 empty_text (...); noted: 3 clipped`, or that nothing was."""
        notes = self.notes()
        return self._exclusions() + (f"; noted: {', '.join(notes)}" if notes else "")

    def notes(self) -> list[str]:
        """What was noticed, by kind: `3 clipped` of clips, `split_by_hash (of clip, ...)` of the corpus."""
        found: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for line in self.lines:
            if "note" in line:
                found[line["note"]].append(line)
        return [_noted(kind, lines) for kind, lines in found.items()]

    def unusable(self, split: str) -> Counter[str]:
        """How many of this split are excluded, by reason; those in `CHOICES` are not among them."""
        reasons = (line["excluded"] for line in self.lines if "excluded" in line and line["split"] == split)
        return Counter(reason for reason in reasons if reason not in CHOICES)

    def unusable_total(self) -> int:
        """How many are excluded for other reasons than those in `CHOICES`."""
        return sum(count for reason, count in self.counts.items() if reason not in CHOICES)

    def _exclusions(self) -> str:
        if not self.counts:
            return "nothing excluded"
        parts = [
            f"{count} {reason}" + (f" ({REASONS[reason]})" if reason in REASONS else "")
            for reason, count in sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        ]
        return f"{self.counts.total()} excluded: {', '.join(parts)}"

    def check_limit(self, max_bad: float, total: int, excluded: int | None = None) -> None:
        """Raise DataError (`too_many_excluded`) if more than the share `max_bad` of `total` was excluded.

        `excluded` is how many of these were; None: all that this report knows, those in `CHOICES` apart.
        """
        bad = self.unusable_total() if excluded is None else excluded
        if bad > max_bad * total:
            raise DataError(
                f"{bad} of {total} utterances are unusable ({self._exclusions()})",
                possible=f"up to {max_bad:.2%} (max_bad)",
                fix="repair the data, or raise max_bad if this is expected",
                reason="too_many_excluded",
            )


def _noted(kind: str, lines: list[dict[str, Any]]) -> str:
    if "id" in lines[0] or len(lines) > 1:
        return f"{len(lines)} {kind}"
    return f"{kind} ({', '.join(f'{key} {_words(value)}' for key, value in lines[0].items() if key != 'note')})"


def _words(value: Any) -> str:
    return " ".join(f"{key} {count}" for key, count in value.items()) if isinstance(value, dict) else str(value)


def _who(utterance: Utterance) -> dict[str, Any]:
    return {"split": utterance.split, "id": utterance.id, "audio": str(utterance.audio)}


def _plain(line: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: write them as words."""
    odd = {key: str(value) for key, value in line.items() if isinstance(value, float) and not math.isfinite(value)}
    return line | odd
