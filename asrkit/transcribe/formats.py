"""A transcript as text of the usual formats: `FORMATS[form](transcript) -> str`, every one complete in itself.

txt: the text. json, jsonl: one object on one line, with everything. tsv: start, end (milliseconds) and text of every
cue. srt (SubRip), vtt (W3C WebVTT): subtitles. ctm: a line per word as NIST's sclite reads it. TextGrid: the long text
format of Praat's manual, tiers `words` and `cues`. Times are those of the words; ctm, srt and the like have no place
for a status, so what was not transcribed is an empty file there.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asrkit.transcribe.transcript import Transcript, Word

# What a viewer can read at a glance: two lines of 42 characters for at most seven seconds; a pause ends a cue.
CUE_LETTERS, CUE_SECONDS, CUE_PAUSE = 84, 7.0, 0.8
LINE_LETTERS = 42
SHORTEST = 0.001  # seconds; below it start and end look the same, and players skip the cue


def cues(words: Sequence[Word]) -> list[Sequence[Word]]:
    """Words -> subtitles: a new one after a pause of 0.8 s, and before it would pass 84 letters or 7 s."""
    found: list[list[Word]] = []
    letters = 0
    for word in words:
        length = len(word.word) + 1
        last = found[-1] if found else None
        if (
            last is None
            or word.start - last[-1].end >= CUE_PAUSE
            or letters + length > CUE_LETTERS + 1
            or word.end - last[0].start > CUE_SECONDS
        ):
            found.append([word])
            letters = length
        else:
            last.append(word)
            letters += length
    return list(found)


def _spans(transcript: Transcript) -> Iterator[tuple[float, float, str]]:
    """(start, end, text) of every cue, in seconds; each ends before the next one starts."""
    found = cues(transcript.words)
    for index, cue in enumerate(found):
        end = max(cue[-1].end, cue[0].start + SHORTEST)
        if index + 1 < len(found):
            end = max(min(end, found[index + 1][0].start), cue[0].start)
        yield cue[0].start, end, " ".join(word.word for word in cue)


def _txt(transcript: Transcript) -> str:
    return transcript.text + "\n"


def _json(transcript: Transcript) -> str:
    """File names that are not valid UTF-8 come out with escapes that `os.fsencode` turns into their bytes again."""
    data = asdict(transcript)
    text = json.dumps(data, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(data, allow_nan=False)
    return text + "\n"


def _tsv(transcript: Transcript) -> str:
    rows = [f"{round(1000 * start)}\t{round(1000 * end)}\t{text}" for start, end, text in _spans(transcript)]
    return "\n".join(["start\tend\ttext", *rows]) + "\n"


def _clock(seconds: float, point: str) -> str:
    """hh:mm:ss,mmm; hours take as many digits as they need."""
    milliseconds = round(1000 * seconds)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"


def _lines(text: str) -> str:
    """A cue on one line, or on two of about the same length."""
    if len(text) <= LINE_LETTERS:
        return text
    breaks = [place for place, letter in enumerate(text) if letter == " "]
    if not breaks:
        return text
    middle = min(breaks, key=lambda place: abs(place - len(text) // 2))
    return f"{text[:middle]}\n{text[middle + 1 :]}"


def _srt(transcript: Transcript) -> str:
    blocks = [
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{_lines(text)}\n"
        for number, (start, end, text) in enumerate(_spans(transcript), 1)
    ]
    return "\n".join(blocks)


def _vtt(transcript: Transcript) -> str:
    escape = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
    blocks = [
        f"{_clock(start, '.')} --> {_clock(end, '.')}\n{_lines(text).translate(escape)}\n"
        for start, end, text in _spans(transcript)
    ]
    return "\n".join(["WEBVTT\n", *blocks])


def _field(text: str) -> str:
    """Text as one field of a table whose columns are separated by white space; `%` and what cannot be written escaped
    as in URLs."""

    def escaped(match: re.Match[str]) -> str:
        return "".join(f"%{byte:02X}" for byte in os.fsencode(match[0]))

    return re.sub(r"[\s%]|[\ud800-\udfff]", escaped, text) or "%20"


def _ctm(transcript: Transcript) -> str:
    """`file channel start duration word confidence`; the file is the whole name of the source, white space as %20."""
    name = _field(transcript.source)
    return "".join(
        f"{name} 1 {word.start:.3f} {max(word.end - word.start, 0.0):.3f} {_field(word.word)} {word.confidence:.4f}\n"
        for word in transcript.words
    )


def _without_gaps(spans: Iterable[tuple[float, float, str]], end: float) -> list[tuple[float, float, str]]:
    """Intervals that cover [0, end], the silent ones with an empty text: Praat wants no gap and no overlap."""
    found: list[tuple[float, float, str]] = []
    at = 0.0
    for start, stop, text in spans:
        start, stop = max(start, at), min(max(stop, start, at), end)
        if stop <= start:
            continue  # nothing of it is left beside its neighbours
        if start > at:
            found.append((at, start, ""))
        found.append((start, stop, text))
        at = stop
    if at < end or not found:
        found.append((at, end, ""))
    return found


def _tier(number: int, name: str, intervals: list[tuple[float, float, str]], end: float) -> list[str]:
    lines = [
        f"    item [{number}]:",
        '        class = "IntervalTier"',
        f'        name = "{name}"',
        "        xmin = 0",
        f"        xmax = {end}",
        f"        intervals: size = {len(intervals)}",
    ]
    for index, (start, stop, text) in enumerate(intervals, 1):
        quoted = text.replace('"', '""')
        lines += [
            f"        intervals [{index}]:",
            f"            xmin = {start}",
            f"            xmax = {stop}",
            f'            text = "{quoted}"',
        ]
    return lines


def _textgrid(transcript: Transcript) -> str:
    last = transcript.words[-1].end if transcript.words else 0.0
    end = max(transcript.seconds, last, SHORTEST)
    words = ((word.start, word.end, word.word) for word in transcript.words)
    tiers = {"words": _without_gaps(words, end), "cues": _without_gaps(_spans(transcript), end)}
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0",
        f"xmax = {end}",
        "tiers? <exists>",
        f"size = {len(tiers)}",
        "item []:",
    ]
    for number, (name, intervals) in enumerate(tiers.items(), 1):
        lines += _tier(number, name, intervals, end)
    return "\n".join(lines) + "\n"


FORMATS: dict[str, Callable[[Transcript], str]] = {
    "txt": _txt,
    "srt": _srt,
    "vtt": _vtt,
    "tsv": _tsv,
    "json": _json,
    "jsonl": _json,
    "ctm": _ctm,
    "TextGrid": _textgrid,
}
