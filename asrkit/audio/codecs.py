"""Which codecs may reach the decoder library: a list of what is allowed, looked up before the library sees the file.

A wav, aiff or au file may hold one of some twenty codecs. All but a handful are decoders that nobody has used for
speech in decades and nobody tests, and that is where a crafted file finds an overflow. So the header is read here
first; what the library then says it has found is checked too.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from asrkit.errors import AudioError

WAV = {1: "PCM", 3: "float", 6: "A-law", 7: "µ-law"}
EXTENSIBLE = 0xFFFE  # of a wav: the codec stands in a longer header
AIFF = (b"NONE", b"sowt", b"twos", b"raw ", b"in24", b"in32", b"42n1", b"fl32", b"FL32", b"fl64", b"FL64",
        b"alaw", b"ALAW", b"ulaw", b"ULAW")  # fmt: skip
AU = (1, 2, 3, 4, 5, 6, 7, 27)  # µ-law, PCM of 8 to 32 bits, float, double, A-law
FORMATS = ("WAV", "WAVEX", "RF64", "AIFF", "AU", "FLAC", "OGG", "MPEG", "MP3")  # as the library calls them
SUBTYPES = ("PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW", "VORBIS", "OPUS",
            "MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III")  # fmt: skip
POSSIBLE = "PCM, float, A-law and µ-law in wav, aiff and au; flac; ogg with Vorbis, Opus or FLAC; mp3"
MAX_CHUNKS = 1_000
MAX_COMM = 1_000  # bytes: the name of the codec in words, at most 255, stands in it too
MAX_TAGS = 8  # ID3, one after the other
AFTER_TAG = (b"ID3", b"fLaC", b"TAG", b"APETAGEX", b"\0\0\0\0")  # besides a sync word; zeros fill a tag


def check_codec(source: Path | BinaryIO, name: str) -> None:
    """Raise AudioError (`codec`) for a wav, aiff, au or tagged file with anything inside that is not `POSSIBLE`.

    A stream is looked at from its beginning, and left there.
    """
    if isinstance(source, Path):
        with source.open("rb") as file:
            found = _look(file)
    else:
        found = _look(source)
        source.seek(0)
    if found:
        raise refusal(name, found)


def _look(file: BinaryIO) -> str:
    file.seek(0)
    head = file.read(4)
    looks = {b"RIFF": _wav, b"RF64": _wav, b"RIFX": _wav, b"FORM": _aiff, b".snd": _au}
    look = _tagged if head[:3] == b"ID3" else looks.get(head)
    return look(file) if look is not None else ""


def refusal(name: str, found: str) -> AudioError:
    """The error for a file that holds `found`."""
    return AudioError(
        f"{name} holds {found}, which asrkit does not decode",
        possible=POSSIBLE,
        fix="convert it to flac with the program it is from",
        reason="codec",
    )


def _chunks(file: BinaryIO, order: str, last: bytes = b"") -> list[tuple[bytes, int, bytes]]:
    """(name, size, first 64 bytes) of the chunks up to `last`; sizes are followed, not believed."""
    found: list[tuple[bytes, int, bytes]] = []
    at = 12
    while len(found) < MAX_CHUNKS:
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            break
        size = struct.unpack(f"{order}I", head[4:])[0]
        found.append((head[:4], size, file.read(min(size, 64))))
        if head[:4] == last:
            break
        at += 8 + size + size % 2
    return found


def _wav(file: BinaryIO) -> str:
    file.seek(0)
    order = ">" if file.read(4) == b"RIFX" else "<"
    for chunk, _, data in _chunks(file, order, b"data"):  # the library wants the header before the audio
        if chunk != b"fmt ":
            continue
        if len(data) < 16:
            return "a header that is too short"
        tag = struct.unpack(f"{order}H", data[:2])[0]
        if tag == EXTENSIBLE and len(data) >= 40:
            tag = struct.unpack(f"{order}H", data[24:26])[0]
        if tag not in WAV:
            return f"the codec 0x{tag:04x} of wav files"
    return ""


def _aiff(file: BinaryIO) -> str:
    """The library believes any header of an aiff file, be it behind the audio, and no file that it holds no codec."""
    file.seek(8)
    compressed = file.read(4) == b"AIFC"
    for chunk, size, data in _chunks(file, ">"):
        if chunk != b"COMM":
            continue
        if size > MAX_COMM:  # none is as long: whoever follows it misses the next one
            return f"a header of {size} bytes"
        if (compressed or len(data) > 18) and data[18:22] not in AIFF:
            return f"the codec {data[18:22]!r} of aiff files"
    return ""


def _au(file: BinaryIO) -> str:
    file.seek(12)
    code = int.from_bytes(file.read(4), "big")
    return "" if code in AU else f"the codec {code} of au files"


def _tagged(file: BinaryIO) -> str:
    """A tag may stand before anything, and the library would open whatever that is."""
    at = tags = 0
    while True:
        file.seek(at)
        head = file.read(10)
        if head[:3] != b"ID3":
            break
        if (tags := tags + 1) > MAX_TAGS:  # the library would go on to what stands behind all of them
            return f"more than {MAX_TAGS} tags"
        at += 10 + sum((byte & 127) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=False))
    sync = len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0
    if at == 0 or sync or not head or head.startswith(AFTER_TAG):
        return ""
    return f"something else than MPEG audio after its tag ({head[:4]!r})"
