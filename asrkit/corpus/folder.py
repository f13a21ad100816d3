"""A folder of audio with a text file beside each clip: clip.wav and clip.txt (or clip.lab)."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from asrkit.corpus.manifest import Manifest
from asrkit.corpus.selection import DataReport
from asrkit.corpus.tables import BOM, MAX_LINE
from asrkit.corpus.utterances import Utterance
from asrkit.errors import DataError, nearest

AUDIO = (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".au", ".m4a", ".mp4", ".webm")
TEXT = (".txt", ".lab")
SPLITS = {"train": "train", "dev": "dev", "valid": "dev", "validation": "dev", "val": "dev", "test": "test"}
SHARES = {"test": 0.1, "dev": 0.1}  # of the groups; all others are train


class AudioFolder:
    """Audio files with the transcript in a text file of the same name: `clip.wav` and `clip.txt`, or `clip.lab`.

    Sub-folders named train, dev (valid, validation, val) and test are splits, even if there is only one of them; audio
    beside them is excluded (`outside_splits`). Sub-folders below that are speakers; without any, speakers are unknown.
    Where there are no such splits, a tenth of the speakers (of the clips, where
    fewer than three speakers are known) is dev and a tenth test, chosen by the hash of their names: a clip that is
    added later moves no other clip, as long as every split has something (else the tenth with the
    lowest hashes is taken).
    The report says which rule was used.
    """

    asrkit_api = 1

    def __init__(self, root: Path | str, report: DataReport | None = None) -> None:
        self.root = Path(root)
        self.report = DataReport() if report is None else report

    @classmethod
    def recognizes(cls, root: Path) -> bool:
        """Whether some audio in `root` or below has a text file beside it; tables and `clips/` are for others."""
        if not root.is_dir() or (root / "clips").is_dir() or Manifest.recognizes(root):
            return False
        for _, _, names in os.walk(root):
            texts = {stem for stem, suffix in map(os.path.splitext, names) if suffix.lower() in TEXT}
            if any(stem in texts for stem, suffix in map(os.path.splitext, names) if suffix.lower() in AUDIO):
                return True
        return False

    def splits(self) -> list[str]:
        """train, dev, test, as far as there are any."""
        return [split for split in ("train", "dev", "test") if split in set(self._split_of.values())]

    def read(self, split: str) -> list[Utterance]:
        """The utterances of one split, sorted by path; audio without a text is excluded as `no_text`.

        Raises DataError: `unknown_split`, `not_utf8` for a text file, `conflicting_texts` where .txt and .lab differ.
        """
        if split not in self.splits():
            raise DataError(
                f"{self.root}: no split {split!r}, that is, no folder of this name with audio in it",
                possible=nearest(split, self.splits()),
                reason="unknown_split",
            )
        found = []
        for path, where in self._split_of.items():
            if where != split:
                continue
            name = os.path.splitext(path)[0]
            text = self._text(name)
            utterance = Utterance(name, self.root / path, text or "", self._speaker(path), split)
            if text is None:
                self.report.exclude(utterance, "no_text")
            else:
                found.append(utterance)
        if not found:
            raise DataError(f"{self.root}: no clip of {split} has a text file", reason="empty_table")
        return found

    @cached_property
    def _paths(self) -> list[str]:
        """All audio files, relative to the root, sorted; hidden files and folders are not looked at."""
        paths = []
        for folder, folders, names in os.walk(self.root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            here = os.path.relpath(folder, self.root)
            for name in names:
                if name.lower().endswith(AUDIO) and not name.startswith("."):
                    paths.append(os.path.normpath(os.path.join(here, name)))
        self._refuse_twins(paths)
        return sorted(paths)

    def _refuse_twins(self, paths: list[str]) -> None:
        counts = Counter(os.path.splitext(path)[0] for path in paths)
        twins = sorted(name for name, count in counts.items() if count > 1)
        if twins:
            raise DataError(
                f"{self.root}: {len(twins)} clips are there in several formats, for example {twins[0]!r}",
                fix="keep one file of each",
                reason="conflicting_rows",
            )

    @cached_property
    def _split_of(self) -> dict[str, str]:
        """Path -> split."""
        tops = {path: path.split(os.sep)[0] for path in self._paths}
        named = {path: SPLITS[top] for path, top in tops.items() if top in SPLITS and os.sep in path}
        if named:
            for path in sorted(tops.keys() - named.keys()):
                beside = Utterance(os.path.splitext(path)[0], self.root / path, "", "", "")
                self.report.exclude(beside, "outside_splits")
            return named
        speakers = {path: self._speaker(path) for path in self._paths}
        known = len(set(speakers.values()) - {""})
        by = "speaker" if known >= 3 else "clip"
        groups = {path: speakers[path] if by == "speaker" else os.path.splitext(path)[0] for path in self._paths}
        chosen, rule = _by_hash(sorted(set(groups.values())))
        counts = Counter(chosen[group] for group in groups.values())
        self.report.note("split_by_hash", of=by, rule=rule, clips=dict(counts))
        return {path: chosen[group] for path, group in groups.items()}

    def _speaker(self, path: str) -> str:
        """The folder below the split's: its name, "" where there is none."""
        parts = path.split(os.sep)[:-1]
        if parts and parts[0] in SPLITS:
            parts = parts[1:]
        return parts[0] if parts else ""

    def _text(self, name: str) -> str | None:
        """The transcript with single spaces, in NFC; None where there is no text file."""
        texts = {path.name: _read(path) for path in self._texts(name)}
        if len(set(texts.values())) > 1:
            raise DataError(
                f"{self.root / name}: {' and '.join(texts)} differ", fix="keep one", reason="conflicting_texts"
            )
        return next(iter(texts.values()), None)

    def _texts(self, name: str) -> Iterator[Path]:
        for suffix in (*TEXT, *(suffix.upper() for suffix in TEXT)):
            path = Path(f"{self.root / name}{suffix}")
            if path.is_file():
                yield path


def _read(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(MAX_LINE + 1)
    if len(data) > MAX_LINE:
        raise DataError(f"{path}: a text of more than {MAX_LINE >> 20} MiB for one clip", reason="long_line")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8", fix="convert the file to UTF-8", reason="not_utf8") from error
    return " ".join(unicodedata.normalize("NFC", text.removeprefix(BOM)).split())


def _by_hash(groups: list[str]) -> tuple[dict[str, str], str]:
    """Group -> split, and the rule in words."""
    places = {group: int(hashlib.sha256(group.encode()).hexdigest()[:12], 16) / 16**12 for group in groups}
    ordered = sorted(groups, key=places.__getitem__)
    bounds = {split: sum(list(SHARES.values())[: i + 1]) for i, split in enumerate(SHARES)}
    chosen = {
        group: next((split for split, bound in bounds.items() if places[group] < bound), "train") for group in groups
    }
    if len(groups) < 3:
        return dict.fromkeys(groups, "train"), "all train: too few to split"
    if set(chosen.values()) == {"train", *SHARES}:
        return chosen, "sha256 of the name: below 0.1 test, below 0.2 dev"
    tenth = max(1, round(len(groups) * 0.1))
    ranked = {group: ("test", "dev")[i // tenth] if i < 2 * tenth else "train" for i, group in enumerate(ordered)}
    return ranked, "lowest tenth by sha256 of the name test, next tenth dev (too few for the fixed bounds)"
