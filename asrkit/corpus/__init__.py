"""Corpora -> utterances: one `data.root` for Common Voice (folder, archive), Parquet, manifests, audio with texts.

A corpus reader (kind `corpora`) offers `recognizes(root)`, `splits()` and `read(split)`, and keeps a `report` of the
rows that it left out. Reading opens no clip. Where clips must first be taken out of something (an archive, Parquet),
the reader has `fetch(utterances)` as well: `read` says where they will lie, `fetch` puts them there. Whether the audio
can be used is for the preparation to find out.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from asrkit import registry
from asrkit.corpus.common_voice import COLLECTIVE, CommonVoice
from asrkit.corpus.manifest import Manifest
from asrkit.corpus.selection import REASONS, DataReport, Leakage, leakage, normalized, select_texts, split_hash
from asrkit.corpus.tables import SUFFIXES
from asrkit.corpus.utterances import Cells, Utterance
from asrkit.errors import DataError, RecipeError, nearest

__all__ = [
    "REASONS",
    "Cells",
    "CommonVoice",
    "Corpus",
    "DataReport",
    "Leakage",
    "Manifest",
    "Utterance",
    "fetch",
    "leakage",
    "normalized",
    "open_corpus",
    "open_data",
    "select_texts",
    "split_hash",
    "split_names",
]

FILES = ("train", "dev", "test")  # options of readers that take names of files for these splits
HUB = "hf://"  # what a Hub dataset begins with: without it, a mistyped path would be asked for there
LEFT_HUB = "mozilla-foundation/common_voice"  # answered without a network
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class Corpus(Protocol):
    """Contract of the kind `corpora`. `fetch(utterances)` is optional, see `asrkit.corpus.fetch`."""

    asrkit_api: int
    report: DataReport

    def __init__(self, root: Path | str, **options: Any) -> None: ...

    @classmethod
    def recognizes(cls, root: Path) -> bool: ...

    def splits(self) -> list[str]: ...

    def read(self, split: str) -> list[Utterance]: ...


def fetch(corpus: Corpus, utterances: Iterable[Utterance]) -> None:
    """Make the audio files of these utterances exist, where the corpus keeps them in an archive or in Parquet.

    Give it the utterances of all splits that will be used in one call: an archive is then read once. It says first how
    much disk it takes (StorageError, exit 5, when that is not there), and goes on where it was interrupted. Clips that
    the archive does not have stay missing, which the preparation reports.
    """
    take = getattr(corpus, "fetch", None)
    if take is not None:
        take(list(utterances))


def open_data(data: Mapping[str, Any], report: DataReport | None = None, progress: bool | None = None) -> Corpus:
    """The corpus of a recipe's `data:` section; raises as `open_corpus` does.

    `data.train`, `dev` and `test` that are names of files go to the reader, which then calls these splits train, dev
    and test; all other names are splits to ask it for. Options that stand at their default go only to readers that
    know them. progress: None shows it on a terminal.
    """
    if data["root"] is None:
        raise DataError(
            "data.root is not set: where is the speech?",
            possible=_POSSIBLE,
            fix="--data.root=.../cv-corpus-.../es, or make a synthetic corpus with `asrkit data synth`",
            reason="missing_corpus",
        )
    files = {key: data[key] for key, name in split_names(data).items() if name != data[key]}
    defaults = {"column": None, "language": None, "reported": "keep", "segments": "all"}
    chosen = {key: data[key] for key, default in defaults.items() if data.get(key, default) != default}
    name, path = _reader(data["root"], data.get("format"), files.values())
    known = inspect.signature(registry.load("corpora", name)).parameters
    offered = {"cache": data.get("cache"), "progress": progress}
    chosen |= {key: value for key, value in offered.items() if key in known}
    return _opened(name, path, {"report": report, **files, **chosen})


def split_names(data: Mapping[str, Any]) -> dict[str, str]:
    """train, dev, test as far as a `data:` section names them -> what `read` of its corpus is to be asked for."""
    named = {key: str(data[key]) for key in FILES if data.get(key)}
    return {key: key if Path(name).suffix.lower() in SUFFIXES else name for key, name in named.items()}


def open_corpus(root: Path | str, format: str | None = None, **options: Any) -> Corpus:
    """The corpus at `root`, by the name of its reader or by asking every registered reader.

    `options` go to the reader, those that are None left out; `report=` collects the rows it drops. Raises DataError for
    a root that is missing (`missing_corpus`) or that no reader or more than one recognizes (`unknown_corpus`);
    RecipeError for an unknown reader or option.
    """
    files = [name for key, name in options.items() if key in FILES and name is not None]
    return _opened(*_reader(root, format, files), options)


def _opened(name: str, root: Path | str, options: dict[str, Any]) -> Corpus:
    """The reader of this name with these options, which are checked."""
    cls = registry.load("corpora", name)
    parameters = list(inspect.signature(cls).parameters)
    options = {key: value for key, value in options.items() if value is not None}
    unknown = [option for option in options if option not in parameters]
    if unknown and unknown[0] in FILES:
        raise RecipeError(
            f"data.{unknown[0]} is {options[unknown[0]]!r}, but the splits of {name!r} have names, not files",
            fix=f"--data.{unknown[0]}={Path(options[unknown[0]]).stem}",
            reason="unknown_option",
        )
    if unknown:
        raise RecipeError(
            f"corpus {name!r} has no option {unknown[0]!r}",
            possible=nearest(unknown[0], [p for p in parameters if p not in ("root", "report", "progress")]) or "none",
            reason="unknown_option",
        )
    corpus: Corpus = cls(root, **options)
    return corpus


_POSSIBLE = (
    "one Common Voice language (the extracted folder with clips/ and train.tsv, or the .tar.gz as downloaded), a "
    "folder or table of your own, audio with text files beside it, Parquet files, or a Hub dataset hf://OWNER/NAME"
)
_FIX = f"get a release from {COLLECTIVE} and give its path, or make a synthetic corpus with `asrkit data synth`"


def _reader(root: Path | str, format: str | None, files: Iterable[str] = ()) -> tuple[str, Path | str]:
    """Name of the reader, and the root it gets. files: the tables that data.train, dev and test name."""
    text, path = str(root), Path(root).expanduser()
    if text.startswith(HUB):
        return _on_hub(text, format), text
    if path.exists():
        return format or _recognized(path, list(files)), path
    is_name = HUB_NAME.fullmatch(text) is not None
    if is_name and (format == "parquet" or text.startswith(LEFT_HUB)):
        return "parquet", HUB + text
    raise DataError(
        f"data.root: {root} does not exist",
        possible=_POSSIBLE,
        fix=f"correct the path, or say {HUB}{text} if a Hub dataset is meant; {_FIX}" if is_name else _FIX,
        reason="missing_corpus",
    )


def _on_hub(root: str, format: str | None) -> str:
    """The reader of a Hub dataset, whose name is looked at before anyone is asked."""
    if not HUB_NAME.fullmatch(root.removeprefix(HUB)):
        raise DataError(f"data.root: {root} names no Hub dataset", possible=f"{HUB}OWNER/NAME", reason="missing_corpus")
    if format not in (None, "parquet"):
        raise RecipeError(
            f"data.format is {format!r}, but {root} is a Hub dataset",
            possible="parquet, or no data.format",
            reason="unknown_option",
        )
    return "parquet"


def _recognized(path: Path, files: Sequence[str] = ()) -> str:
    readers = registry.loadable("corpora")
    names = list(readers)
    matches = [name for name, reader in readers.items() if reader.recognizes(path)]
    named = files and path.is_dir() and all((path / name).is_file() for name in files)
    if named and not set(matches) & {"common_voice", "manifest"}:  # lists/train.tsv: a manifest that is told, not found
        return "manifest"
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise DataError(
            f"data.root: {path} looks like {' and like '.join(matches)}",
            fix=f"say which, e.g. {matches[0]}: data.format of a recipe, --format of asrkit data",
            reason="unknown_corpus",
        )
    inside = [clips.parent for depth in ("*/clips", "*/*/clips") for clips in sorted(path.glob(depth))]
    inside = [folder for folder in inside if CommonVoice.recognizes(folder)]
    if inside:
        folders = ", ".join(str(folder) for folder in inside[:10])
        raise DataError(
            f"data.root: {path} holds languages, not one", possible=folders, fix="give one", reason="unknown_corpus"
        )
    fix = f"{_FIX}; or say what it is ({', '.join(names)}): data.format of a recipe, --format of asrkit data"
    if path.is_file() and path.suffix.lower() in (".zip", ".7z", ".rar", ".bz2", ".xz", ".zst"):
        fix = "extract it and give the folder"
    raise DataError(
        f"data.root: {path} is no corpus that asrkit knows", possible=_POSSIBLE, fix=fix, reason="unknown_corpus"
    )
