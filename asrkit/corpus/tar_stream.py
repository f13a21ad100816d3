"""The members of a tar archive as a stream: vetted names, bounded memory, damage found out.

`tarfile` reads the headers, but never extracts: whoever uses this gets names below a folder and open plain files.
"""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from asrkit.disk import storage_error
from asrkit.errors import DataError, TrustError

MEBIBYTE = 1 << 20
GZIP = b"\x1f\x8b"
HEADER_ERROR: type[Exception] = tarfile.HeaderError
PASSED_ON: type[Exception] = tarfile.SubsequentHeaderError  # type: ignore[attr-defined]
MAX_EXTENSION = 1 << 16  # bytes of a header that carries a long name; tarfile would take gigabytes of them into memory
EXTENSIONS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
STRANGE = re.compile(r"[\x00-\x1f\x7f\\]")  # control characters, and what is a separator elsewhere


def fingerprint(archive: Path) -> str:
    """Hash of size, beginning and end: the end of a .gz has the checksum of everything in it."""
    digest = hashlib.sha256()
    try:
        with archive.open("rb") as file:
            stat = os.fstat(file.fileno())
            head = file.read(MEBIBYTE)
            file.seek(max(0, stat.st_size - MEBIBYTE))
            changed = 0 if head[:2] == GZIP else stat.st_mtime_ns
            digest.update(f"{stat.st_size} {changed}".encode() + head + file.read())
    except OSError as error:
        raise storage_error(error, archive) from error
    return digest.hexdigest()[:16]


def members_of(
    archive: Path, whole: bool = False, shown: Any = None
) -> Iterator[tuple[str, tarfile.TarInfo, IO[bytes] | None]]:
    """(vetted name, member, its bytes or None for a folder) of a tar that is read as a stream.

    whole: read on after the last member, so that a cut or changed archive is found out by its checksum, and that
    nothing but zeros follows its end.
    """
    with archive.open("rb") as raw, _disk(archive), readable(archive):
        stream: Any = Gunzip(raw) if raw.peek(2)[:2] == GZIP else raw
        with tarfile.open(fileobj=stream, mode="r:", tarinfo=_Header if stream is raw else _ChecksummedHeader) as tar:
            kept: Any = tar
            while (member := tar.next()) is not None:
                kept.members = []  # tarfile keeps them all: gigabytes for a release
                if shown is not None:
                    shown.update(raw.tell() - shown.n)
                yield _vetted(archive, member), member, tar.extractfile(member) if member.isreg() else None
            while whole and (rest := stream.read(MEBIBYTE)):
                if rest.count(0) < len(rest):
                    raise DataError(
                        f"{archive}: there is more after the end of the archive, which nothing would read",
                        possible="one archive in a file; several that were joined are to be taken apart",
                        fix="give the archive as it was downloaded, or download it again",
                        reason="not_archive",
                    )


class _ChecksummedHeader(tarfile.TarInfo):
    """A header that is damaged is an error. `tarfile` takes it for the end of the archive, unless it is the first."""

    refused: tuple[str, ...] = ("InvalidHeaderError", "TruncatedHeaderError")

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Any:
        """The next header. Raises the one error of headers that `tarfile` passes on."""
        try:
            return super().fromtarfile(tarfile)
        except HEADER_ERROR as error:
            if type(error).__name__ in cls.refused:
                raise PASSED_ON(str(error)) from error
            raise

    def _proc_member(self, tarfile: tarfile.TarFile) -> Any:
        """What `tarfile` makes of a header by its type; names that no file can have are not read."""
        if self.type in EXTENSIONS and self.size > MAX_EXTENSION:
            raise TrustError(
                f"the archive has a header of {self.size} bytes for the name of one member",
                possible=f"at most {MAX_EXTENSION}",
                fix="get the release from its source again, and do not unpack this one",
                reason="archive_member",
            )
        return super()._proc_member(tarfile)  # type: ignore[misc]


class _Header(_ChecksummedHeader):
    """Of a tar without gzip: no checksum tells that its end is missing, but the zeros that close it do."""

    refused = (*_ChecksummedHeader.refused, "EmptyHeaderError")


class Gunzip:
    """The bytes of a gzip file, forwards only, in large pieces: `gzip.GzipFile` reads 8 kB at a time in Python.

    zlib checks length and checksum of each gzip member. Raises EOFError for a file that is cut, zlib.error for a
    damaged one.
    """

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw = raw
        self._inflate = zlib.decompressobj(31)  # 31: with the header and the checksum of gzip
        self._input = self._buffer = b""
        self._at = self._position = 0
        self._ended = False

    def tell(self) -> int:
        """Bytes handed out or passed over so far."""
        return self._position

    def seek(self, offset: int) -> int:
        """Pass over bytes, up to this position."""
        if offset < self._position:
            raise tarfile.ReadError("the archive goes backwards")
        while offset > self._position and self._fill():
            step = min(len(self._buffer) - self._at, offset - self._position)
            self._at += step
            self._position += step
        return self._position

    def read(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end."""
        parts = []
        while size > 0 and self._fill():
            parts.append(self._buffer[self._at : self._at + size])
            self._at += len(parts[-1])
            self._position += len(parts[-1])
            size -= len(parts[-1])
        return b"".join(parts)

    def _fill(self) -> bool:
        """Whether there is a byte in the buffer, after trying to get one. A bomb grows by a mebibyte at a time."""
        while self._at == len(self._buffer):
            self._input = self._input or self._raw.read(MEBIBYTE // 4)
            if self._ended:  # another gzip member may follow, or zeros to the end
                while self._input and not self._input.strip(b"\0"):
                    self._input = self._raw.read(MEBIBYTE // 4)
                if not self._input:
                    return False
                self._input = self._input.lstrip(b"\0")
                self._inflate, self._ended = zlib.decompressobj(31), False
            if not self._input:
                raise EOFError("it ends too early")
            self._buffer, self._at = self._inflate.decompress(self._input, MEBIBYTE), 0
            self._ended = self._inflate.eof
            self._input = self._inflate.unused_data if self._ended else self._inflate.unconsumed_tail
        return True


@contextmanager
def readable(archive: Path) -> Iterator[None]:
    """Errors of reading as DataError (`not_archive`); also for whoever reads a member, where damage may show."""
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(
            f"{archive}: no whole tar archive ({str(error) or type(error).__name__})",
            possible="a .tar.gz as it was downloaded; a download that was interrupted is cut",
            fix="let the download finish, or download it again",
            reason="not_archive",
        ) from error


@contextmanager
def _disk(archive: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage_error(error, archive) from error


def _vetted(archive: Path, member: tarfile.TarInfo) -> str:
    """The member's name as a path below any folder. Raises TrustError for what could be written anywhere else."""
    name = member.name
    parts = [part for part in name.split("/") if part not in ("", ".")]
    problem = None
    if name.startswith("/") or ".." in parts:
        problem = "leaves its folder"
    elif STRANGE.search(name):
        problem = "has a strange name"
    elif member.issym() or member.islnk():
        problem = f"is a link to {member.linkname!r}"
    elif not (member.isreg() or member.isdir()) or member.issparse():
        problem = "is neither a plain file nor a folder"
    if problem:
        raise TrustError(
            f"{archive.name}: the member {name!r} {problem}; the whole archive is refused",
            possible="plain files and folders with names below the archive's own folder, as releases have",
            fix="get the release from its source again, and do not unpack this one",
            reason="archive_member",
        )
    return "/".join(parts)
