"""The files of a Common Voice release (17 and later) around the clips, and the record that the corpus is complete."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from asrkit.errors import DataError
from asrkit.synthetic.voices import LANGUAGES, Speaker

COLUMNS = (
    *("client_id", "path", "sentence_id", "sentence", "sentence_domain", "up_votes", "down_votes", "age", "gender"),
    *("accents", "variant", "locale", "segment"),
)
RECORD = "synth.json"
_GENDERS = {"female": "female_feminine", "male": "male_masculine"}
_OWN = ("clips", "train.tsv", "dev.tsv", "test.tsv", "validated.tsv", "clip_durations.tsv", "README.md", RECORD)


@dataclass(frozen=True)
class Utterance:
    """One clip that was written: its file name below `clips`, who says what, in which split, and for how long."""

    split: str
    sentence: str
    speaker: Speaker
    file: str
    seconds: float


@dataclass(frozen=True)
class SplitCount:
    """What one split holds."""

    clips: int
    hours: float
    speakers: int
    sentences: int


@dataclass(frozen=True)
class SynthReport:
    """What `make_corpus` wrote (or found): counts per split, and how long it took in seconds.

    `repeated_lines` counts lines of `text` that repeat another line; they are spoken once.
    """

    output: Path
    splits: dict[str, SplitCount]
    repeated_lines: int
    seconds_taken: float
    already_there: bool

    @property
    def clips(self) -> int:
        """Clips of all splits."""
        return sum(split.clips for split in self.splits.values())

    @property
    def hours(self) -> float:
        """Hours of audio of all splits."""
        return sum(split.hours for split in self.splits.values())

    @property
    def speakers(self) -> int:
        """Speakers of all splits (no speaker is in two)."""
        return sum(split.speakers for split in self.splits.values())

    @property
    def sentences(self) -> int:
        """Distinct sentences of all splits (no sentence is in two)."""
        return sum(split.sentences for split in self.splits.values())

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, for `--json`."""
        totals = {"clips": self.clips, "hours": self.hours, "speakers": self.speakers, "sentences": self.sentences}
        return asdict(self) | {"output": str(self.output)} | totals


def existing(output: Path, parameters: dict[str, Any]) -> SynthReport | None:
    """The report of a complete corpus with these parameters, None where one may be written; DataError otherwise."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    try:
        record = json.loads((output / RECORD).read_text(encoding="utf-8"))
        made_with, complete, counts = record["parameters"], record["complete"], record["splits"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{output} is not empty and not a synthetic corpus",
            fix="give --output a new or empty folder",
            reason="output_not_empty",
        ) from error
    if made_with != parameters:
        names = sorted(set(made_with) | set(parameters))
        changed = [
            f"{n} {made_with.get(n)} (now {parameters.get(n)})" for n in names if made_with.get(n) != parameters.get(n)
        ]
        raise DataError(
            f"{output} holds a synthetic corpus with {', '.join(changed)}",
            fix="give another --output, or remove that folder",
            reason="other_corpus",
        )
    splits = {name: SplitCount(**count) for name, count in counts.items()}
    report = SynthReport(output, splits, record["repeated_lines"], seconds_taken=0.0, already_there=True)
    whole = all((output / name).exists() for name in _OWN) and len(os.listdir(output / "clips")) == report.clips
    return report if complete and whole else None


def begin(output: Path, parameters: dict[str, Any]) -> None:
    """Make the folder, mark it as ours and incomplete, and remove the clips of an interrupted run."""
    output.mkdir(parents=True, exist_ok=True)
    _write_record(output, {"complete": False, "parameters": parameters, "splits": {}, "repeated_lines": 0})
    shutil.rmtree(output / "clips", ignore_errors=True)
    (output / "clips").mkdir()


def finish(output: Path, parameters: dict[str, Any], utterances: list[Utterance], report: SynthReport) -> None:
    """Write the tables and, last, the record that says complete."""
    for name in ("train", "dev", "test", "validated"):
        rows = [_row(u) for u in utterances if name in (u.split, "validated")]
        _write_table(output / f"{name}.tsv", COLUMNS, rows)
    durations = [(u.file, str(round(u.seconds * 1000))) for u in utterances]
    _write_table(output / "clip_durations.tsv", ("clip", "duration[ms]"), durations)
    (output / "README.md").write_text(_readme(parameters, report), encoding="utf-8", newline="\n")
    splits = {name: asdict(split) for name, split in report.splits.items()}
    record = {"complete": True, "parameters": parameters, "splits": splits, "repeated_lines": report.repeated_lines}
    _write_record(output, record)


def _row(utterance: Utterance) -> tuple[str, ...]:
    speaker, sentence = utterance.speaker, utterance.sentence
    values = {
        "client_id": speaker.client_id,
        "path": utterance.file,
        "sentence_id": hashlib.sha256(sentence.encode()).hexdigest(),
        "sentence": sentence,
        "up_votes": "2",
        "down_votes": "0",
        "gender": _GENDERS[speaker.gender],
        "accents": LANGUAGES[speaker.language],
        "locale": "es",
    }
    return tuple(values.get(column, "") for column in COLUMNS)


def _write_table(path: Path, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    # Common Voice writes without quoting, so a quote in a sentence is just a letter; tabs and breaks cannot occur.
    lines = ["\t".join(row) for row in (header, *rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def _write_record(output: Path, record: dict[str, Any]) -> None:
    temporary = output / (RECORD + ".tmp")
    temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8", newline="\n")
    os.replace(temporary, output / RECORD)


def _readme(parameters: dict[str, Any], report: SynthReport) -> str:
    table = "\n".join(
        f"| {name} | {split.clips} | {split.hours:.2f} | {split.speakers} | {split.sentences} |"
        for name, split in report.splits.items()
    )
    made = ", ".join(f"{name} {value}" for name, value in parameters.items() if value is not None)
    return f"""# Synthetic Spanish speech in the layout of a Common Voice release

No person speaks here: sentences and voices are synthetic (espeak-ng), made by `asrkit data synth` with {made}.
It is for demonstrations and tests. Error rates on it say nothing about real speech, and it is not part of Common Voice.

| split | clips | hours | speakers | sentences |
|---|---|---|---|---|
{table}

No speaker and no sentence is in two splits. Clips are mono, 16 kHz.
"""
