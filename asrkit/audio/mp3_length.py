"""How long an MP3 file says it is, which takes a look at all of its frames: in pieces, since it may have hours."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

PIECE_BYTES = 1 << 20  # of a file that is looked through
MPEG1_KILOBITS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)  # per second, layer III
MPEG2_KILOBITS = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)


def claimed_mp3_frames(frames: int, rate: int, source: Path | BinaryIO) -> int | None:
    """Frames by the Xing or VBRI header, or by the space between the first and the last good MPEG frame.

    Without such a header the decoder divides the size of the file, tags included, by the first bit rate, and stops
    there: too late with a picture in a tag, too early with a variable rate. A good MPEG frame has another after it.
    """
    with contextlib.ExitStack() as closing:
        file = closing.enter_context(source.open("rb")) if isinstance(source, Path) else source
        file.seek(0)
        head = file.read(10)
        tag = 0
        if head[:3] == b"ID3":  # the size is four times seven bits
            tag = 10 + sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        file.seek(tag)
        start = file.read(256)
        if any(mark in start for mark in (b"Xing", b"Info", b"VBRI")):
            return frames
        sync = start[:2]
        if len(sync) < 2 or sync[1] & 6 != 2:  # layer III only
            return None
        samples, kilobits = (1152, MPEG1_KILOBITS) if sync[1] >> 3 & 3 == 3 else (576, MPEG2_KILOBITS)
        ends: dict[int, list[int]] = {}  # where another frame should follow -> the places of those it should follow
        first, last, after, count, total = -1, -1, 0, 0, 0  # of the good frames
        for place, code in _syncs(file, sync, tag):
            size = samples // 8 * kilobits[code >> 4] * 1000 // rate + (code >> 1 & 1)
            ends.setdefault(place + size, []).append(place)
            for begin in ends.pop(place, ()):
                first = begin if first < 0 else min(first, begin)
                count, total = count + 1, total + place - begin
                if begin > last:
                    last, after = begin, place + size  # nothing follows the last frame, so it is not among the good
            if len(ends) > 1000:
                ends = {end: begins for end, begins in ends.items() if end > place}
    if not count:
        return None
    return round((after - first) * count / total * samples)


def _syncs(file: BinaryIO, sync: bytes, start: int) -> Iterator[tuple[int, int]]:
    """Where `sync` with a valid bit rate after it stands, and the byte with the rate; read in pieces."""
    pattern = re.compile(re.escape(sync) + b"(.)", re.DOTALL)
    file.seek(start)
    data = b""
    while piece := file.read(PIECE_BYTES):
        data = data[-2:] + piece
        for match in pattern.finditer(data):
            if 0 < match[1][0] >> 4 < 15:
                yield start - len(data[: -len(piece)]) + match.start(), match[1][0]
        start += len(piece)
