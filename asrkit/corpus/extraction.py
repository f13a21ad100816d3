"""Clips taken out of an archive or of Parquet into the cache: disk need first, every file whole or absent."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from tqdm import tqdm

from asrkit.disk import disk_full, free_bytes, remove_leftovers, storage_error, temporary_name
from asrkit.errors import printable

BLOCK = 4096  # bytes that a file takes at least, and the grain of its size on most disks


def on_disk(sizes: Iterable[int]) -> int:
    """Bytes that files of these sizes take, in whole blocks."""
    return sum(-(-size // BLOCK) * BLOCK for size in sizes)


def has_size(path: Path | str, size: int | None) -> bool:
    """Whether the file is there with this size: so a clip that was taken before is known."""
    try:
        return size is not None and os.path.getsize(path) == size
    except OSError:
        return False


def announce(source: str, what: str, need: int, folder: Path, about: str = "") -> None:
    """Say on stderr what is taken and which disk it needs. Raises StorageError (`disk_full`) if that is not there.

    need: bytes; about: "about " where they are an estimate.
    """
    free = free_bytes(folder)
    sizes = f"needs {about}{need / 1e6:.1f} MB of disk, {free / 1e6:.1f} MB free"
    print(printable(f"{source}: {what} into {folder}: {sizes}"), file=sys.stderr)
    if need > free:
        raise disk_full(folder, need)


def clips(count: int, kept: int) -> str:
    """`taking 20 clips (5 are there already)`."""
    return f"taking {count} clips" + (f" ({kept} are there already)" if kept else "")


def bar(total: int, unit: str, label: str, progress: bool | None) -> tqdm:
    """A progress bar on stderr; progress: None shows it on a terminal only."""
    return tqdm(total=total, unit=unit, desc=label, unit_scale=True, disable=None if progress is None else not progress)


def new_draft(folder: Path) -> Path:
    """Where to make a folder that is renamed to this one when it is whole; the drafts of dead processes go."""
    remove_leftovers(folder.parent)
    return folder.with_name(temporary_name(folder.name))


class ClipWriter:
    """Writes clips under temporary names and renames them, so that a clip is there as a whole or not at all.

    Clips are not synced one by one (350,000 syncs would take an hour): after a power cut, the check of sizes finds what
    was lost.
    """

    def __init__(self, folder: Path) -> None:
        remove_leftovers(folder)
        self._temporary = folder / temporary_name("clip")
        self._made: set[str] = set()

    def write(self, path: Path, data: bytes) -> None:
        """Replace one clip. Raises StorageError."""
        self.copy(path, io.BytesIO(data), len(data))

    def copy(self, path: Path, data: IO[bytes], size: int) -> None:
        """Replace one clip with what is left in `data`, `size` bytes, a piece at a time. Raises StorageError."""
        try:
            parent = os.path.dirname(path)
            if parent not in self._made:
                os.makedirs(parent, exist_ok=True)
                self._made.add(parent)
            with open(self._temporary, "wb") as file:
                shutil.copyfileobj(data, file, 1 << 20)
            os.replace(self._temporary, path)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.unlink(self._temporary)
            if isinstance(error, OSError):
                raise storage_error(error, path, size) from error
            raise
