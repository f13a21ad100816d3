"""What `asrkit transcribe` is given: files, folders, patterns, tables, standard input."""

from __future__ import annotations

import os
import queue
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from asrkit.errors import RecipeError

if TYPE_CHECKING:
    from asrkit.audio.sources import Piece

AT_ONCE = 64  # lines of standard input that are worked on together, where so many have come
TEXT_CONTROLS = b"\t\n\r"


@dataclass(frozen=True)
class Clip:
    """One input: the file, what it is called in results, and its place below the output folder."""

    path: Path | Piece
    name: str
    place: Path


def find_clips(inputs: list[str]) -> list[Clip]:
    """The clips of files, folders (by suffix), patterns and tables (a column `path`), in the order given.

    Raises RecipeError (`usage`) for an empty name, and what `read_clips` raises.
    """
    from asrkit.audio.sources import find_audio, read_clips
    from asrkit.corpus.tables import SUFFIXES

    found: list[Clip] = []
    for given in inputs:
        if not given:  # Path("") is the working directory
            raise RecipeError("an input without a name", fix='is the variable of "$NAME" set?', reason="usage")
        path = Path(given)
        if path.suffix.lower() in SUFFIXES and path.is_file():
            found += [Clip(clip, str(clip), Path(clip.name)) for clip, _ in read_clips(path)]
            continue
        for file in find_audio([given]):
            place = file.relative_to(path) if path.is_dir() and file != path else Path(file.name)
            found.append(Clip(file, str(file), place))
    return found


def references_of(table: Path) -> dict[str, tuple[Path | Piece, str]]:
    """Name of a clip or a piece of one -> (it, sentence) of a table. Raises what `read_clips` raises."""
    from asrkit.audio.sources import read_clips

    return {clip.name: (clip, sentence) for clip, sentence in read_clips(table, ("path", "sentence"))}


class StandardInput:
    """Standard input: audio, or one path per line. Its first bytes tell which."""

    def __init__(self, stream: BinaryIO | None = None) -> None:
        if stream is None and sys.stdin is None:
            raise RecipeError("`-` without a standard input", fix="pipe audio or paths into it", reason="usage")
        self.stream = sys.stdin.buffer if stream is None else stream
        self.head = _first_bytes(self.stream)
        self.is_audio = _is_binary(self.head)

    def to_file(self) -> Path:
        """Its audio in a temporary file, whatever its length; whoever calls removes it."""
        with tempfile.NamedTemporaryFile(prefix="asrkit-stdin-", delete=False) as file:
            file.write(self.head)
            shutil.copyfileobj(self.stream, file, 1 << 20)
        return Path(file.name)

    def groups(self) -> Iterator[list[Path]]:
        """Paths as they come: one, and what else has been written by then, up to 64 at a time.

        So whoever writes a line and waits for its answer gets it, and a long list goes through in batches.
        """
        lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

        def read() -> None:
            first = self.head + self.stream.readline() if self.head and not self.head.endswith(b"\n") else self.head
            for line in first.splitlines():
                lines.put(line)
            for line in self.stream:
                lines.put(line)
            lines.put(None)

        threading.Thread(target=read, daemon=True, name="asrkit-stdin").start()
        line: bytes | None = b""
        while line is not None:
            line = lines.get()
            group: list[Path] = []
            while line is not None:
                if line.strip(b"\r\n"):
                    group.append(Path(os.fsdecode(line.rstrip(b"\r\n"))))
                if len(group) == AT_ONCE or lines.empty():
                    break
                line = lines.get()
            if group:
                yield group


def _first_bytes(stream: BinaryIO) -> bytes:
    """Up to 64 bytes, fewer where a line ends before; waits for no more than it needs."""
    head = b""
    while len(head) < 64 and b"\n" not in head:
        more = stream.read(1)
        if not more:
            break
        head += more
    return head


def _is_binary(head: bytes) -> bool:
    """Audio has control characters, or the first byte of MPEG audio, among its first bytes; a path has none."""
    return head[:1] == b"\xff" or any(byte < 32 and byte not in TEXT_CONTROLS for byte in head)
