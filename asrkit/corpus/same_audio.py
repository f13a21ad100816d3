"""The same recording under two names in two splits: what neither ids nor paths show.

Files of different sizes differ. Of those whose size another split has too, a page from the middle is compared, and only
where that is equal, all of their bytes: 360,000 clips take seconds. The answer is kept beside the features, under a
hash of all names, sizes and times of change.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from asrkit.corpus.selection import leakage
from asrkit.disk import atomic_write, storage_error, unreadable

if TYPE_CHECKING:
    from asrkit.corpus.utterances import Utterance

PAGE = 4096  # bytes
State = tuple[int, int]  # size in bytes, time of change in ns


def same_audio(
    splits: Mapping[str, Sequence[Utterance]], cache: Path, usable: Callable[[Utterance], bool]
) -> dict[str, list[str]]:
    """Pair of splits (`train/test`) -> ids of the second whose file has the bytes of a file of the first.

    Files that are not there or empty are nobody's; `usable` is asked once for each group of equal files, since the same
    web page, or the same silence, under two names is no recording that two splits share. Raises StorageError where
    `cache` cannot be written, or a file that is there cannot be read.
    """
    states = {name: _states(utterance.audio for utterance in utterances) for name, utterances in splits.items()}
    digests = _known_digests(states, cache)
    if not digests:
        return {}
    involved = {name: [u for u in utterances if u.audio in digests] for name, utterances in splits.items()}
    one_of_each = {digests[u.audio]: u for utterances in involved.values() for u in utterances}
    recordings = {digest for digest, utterance in one_of_each.items() if usable(utterance)}
    left = {name: [u for u in found if digests[u.audio] in recordings] for name, found in involved.items()}
    return leakage(left, hashes=digests).audio


def _states(files: Iterable[Path]) -> dict[Path, State]:
    found = {}
    for path in files:
        try:
            stat = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise unreadable(error, path) from error
        if stat.st_size:
            found[path] = (stat.st_size, stat.st_mtime_ns)
    return found


def _known_digests(states: Mapping[str, Mapping[Path, State]], cache: Path) -> dict[Path, str]:
    """`_equal_files`, remembered in `cache`; no file is opened if no two splits have files of one size."""
    splits_of: defaultdict[int, set[str]] = defaultdict(set)
    for name, found in states.items():
        for size, _ in found.values():
            splits_of[size].add(name)
    candidates = {
        path: state for found in states.values() for path, state in found.items() if len(splits_of[state[0]]) > 1
    }
    if not candidates:
        return {}
    lines = sorted(f"{path} {size} {changed}" for path, (size, changed) in candidates.items())
    memory = cache / f"same-audio-{hashlib.sha256(os.fsencode(chr(10).join(lines))).hexdigest()[:16]}.json"
    try:
        return {Path(path): digest for path, digest in json.loads(memory.read_bytes()).items()}
    except (OSError, ValueError):
        digests = _equal_files({path: size for path, (size, _) in candidates.items()})
    try:
        cache.mkdir(parents=True, exist_ok=True)
        atomic_write(memory, json.dumps({str(path): digest for path, digest in digests.items()}) + "\n")
    except OSError as error:
        raise storage_error(error, cache) from error
    return digests


def _equal_files(sizes: Mapping[Path, int]) -> dict[Path, str]:
    """File -> sha256 of its bytes, of the files that have an equal."""
    pages = {path: _digest(path, (size - PAGE) // 2 if size > PAGE else 0, PAGE) for path, size in sizes.items()}
    groups = Counter((sizes[path], page) for path, page in pages.items())
    whole = {path: _digest(path) for path, page in pages.items() if groups[sizes[path], page] > 1}
    counts = Counter(whole.values())
    return {path: digest for path, digest in whole.items() if counts[digest] > 1}


def _digest(path: Path, start: int = 0, length: int | None = None) -> str:
    """sha256 of `length` bytes (None: of all) from `start`; of a file that has gone its name, which equals nothing."""
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            if length is None:
                return hashlib.file_digest(file, "sha256").hexdigest()
            return hashlib.sha256(file.read(length)).hexdigest()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return str(path)
    except OSError as error:
        raise unreadable(error, path) from error
