"""A release as it was downloaded: the .tar.gz itself is a corpus, and only wanted clips ever lie on the disk.

The order of members is accidental, so tables may follow a million clips. A first pass reads the whole archive once: it
vets every name, checks the archive to its end, saves the tables and lists the members with their sizes. Only then it is
known which clips are wanted and how much disk they take; a second pass takes them and stops after the last one. Nothing
is ever "extracted": asrkit opens regular members and writes their bytes under names that it has checked.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from tarfile import TarInfo
from typing import IO, Any

from asrkit.common_voice import CommonVoice
from asrkit.disk import disk_full, free_bytes, storage_error, sync_folder
from asrkit.errors import DataError, nearest
from asrkit.extraction import ClipWriter, announce, bar, clips, has_size, on_disk
from asrkit.manifest import Manifest
from asrkit.selection import DataReport
from asrkit.tables import SUFFIXES
from asrkit.tar_stream import fingerprint, members_of
from asrkit.utterances import Utterance

ENDINGS = (".tar.gz", ".tgz", ".tar")
MEMBERS = "members.tsv"
UNREAD = ("validated_sentences.tsv", "unvalidated_sentences.tsv")  # hundreds of MB that no reader asks for
PART = "clips"  # audio lies here; a table in it is no table of the release


class Archive:
    """A .tar.gz, .tgz or .tar with one Common Voice language (`cv-corpus-*/es/...`, or any folder) or one manifest.

    Tables and wanted clips lie in `cache`/clips-<hash of the archive>/, in the archive's own layout. language: the
    folder to take where the archive has several. All other options are those of `CommonVoice` and of `Manifest`.
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

        if not (self.folder / MEMBERS).is_file():
            self._read_tables()
        return open_corpus(self._inside(), **self._options)

    def splits(self) -> list[str]:
        """The splits of the corpus inside."""
        return self.corpus.splits()

    def read(self, split: str) -> list[Utterance]:
        """The utterances of one split; their audio is there after `fetch`. Raises as the reader inside does."""
        return self.corpus.read(split)

    def fetch(self, utterances: list[Utterance]) -> None:
        """Take the clips of these utterances that are not there yet, in one pass."""
        wanted = {os.path.relpath(utterance.audio, self.folder) for utterance in utterances}
        sizes = {name: size for name, size in self._members() if name in wanted}
        todo = {name: size for name, size in sizes.items() if not has_size(self.folder / name, size)}
        if not todo:
            return
        need = on_disk(todo.values())
        announce(self.root.name, clips(len(todo), len(sizes) - len(todo)), need, self.folder)
        writer = ClipWriter(self.folder)
        with bar(len(todo), "clip", "taking clips", self.progress) as shown:
            for name, member, data in members_of(self.root):
                if name not in todo or data is None:
                    continue
                content = data.read()
                if len(content) != todo.pop(name):
                    raise DataError(f"{self.root}: {member.name} has changed", fix="run again", reason="not_archive")
                writer.write(self.folder / name, content)
                shown.update()
                if not todo:
                    break

    def _members(self) -> Iterator[tuple[str, int]]:
        """Name and size of every file of the archive, from the list that the first pass has made."""
        with (self.folder / MEMBERS).open(encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            for line in file:
                size, _, name = line.rstrip("\n").partition("\t")
                yield name, int(size)

    def _read_tables(self) -> None:
        """The first pass. Everything is made under another name and renamed at the end."""
        draft = self.folder.with_name(f".tmp-{self.folder.name}-{os.getpid()}")
        shutil.rmtree(draft, ignore_errors=True)
        try:
            draft.mkdir(parents=True)
            self._list_into(draft)
            if not self.folder.exists():  # another process may have been faster
                os.replace(draft, self.folder)
                sync_folder(self.folder.parent)
        except OSError as error:
            raise storage_error(error, draft) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _list_into(self, draft: Path) -> None:
        total = self.root.stat().st_size
        folders = set()
        with (
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
                    _save(data, member, draft / name)
        for folder in folders:
            (draft / folder).mkdir(parents=True, exist_ok=True)

    def _inside(self) -> Path:
        """The one folder that holds the wanted corpus."""
        holders = [self.folder, *(path for path in sorted(self.folder.rglob("*")) if self._may_hold(path))]
        found = [path for path in holders if CommonVoice.recognizes(path) or Manifest.recognizes(path)]
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
