"""How long a release says its clips are: `clip_durations.tsv` (since 16.1) or `times.txt` (14.0 to 16.0)."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from asrkit.corpus.data_report import DataReport
from asrkit.corpus.tables import Row, read_rows
from asrkit.errors import DataError

CLIP, LENGTH = "clip", "duration[ms]"
TYPES = {CLIP: pa.string(), LENGTH: pa.float64()}


class Durations:
    """Durations of clips in seconds, as the release says them.

    The table has a row for each of up to 1.7 million clips: it is read once, by Arrow, and kept as Arrow columns (about
    40 bytes a clip). A clip that is named twice has the duration of its last row; rows that differ are noted.
    """

    def __init__(self, root: Path, report: DataReport) -> None:
        self._file, self._times, self._report = root / "clip_durations.tsv", root / "times.txt", report
        self._differing: set[str] = set()

    def of(self, clips: list[str]) -> dict[str, float]:
        """Clip name -> seconds for these clips, as far as the release says.

        Raises DataError naming the line of `clip_durations.tsv` that is not as it should be.
        """
        table = self._table
        rows = table.filter(pc.is_in(table[CLIP], value_set=pa.array(clips, pa.string())))
        names, lengths = rows[CLIP].to_pylist(), rows[LENGTH].to_pylist()
        if any(value is not None and not 0 <= value < float("inf") for value in lengths):
            self._carefully()
        found = dict(zip(names, lengths, strict=True))
        if len(found) < len(names):
            self._note_differing({name for name, value in zip(names, lengths, strict=True) if value != found[name]})
        return {clip: value / 1000 for clip, value in found.items() if value is not None}

    def _note_differing(self, names: set[str]) -> None:
        """Once a clip: the tables of a release name the same clips."""
        if new := names - self._differing:
            self._differing |= new
            self._report.note("durations_differ", file=str(self._file), clips=len(new), first=min(new))

    @cached_property
    def _table(self) -> Any:
        """Both columns as a `pyarrow.Table`, whichever file they come from."""
        if self._file.is_file():
            table = self._from_tsv()
            if not table.num_rows:
                self._report.note("no_durations", file=str(self._file))
            return table
        return self._from_times() if self._times.is_file() else pa.schema(TYPES.items()).empty_table()

    def _from_tsv(self) -> Any:
        try:
            table = csv.read_csv(
                self._file,
                read_options=csv.ReadOptions(block_size=1 << 24),  # bytes
                parse_options=csv.ParseOptions(delimiter="\t", quote_char=False, double_quote=False),
                convert_options=csv.ConvertOptions(column_types=TYPES, include_columns=list(TYPES), null_values=[""]),
            )
        except (pa.ArrowInvalid, KeyError):  # let the careful reader name the line
            return self._carefully()
        return table

    def _carefully(self) -> Any:
        """The same row by row, for the error that names the line."""
        names, lengths = [], []
        for row in read_rows(self._file, (CLIP, LENGTH)):
            names.append(row.cells[CLIP])
            lengths.append(row.number(LENGTH))
        return _table_of(names, lengths)

    def _from_times(self) -> Any:
        """`times.txt` is older and nowhere described: lines that are no clip and number are noted, not an error."""
        names: list[str] = []
        lengths: list[float | None] = []
        strange: list[int] = []
        with self._times.open(encoding="utf-8", errors="replace") as file:
            for line, text in enumerate(file, start=1):
                cells = [*text.split(), "", ""][:2]
                try:
                    milliseconds = Row(self._times, line, [CLIP, LENGTH], cells).number(LENGTH)
                except DataError:
                    milliseconds = None
                if milliseconds is not None:
                    names.append(cells[0])
                    lengths.append(milliseconds)
                elif line > 1:
                    strange.append(line)
        if strange:
            self._report.note("times_not_read", file=str(self._times), lines=len(strange), first=strange[0])
        return _table_of(names, lengths)


def _table_of(names: list[str], lengths: list[float | None]) -> Any:
    return pa.table({CLIP: pa.array(names, TYPES[CLIP]), LENGTH: pa.array(lengths, TYPES[LENGTH])})
