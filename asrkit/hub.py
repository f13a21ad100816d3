"""Datasets on the Hugging Face Hub, or on this disk, that are stored as Parquet.

`datasets` finds out which files belong to which split (names, folders, configurations); the files are then read by
Arrow itself (`asrkit.parquet`), since `datasets` would first copy all of them and gives no audio without torchcodec.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from asrkit.common_voice import COLLECTIVE
from asrkit.errors import DataError, StorageError, nearest
from asrkit.extraction import announce, bar
from asrkit.parquet import Shards
from asrkit.selection import DataReport
from asrkit.utterances import Utterance, without_duplicates

DEV = ("dev", "validation", "valid", "val")
HUB = "hf://"


class Parquet:
    """A .parquet file, a folder of shards, or a Hub dataset `OWNER/NAME` that is stored as Parquet.

    Needs a column of audio ({bytes, path} or bytes) and one of text: `column`, or else `sentence`, `text`,
    `transcription`, `transcript`. Speakers are `client_id`, `speaker_id` or `speaker`; all other plain columns are in
    `Utterance.extra`. `dev` finds a split named `validation` as well. language: the configuration of a dataset that has
    several. An id is the clip's file name without its ending; where names repeat, the row's number is added.

    Raises DataError for a dataset that is gone, that is a script, or that has no audio in its Parquet files.
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
        self.root, self.cache = Path(root), Path(cache).absolute()
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
            self._files = _files_of(self.root, self.language, self.cache)
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
        return list(without_duplicates(shards.utterances(split), shards.paths[0], self.report).values())

    def fetch(self, utterances: list[Utterance]) -> None:
        """Take the audio of these utterances that is not there yet out of the Parquet files."""
        wanted = {utterance.audio for utterance in utterances}
        for shards in self._shards.values():
            shards.fetch({audio for audio in wanted if audio.parent == shards.clips}, self.progress)


def _files_of(root: Path, language: str | None, cache: Path) -> dict[str, list[str]]:
    """Split -> Parquet files (paths, or hf:// addresses), as `datasets` finds them."""
    if root.is_file():
        splits = ("train", "test", *DEV)
        name = next((split for split in splits if root.stem.split("-")[0].split(".")[0] == split), "train")
        return {name: [str(root)]}
    local = root.exists()
    if not local and root.parts[0] == "mozilla-foundation" and root.name.startswith("common_voice"):
        raise _gone(root, "Common Voice has left the Hub (since October 2025)")
    import datasets

    source = str(root.resolve()) if local else root.as_posix()
    try:
        builder = datasets.load_dataset_builder(source, language, cache_dir=str(cache / "hub"))
    except Exception as error:  # `datasets` raises everything from ValueError to what its HTTP client raises
        raise _translated(root, local, error) from error
    files = {str(split): [str(file) for file in found] for split, found in (builder.config.data_files or {}).items()}
    files = {split: [file for file in found if file.endswith(".parquet")] for split, found in files.items()}
    files = {split: found for split, found in files.items() if found}
    if not files:
        raise _gone(root, "it is not stored as Parquet")
    return files


def _translated(root: Path, local: bool, error: Exception) -> Exception:
    """The error of `datasets` as ours: what happened, and the way that works."""
    text = " ".join(str(error).split())
    if "onfig name is missing" in text or "BuilderConfig" in text:
        return DataError(
            f"{root} has several configurations ({text[:300]})",
            fix="name one with --data.language=NAME",
            reason="unknown_corpus",
        )
    if local:
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
