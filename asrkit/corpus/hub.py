"""Datasets on the Hugging Face Hub, or on this disk, that are stored as Parquet.

`datasets` finds out which files belong to which split (names, folders, configurations); the files are then read by
Arrow itself (`asrkit.corpus.parquet`), since `datasets` would first copy all of them and gives no audio without
torchcodec.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

from asrkit.corpus import HUB
from asrkit.corpus.common_voice import COLLECTIVE
from asrkit.corpus.duplicates import without_duplicates
from asrkit.corpus.extraction import announce, bar
from asrkit.corpus.parquet import Shards
from asrkit.corpus.selection import DataReport
from asrkit.corpus.utterances import Utterance
from asrkit.errors import DataError, StorageError, nearest

DEV = ("dev", "validation", "valid", "val")
ALL = "all"  # data.language: the shards of every folder


class Parquet:
    """A .parquet file, a folder of shards, or a Hub dataset `hf://OWNER/NAME` that is stored as Parquet.

    Needs a column of audio ({bytes, path} or bytes) and one of text: `column`, or else `sentence`, `text`,
    `transcription`, `transcript`. Speakers are `client_id`, `speaker_id` or `speaker`; all other plain columns are in
    `Utterance.extra`. `dev` finds a split named `validation` as well. language: the configuration of a dataset that has
    several, or the folder to take where the shards of a split lie in several. An id is the clip's file name without its
    ending; where names repeat within the split, the row's number is added, and where there is none, it is the
    dataset's own name of the split with the row's number.

    Raises DataError for a dataset that is gone, that is a script, that has no audio in its Parquet files, or that has
    several languages and none is chosen.
    """

    asrkit_api = 1

    def __init__(
        self,
        root: Path | str,
        cache: Path | str = "runs/.cache",
        language: str | None = None,
        column: str | None = None,
        report: DataReport | None = None,
        progress: bool | None = None,
    ) -> None:
        self.remote = str(root).startswith(HUB)
        self.root, self.cache = Path(str(root).removeprefix(HUB)), Path(cache).absolute()
        self.remote = self.remote or not self.root.exists()
        self.language, self.column, self.progress = language, column, progress
        self.report = DataReport() if report is None else report
        self._files: dict[str, list[str]] | None = None
        self._shards: dict[str, Shards] = {}

    @classmethod
    def recognizes(cls, root: Path) -> bool:
        """Whether `root` is a .parquet file, or has some in it or two folders below."""
        if root.is_file():
            return root.suffix.lower() == ".parquet"
        return any(any(root.glob(f"{depth}*.parquet")) for depth in ("", "*/", "*/*/"))

    def splits(self) -> list[str]:
        """The splits, with the names that the dataset gives them."""
        if self._files is None:
            self._files = _files_of(self.root, self.remote, self.language, self.cache)
        return list(self._files)

    def read(self, split: str) -> list[Utterance]:
        """The utterances of one split, in the order of the shards; their audio is there after `fetch`.

        The shards of a Hub dataset are downloaded first (resumable, kept in the Hub's own cache).
        """
        names = self.splits()
        found = next((name for name in (split, *(DEV if split in DEV else ())) if name in names), None)
        if found is None or self._files is None:
            raise DataError(f"{self.root}: no split {split!r}", possible=nearest(split, names), reason="unknown_split")
        if found not in self._shards:
            paths = _downloaded(self._files[found], self.progress)
            self._shards[found] = Shards(paths, self.cache, self.column)
        shards = self._shards[found]
        return list(without_duplicates(shards.utterances(split, found), shards.paths[0], self.report).values())

    def fetch(self, utterances: list[Utterance]) -> None:
        """Take the audio of these utterances that is not there yet out of the Parquet files."""
        wanted = {utterance.audio for utterance in utterances}
        for shards in self._shards.values():
            shards.fetch({audio for audio in wanted if audio.parent == shards.clips}, self.progress)


def _files_of(root: Path, remote: bool, language: str | None, cache: Path) -> dict[str, list[str]]:
    """Split -> Parquet files (paths, or hf:// addresses), as `datasets` finds them."""
    if not remote and root.is_file():
        splits = ("train", "test", *DEV)
        name = next((split for split in splits if root.stem.split("-")[0].split(".")[0] == split), "train")
        return {name: [str(root)]}
    if remote and root.parts[:1] == ("mozilla-foundation",) and root.name.startswith("common_voice"):
        raise _gone(root, "Common Voice has left the Hub (since October 2025)")
    source = root.as_posix() if remote else str(root.resolve())
    try:
        files, configured = _asked(source, language, cache), language is not None
    except Exception as error:  # `datasets` raises everything from ValueError to what its HTTP client raises
        if language is None or not _of_configuration(error):
            raise _translated(root, remote, error) from error
        try:  # no such configuration: a folder of this name?
            files, configured = _asked(source, None, cache), False
        except Exception:
            raise _translated(root, remote, error) from error
    if not files:
        raise _gone(root, "it is not stored as Parquet")
    return files if configured else _of_one_folder(root, source, files, language)


def _asked(source: str, language: str | None, cache: Path) -> dict[str, list[str]]:
    """What `datasets` answers."""
    import datasets

    builder = datasets.load_dataset_builder(source, language, cache_dir=str(cache / "hub"))
    files = {str(split): [str(file) for file in found] for split, found in (builder.config.data_files or {}).items()}
    files = {split: [file for file in found if file.endswith(".parquet")] for split, found in files.items()}
    return {split: found for split, found in files.items() if found}


def _of_configuration(error: Exception) -> bool:
    return any(words in str(error) for words in ("onfig name is missing", "BuilderConfig"))


def _of_one_folder(root: Path, source: str, files: dict[str, list[str]], language: str | None) -> dict[str, list[str]]:
    """The files below a folder of this name. Without a name, every split must lie in one folder: `datasets` would make
    one split of es/train and ca/train, without a word."""
    if language == ALL:
        return files
    base = re.compile(re.escape(source + "/") + "|hf://[^/]+/[^/]+/[^/]+/")
    every = [file for found in files.values() for file in found]
    folders = {file: PurePosixPath(base.sub("", file, count=1)).parts[:-1] for file in every}
    parts = [set(names) for names in folders.values()]
    names = parts[0].union(*parts) - parts[0].intersection(*parts) - {"train", "test", *DEV}
    wanted = {
        split: chosen
        for split, found in files.items()
        if (chosen := [file for file in found if not language or language in folders[file]])
    }
    if wanted and all(len({folders[file] for file in found}) == 1 for found in wanted.values()):
        return wanted
    what = f"no folder {language!r} in it" if language else "the files of one split lie in several folders"
    raise DataError(
        f"data.root: {root}: {what}",
        possible=f"{nearest(language or '', names)}; or {ALL}, for every folder" if names else "no data.language",
        fix="name one with --data.language=NAME",
        reason="unknown_corpus",
    )


def _translated(root: Path, remote: bool, error: Exception) -> Exception:
    """The error of `datasets` as ours: what happened, and the way that works."""
    text = " ".join(str(error).split())
    if _of_configuration(error):
        return DataError(
            f"{root} has several configurations ({text[:300]})",
            fix="name one with --data.language=NAME",
            reason="unknown_corpus",
        )
    if not remote:
        return DataError(
            f"{root}: {text[:300]}", fix="give one .parquet file, or a folder of them", reason="not_parquet"
        )
    if "scripts are no longer supported" in text or "trust_remote_code" in text:
        return _gone(root, "it is a script, which would run a stranger's code (`datasets` refuses it too)")
    if isinstance(error, OSError) and "doesn't exist" not in text and "gated" not in text:
        return StorageError(
            f"{root} is no folder here, and the Hub cannot be reached ({text[:200]})",
            fix="check the path, or the connection; offline, give a folder of .parquet files or a Common Voice folder",
            reason="offline",
        )
    return _gone(root, f"it is no folder here, and on the Hub: {text[:200]}")


def _gone(root: Path, why: str) -> DataError:
    return DataError(
        f"data.root: the Hub dataset {root.as_posix()} cannot be used: {why}",
        possible="a Hub dataset stored as Parquet, a folder of .parquet files, an extracted release or its .tar.gz",
        fix=f"get Common Voice from {COLLECTIVE} and give the folder or the .tar.gz as data.root",
        reason="hub_dataset",
    )


def _downloaded(files: list[str], progress: bool | None) -> list[Path]:
    """Local paths of these files; those of the Hub are downloaded into its own cache, which resumes."""
    if not any(file.startswith(HUB) for file in files):
        return [Path(file) for file in files]
    import huggingface_hub as hub

    system = hub.HfFileSystem()
    places: list[Any] = [system.resolve_path(file) for file in files]
    wanted: list[dict[str, Any]] = [
        {"repo_id": p.repo_id, "filename": p.path_in_repo, "repo_type": p.repo_type, "revision": p.revision}
        for p in places
    ]
    name = places[0].repo_id
    try:
        cached = [isinstance(hub.try_to_load_from_cache(**what), str) for what in wanted]
        sizes = [0 if there else int(system.info(file)["size"]) for file, there in zip(files, cached, strict=True)]
        announce(name, f"downloading {len(files) - sum(cached)} Parquet files", sum(sizes), _hub_cache())
        paths = []
        with bar(len(files), "file", f"downloading {name}", progress) as shown:
            for what in wanted:
                paths.append(Path(hub.hf_hub_download(**what)))
                shown.update()
        return paths
    except OSError as error:
        raise StorageError(
            f"{name}: the download stopped ({' '.join(str(error).split())[:200]})",
            fix="run the same command again: it goes on where it stopped",
            reason="download",
        ) from error


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)
