"""What `asrkit transcribe` writes: the terminal, a file per input and format, or one file of JSON lines."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asrkit.errors import DataError, RecipeError, nearest

if TYPE_CHECKING:
    from asrkit.transcribe.transcript import Transcript

JSON_LINES = "transcripts.jsonl"
CONCATENATE = ("txt", "json", "jsonl", "ctm")  # formats of which several in a row still are that format
WITH_STATUS = ("json", "jsonl")  # formats that can say that an input was not transcribed
ALL_FORMATS = ("txt", "srt", "vtt", "tsv", "json", "jsonl", "ctm", "TextGrid")


def formats_of(text: str) -> list[str]:
    """`srt,json` -> the formats by their own names, each once. Raises RecipeError (`format`)."""
    names = {name.lower(): name for name in ALL_FORMATS}
    found = []
    for word in text.split(","):
        if word.strip().lower() not in names:
            raise RecipeError(f"--format {word.strip()!r}", possible=nearest(word, ALL_FORMATS), reason="format")
        found.append(names[word.strip().lower()])
    return list(dict.fromkeys(found))


def targets_of(places: Sequence[Path], form: str) -> list[Path]:
    """One output per input, all different: clip.mp3 -> clip.txt; of those that would share it clip.mp3.txt; of those
    that still do (clips of one name in several inputs) clip.mp3.2.txt."""

    def key(path: Path) -> str:
        return str(path).casefold()  # some file systems do not tell A from a

    stems = Counter(key(place.with_suffix("")) for place in places)
    taken: set[str] = set()
    numbers: Counter[str] = Counter()
    targets = []
    for place in places:
        alone = stems[key(place.with_suffix(""))] == 1
        name = place.stem if alone else place.name
        target = place.with_name(f"{name}.{form}")
        first = key(target)
        while key(target) in taken:
            numbers[first] += 1
            target = place.with_name(f"{place.name}.{numbers[first] + 1}.{form}")
        taken.add(key(target))
        targets.append(target)
    return targets


class Folder:
    """An output folder: `files[format][i]` belongs to input i; JSON lines of all inputs go into one file."""

    def __init__(self, folder: Path, places: Sequence[Path], formats: Sequence[str]) -> None:
        self.folder = folder
        self.formats = [form for form in formats if form != "jsonl"]
        self.files = {form: [folder / target for target in targets_of(places, form)] for form in self.formats}
        self.lines = folder / JSON_LINES if "jsonl" in formats else None
        make_folder(folder)
        from asrkit.disk import remove_leftovers

        for place in {folder, *(file.parent for files in self.files.values() for file in files)}:
            remove_leftovers(place)  # of runs that were killed while they wrote

    def existing(self, index: int) -> bool:
        """Whether the files of an input are all there; they are written whole or not at all."""
        return bool(self.files) and all(self.files[form][index].is_file() for form in self.formats)

    def recorded(self) -> list[dict[str, Any]]:
        """The lines of an interrupted run; a torn last line is taken off the file."""
        if self.lines is None or not self.lines.is_file():
            return []
        found, good = [], 0
        data = self.lines.read_bytes()
        for line in data.splitlines(keepends=True):
            try:
                record = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n") or not isinstance(record, dict) or "source" not in record:
                break
            found.append(record)
            good += len(line)
        if good < len(data):
            os.truncate(self.lines, good)
        return found

    def complete(self, index: int, record: dict[str, Any]) -> None:
        """Write those files of a recorded input that are not there, such as those of a format that came later.

        Raises DataError (`bad_line`) for a line that `asrkit transcribe` did not write.
        """
        from asrkit.transcribe.transcript import Transcript, Word

        if not self.formats or self.existing(index):
            return
        try:
            result = Transcript(**{**record, "words": tuple(Word(**word) for word in record.get("words", ()))})
        except TypeError as error:
            raise DataError(
                f"{self.lines}: the line of {record['source']} is no transcript: {error}",
                fix="give another --output-dir, or begin anew without --resume",
                reason="bad_line",
            ) from error
        self._write_files(index, result)

    def begin(self) -> None:
        """Empty the file of JSON lines."""
        if self.lines is not None:
            write_file(self.lines, "")

    def write(self, index: int, result: Transcript) -> None:
        """All formats of one result; the JSON line last, so that it says that the others are there."""
        self._write_files(index, result)
        if self.lines is None:
            return
        from asrkit.disk import storage_error

        try:
            with self.lines.open("ab") as file:
                file.write(result.to("jsonl").encode())
        except OSError as error:
            raise storage_error(error, self.lines) from error

    def _write_files(self, index: int, result: Transcript) -> None:
        for form in self.formats:
            if form in WITH_STATUS or result.status == "ok":  # an empty text would say that nobody spoke
                write_file(self.files[form][index], result.to(form))


def make_folder(folder: Path) -> None:
    """Raises StorageError."""
    from asrkit.disk import storage_error

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, folder) from error


def write_file(target: Path, text: str) -> None:
    """Write and rename, so that a file is whole or not there. Raises StorageError."""
    from asrkit.disk import storage_error, temporary_name

    make_folder(target.parent)
    temporary = target.with_name(temporary_name("output"))
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        os.replace(temporary, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise storage_error(error, target) from error
