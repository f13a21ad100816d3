"""A release as it was downloaded: the .tar.gz itself is a corpus, and only wanted clips ever lie on the disk.

The order of members is accidental, so tables may follow a million clips. A first pass reads the whole archive once: it
vets every name, checks the archive to its end, saves the tables and lists the members with their sizes. Only then it is
known which clips are wanted and how much disk they take; a second pass takes them and stops after the last one. Nothing
is ever "extracted": asrkit opens regular members and writes their bytes under names that it has checked.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from tarfile import TarInfo
from typing import IO, Any

from asrkit.corpus.common_voice import CommonVoice
from asrkit.corpus.extraction import ClipWriter, announce, bar, clips, has_size, new_draft, on_disk
from asrkit.corpus.manifest import Manifest
from asrkit.corpus.selection import DataReport
from asrkit.corpus.tables import SUFFIXES
from asrkit.corpus.tar_stream import fingerprint, members_of, readable
from asrkit.corpus.utterances import Utterance
from asrkit.disk import disk_full, free_bytes, storage_error, sync_folder
from asrkit.errors import DataError, TrustError, nearest

ENDINGS = (".tar.gz", ".tgz", ".tar")
MEMBERS = "members.tsv"
TABLES = "tables.json"  # what must lie beside it; written before it, and no name of a table
UNREAD = ("validated_sentences.tsv", "unvalidated_sentences.tsv")  # hundreds of MB that no reader asks for
MAX_TABLES = 8 << 30  # bytes of all tables: those of the largest release are 3 GB, and zeros take no room in a .gz
PART = "clips"  # audio lies here; a table in it is no table of the release


class Archive:
    """A .tar.gz, .tgz or .tar with one Common Voice language (`cv-corpus-*/es/...`, or any folder) or one manifest.

    Tables and wanted clips lie in `cache`/clips-<hash of the archive>/, in the archive's own layout. Of a clip that the
    archive has twice the last counts, as for tar. language: the folder to take where the archive has several. All other
    options are those of `CommonVoice` and of `Manifest`.
    progress: None shows a bar on a terminal.

    Raises TrustError (exit 7) for members that are links, devices, sparse, or whose names leave the folder; DataError
    for a damaged or cut archive; StorageError where disk is missing.
    """

    asrkit_api = 1

    def __init__(
        self,
        root: Path | str,
        cache: Path | str = "runs/.cache",
        language: str | None = None,
        column: str | None = None,
        train: str | None = None,
        dev: str | None = None,
        test: str | None = None,
        reported: str | None = None,
        segments: str | None = None,
        report: DataReport | None = None,
        progress: bool | None = None,
    ) -> None:
        self.root = Path(root)
        self.report = DataReport() if report is None else report
        self.language, self.progress = language, progress
        self.folder = Path(cache).absolute() / f"clips-{fingerprint(self.root)}"
        self._options: dict[str, Any] = {"column": column, "train": train, "dev": dev, "test": test}
        self._options |= {"reported": reported, "segments": segments, "report": self.report}

    @classmethod
    def recognizes(cls, root: Path) -> bool:
        """Whether `root` is a file with the ending of a tar archive."""
        return root.is_file() and root.name.lower().endswith(ENDINGS)

    @cached_property
    def corpus(self) -> Any:
        """The reader of the tables inside; the archive is read once for them, the first time that it is opened."""
        from asrkit.corpus import open_corpus

        if not self._is_complete():
            self._read_tables()
        corpus = open_corpus(self._inside(), **self._options)
        if isinstance(corpus, Manifest):  # of which no clip is there yet
            corpus.exists = self._has
        return corpus

    def splits(self) -> list[str]:
        """The splits of the corpus inside."""
        return self.corpus.splits()

    def read(self, split: str) -> list[Utterance]:
        """The utterances of one split; their audio is there after `fetch`. Raises as the reader inside does."""
        return self.corpus.read(split)

    def fetch(self, utterances: list[Utterance]) -> None:
        """Take the clips of these utterances that are not there yet, in one pass."""
        wanted = {os.path.relpath(utterance.audio, self.folder) for utterance in utterances}
        found = [(name, size) for name, size in self._members() if name in wanted]
        sizes, times = dict(found), Counter(name for name, _ in found)
        if len(sizes) < len(found):
            self.report.note("twice_in_archive", file=str(self.root), clips=len(found) - len(sizes))
        todo = {name: size for name, size in sizes.items() if not has_size(self.folder / name, size)}
        if not todo:
            return
        need = on_disk(todo.values())
        announce(self.root.name, clips(len(todo), len(sizes) - len(todo)), need, self.folder)
        writer = ClipWriter(self.folder)
        with readable(self.root), bar(len(todo), "clip", "taking clips", self.progress) as shown:
            for name, member, data in members_of(self.root):
                if name not in todo or data is None:
                    continue
                times[name] -= 1
                if times[name]:  # there is a later one
                    continue
                if member.size != todo.pop(name):
                    raise DataError(f"{self.root}: {member.name} has changed", fix="run again", reason="not_archive")
                writer.copy(self.folder / name, data, member.size)
                shown.update()
                if not todo:
                    break

    def _is_complete(self) -> bool:
        """Whether the list and the tables of the first pass are there; folders of clips that are gone are made."""
        try:
            tables = json.loads((self.folder / TABLES).read_bytes())
            whole = all(has_size(self.folder / name, size) for name, size in tables["files"].items())
            if not whole or not (self.folder / MEMBERS).is_file():
                return False
            for name in tables["folders"]:
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False
        return True

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(name for name, _ in self._members())

    def _has(self, path: Path) -> bool:
        return os.path.relpath(path, self.folder) in self._names

    def _members(self) -> Iterator[tuple[str, int]]:
        """Name and size of every file of the archive, from the list that the first pass has made."""
        with (self.folder / MEMBERS).open(encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            for line in file:
                size, _, name = line.rstrip("\n").partition("\t")
                yield name, int(size)

    def _read_tables(self) -> None:
        """The first pass. Everything is made under another name and renamed at the end."""
        draft = new_draft(self.folder)
        shutil.rmtree(draft, ignore_errors=True)
        try:
            draft.mkdir(parents=True)
            self._list_into(draft)
            if not self.folder.exists():
                os.replace(draft, self.folder)
                sync_folder(self.folder.parent)
            elif not self._is_complete():  # it is, where another process was faster; else somebody cleaned up
                self._restore(draft)
        except OSError as error:
            raise storage_error(error, draft) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _restore(self, draft: Path) -> None:
        """Put the tables back into a folder that has lost its list, and the list last; clips that are there stay."""
        files = [path for path in draft.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: path.name == MEMBERS):
            place = self.folder / path.relative_to(draft)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)
        self._is_complete()  # which makes the folders

    def _list_into(self, draft: Path) -> None:
        total = self.root.stat().st_size
        folders: set[str] = set()
        tables: dict[str, int] = {}
        with (
            readable(self.root),
            bar(total, "B", "reading the archive for its tables", self.progress) as shown,
            (draft / MEMBERS).open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as listing,
        ):
            for name, member, data in members_of(self.root, whole=True, shown=shown):
                if data is None:
                    continue
                listing.write(f"{member.size}\t{name}\n")
                folder, base = os.path.split(name)
                if os.path.basename(folder) == PART:
                    folders.add(folder)
                elif (base.lower().endswith(SUFFIXES) or base == "times.txt") and base not in UNREAD:
                    tables[name] = member.size
                    if sum(tables.values()) > MAX_TABLES:
                        raise TrustError(
                            f"{self.root.name}: tables of more than {MAX_TABLES >> 30} GiB ({member.name})",
                            fix="get the release from its source again",
                            reason="archive_size",
                        )
                    _save(data, member, draft / name)
        for folder in folders:
            (draft / folder).mkdir(parents=True, exist_ok=True)
        text = json.dumps({"files": tables, "folders": sorted(folders)})
        (draft / TABLES).write_text(text, encoding="ascii", newline="\n")

    def _inside(self) -> Path:
        """The one folder that holds the wanted corpus."""
        holders = [self.folder, *(path for path in sorted(self.folder.rglob("*")) if self._may_hold(path))]
        files = [name for name in (self._options[key] for key in ("train", "dev", "test")) if name]
        found = [path for path in holders if files and all((path / name).is_file() for name in files)]
        found = found or [path for path in holders if CommonVoice.recognizes(path) or Manifest.recognizes(path)]
        if self.language:
            found = [path for path in found if path.name == self.language]
        if len(found) == 1:
            return found[0]
        names = [str(path.relative_to(self.folder)) for path in holders if path in found] or [
            path.name for path in holders[1:]
        ]
        if found:
            languages = nearest("", [path.name for path in found])
            raise DataError(
                f"{self.root.name} holds several corpora: {', '.join(names[:20])}",
                fix=f"say which: --data.language= ({languages})",
                reason="unknown_corpus",
            )
        raise DataError(
            f"{self.root.name} holds no corpus{f' named {self.language!r}' if self.language else ''}",
            possible=f"a folder with train.tsv and clips/, or a manifest; there is {', '.join(names[:20]) or 'none'}",
            fix="download the archive of the language again, or give another --data.language",
            reason="unknown_corpus",
        )

    def _may_hold(self, path: Path) -> bool:
        return path.is_dir() and PART not in path.relative_to(self.folder).parts


def _save(data: IO[bytes], member: TarInfo, path: Path) -> None:
    if path.exists():
        raise DataError(f"the archive has {member.name} twice", fix="get the release again", reason="not_archive")
    if member.size > free_bytes(path):
        raise disk_full(path, member.size)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        shutil.copyfileobj(data, file, 1 << 20)
