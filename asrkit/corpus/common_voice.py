"""Common Voice, an extracted release of any version from 1 on: the folder of one language.

Columns are found by their names, since almost every release has others; nothing is read with quoting; what is left out
by choice (`reported`, `segments`) is counted like everything else.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from asrkit.corpus.duplicates import without_duplicates
from asrkit.corpus.selection import DataReport
from asrkit.corpus.tables import header_or_nothing, path_inside, read_header, read_rows
from asrkit.corpus.utterances import Cells, Utterance, claim_seconds, paused_collector
from asrkit.errors import DataError, RecipeError, nearest

if TYPE_CHECKING:
    from asrkit.corpus.durations import Durations

COLLECTIVE = "the Mozilla Data Collective (`asrkit data get common-voice-es` prints the steps)"


class CommonVoice:
    """An extracted Common Voice release, every version: the folder of one language, with `clips/` and `train.tsv`.

    `client_id`, `path` and `sentence` are needed; all other columns are in `Utterance.extra`, with `accent` (up to
    release 7) under its later name `accents`. `seconds` comes from `clip_durations.tsv` (since 16.1) or `times.txt`
    (14.0 to 16.0). Clip paths are checked by their names: a link inside `clips/` is the user's own.

    reported: `drop` leaves out sentences that readers have reported (`reported.tsv`, by sentence_id and by sentence).
    segments: `no_benchmark` leaves out the one-word prompts of the `Benchmark` segments.
    """

    asrkit_api = 1
    COLUMNS = ("client_id", "path", "sentence")
    SPLITS = ("train", "dev", "test", "validated", "invalidated", "other")
    REPORTED = ("keep", "drop")
    SEGMENTS = ("all", "no_benchmark")

    def __init__(
        self, root: Path | str, reported: str = "keep", segments: str = "all", report: DataReport | None = None
    ) -> None:
        for option, value, possible in (("reported", reported, self.REPORTED), ("segments", segments, self.SEGMENTS)):
            if value not in possible:
                raise RecipeError(
                    f"data.{option} is {value!r}", possible=nearest(str(value), possible), reason="unknown_option"
                )
        self.root = Path(root)
        self.reported, self.segments = reported, segments
        self.report = DataReport() if report is None else report
        self._clips = Path(os.path.abspath(self.root / "clips"))

    @classmethod
    def recognizes(cls, root: Path) -> bool:
        """Whether `root` has `clips/` and a table of a split in it."""
        return (root / "clips").is_dir() and any(
            set(cls.COLUMNS) <= set(header_or_nothing(root / f"{split}.tsv")) for split in cls.SPLITS
        )

    def splits(self) -> list[str]:
        """The splits that this release has, train first. A delta release has no train, dev and test."""
        return [split for split in self.SPLITS if (self.root / f"{split}.tsv").is_file()]

    def read(self, split: str) -> list[Utterance]:
        """The utterances of one split, in the order of the file, one for each row that is not left out by choice.

        Raises DataError for a table that is not as it should be (see `asrkit.corpus.tables.read_rows`), two rows that
        disagree about one clip (`conflicting_rows`), no rows (`empty_table`), a split that is not there
        (`unknown_split`, `no_splits` for a delta release); TrustError for a path that leaves `clips/`.
        """
        table = self.root / f"{split}.tsv"
        if table.parent != self.root or not table.is_file():
            raise self._no_split(split)
        with paused_collector():
            utterances = self._chosen(without_duplicates(self._utterances(table, split), table, self.report), table)
            names = [utterance.audio.name for utterance in utterances]
            seconds = self._durations.of(names)
            if seconds:
                for utterance, name in zip(utterances, names, strict=True):
                    claim_seconds(utterance, seconds.get(name))
        return utterances

    @cached_property
    def _durations(self) -> Durations:
        from asrkit.corpus.durations import Durations

        return Durations(self.root, self.report)

    def _utterances(self, table: Path, split: str) -> Iterator[tuple[int, Utterance]]:
        header = read_header(table)
        others = [place for place, name in enumerate(header) if name not in self.COLUMNS]
        renamed = "accents" not in header
        names = tuple("accents" if header[i] == "accent" and renamed else header[i] for i in others)
        places = [header.index(name) if name in header else 0 for name in self.COLUMNS]
        below = len(str(self._clips)) + 1
        for row in read_rows(table, self.COLUMNS):
            values = row.values
            client, path, sentence = [values[place] for place in places]
            audio = path_inside(self._clips, path, row)
            if "/" in path:  # ./a.mp3 is a.mp3
                path = str(audio)[below:]
            if "." not in path:  # releases 1 to 3 leave the ending out
                audio = audio.with_name(f"{audio.name}.mp3")
            text = unicodedata.normalize("NFC", sentence)
            extra = Cells(names, [values[place] for place in others])
            name = os.path.splitext(path)[0]
            yield row.line, Utterance(name, audio, text, sys.intern(client), split, extra=extra)

    def _chosen(self, found: dict[int, Utterance], table: Path) -> list[Utterance]:
        """Without benchmark segments and reported sentences, as far as the recipe leaves them out."""
        complaints = self._complaints if self.reported == "drop" else {}
        kept = []
        for line, utterance in found.items():
            segment = utterance.extra.get("segment", "")
            if self.segments == "no_benchmark" and segment.casefold().endswith("benchmark"):
                self.report.exclude(utterance, "benchmark", line=line, segment=segment)
                continue
            why = complaints.get(utterance.extra.get("sentence_id", "")) or complaints.get(utterance.text)
            if why:
                self.report.exclude(utterance, "reported", line=line, complaint=why)
            else:
                kept.append(utterance)
        if not kept:
            raise DataError(
                f"{table.name}: all {len(found)} rows are left out ({self.report.summary()})",
                fix="use data.segments=all and data.reported=keep",
                reason="empty_table",
            )
        return kept

    @cached_property
    def _complaints(self) -> dict[str, str]:
        """sentence_id and sentence -> why it was reported. People write into this table: lines that are none of its
        rows (a complaint with a line break) are noted."""
        table = self.root / "reported.tsv"
        if not table.is_file():
            raise DataError(
                f"data.reported is 'drop', but {self.root} has no reported.tsv (releases have it since 5)",
                fix="use data.reported=keep",
                reason="missing_table",
            )
        found = {}
        skipped: list[int] = []
        for row in read_rows(table, ("sentence", "reason"), skipped):
            why = row.cells["reason"] or "no reason given"
            found[unicodedata.normalize("NFC", row.cells["sentence"])] = why
            found[row.cells.get("sentence_id", "")] = why
        found.pop("", None)
        if skipped:
            self.report.note("reported_not_read", file=str(table), lines=len(skipped), first=skipped[0])
        return found

    def _no_split(self, split: str) -> DataError:
        tables = self.splits()
        if split in ("train", "dev", "test") and tables and not set(tables) & {"train", "dev", "test"}:
            return DataError(
                f"{self.root}: no {split}.tsv: this is a delta release, or one without splits",
                possible=f"the tables that are there: {', '.join(tables)}",
                fix="train on one of them: --data.train=validated (clips that listeners have accepted) or "
                "--data.train=other (not judged yet), with --data.dev=null and --data.test=null; take dev and test "
                "from a full release",
                reason="no_splits",
            )
        return DataError(
            f"{self.root}: no split {split!r}", possible=nearest(split, tables) or "none", reason="unknown_split"
        )
