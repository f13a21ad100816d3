"""Writing to disk so that a crash leaves the old or the new contents, leftovers of killed processes, and disk errors in
words."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from asrkit.errors import InUseError, StorageError


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file and wait until it is on disk. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(path: str | Path, data: bytes | str) -> None:
    """Replace a file so that readers see the old or the new contents, also after a crash. Raises StorageError."""
    path = Path(path)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        write_synced(temporary, data.encode() if isinstance(data, str) else data)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise storage_error(error, path, len(data)) from error


def storage_error(error: OSError, path: Path, size: int = 0) -> StorageError:
    """The one-line form of an OSError; a full disk says how much is needed and free."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(path, size)
    fix = "check that the folder exists and may be written to"
    return StorageError(f"{path}: {error.strerror or error}", fix=fix, reason="storage")


def disk_full(path: Path, size: int) -> StorageError:
    """StorageError "needs X MB, Y MB free" for `size` bytes that did not fit."""
    try:
        free = f"{free_bytes(path) / 1e6:.1f} MB free"
    except OSError:
        free = "free space unknown"
    what = f"{path}: no space left: needs {size / 1e6:.1f} MB, {free}"
    return StorageError(what, fix="free some space; the same command goes on", reason="disk_full")


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold an output folder, so that no second process writes into it; nothing is left there.

    The kernel frees the lock of a process that died. Raises InUseError (exit 6), StorageError for no such folder.
    """
    import fcntl

    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise storage_error(error, folder) from error
    try:
        with contextlib.suppress(OSError):  # a file system without locks: as good as it gets
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                what = f"{folder} is being written to by another process"
                raise InUseError(what, fix="wait for it, or give another folder", reason="in_use") from error
        yield
    finally:
        os.close(descriptor)


def unreadable(error: OSError, name: Path | str) -> StorageError:
    """The error for a file that is there and cannot be read now: unlike a broken file, it may be well tomorrow."""
    if isinstance(error, PermissionError):
        fix = "give this user the right to read it, and to enter its folders"
    else:
        fix = "mend the disk or its connection; the same command goes on"
    return StorageError(f"{name} cannot be read: {error.strerror or error}", fix=fix, reason="unreadable")


def temporary_name(name: str) -> str:
    """A name for what this process is about to make; `remove_leftovers` finds it if the process is killed."""
    return f".tmp-{socket.gethostname()}-{os.getpid()}-{name}"


def remove_leftovers(folder: Path) -> None:
    """Remove what processes of this machine that are no more have left unfinished in a folder.

    What those of other machines made (the folder may be shared) may still be written to.
    """
    for path in folder.glob(".tmp-*"):
        match = re.match(rf"\.tmp-(?:{re.escape(socket.gethostname())}-)?(\d+)-", path.name)
        if match is None:
            continue
        try:
            os.kill(int(match[1]), 0)
        except (ProcessLookupError, OverflowError):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()
        except OSError:  # it lives, and is somebody else's
            continue


def free_bytes(path: Path) -> int:
    """Free bytes on the disk that holds, or will hold, `path`."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free
