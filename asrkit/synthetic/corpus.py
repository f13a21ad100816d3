"""Writes the corpus: who says what, spoken by a pool of processes, in the layout of a Common Voice release.

Every random number comes from (seed, index of the utterance), so neither the number of processes nor their order
changes a byte. `synth.json` is written first as incomplete and last as complete: an interrupted run starts again, a
finished one is found and left alone.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asrkit.errors import DataError, RecipeError, StorageError
from asrkit.synthetic.grammar import sentence_key, sentences
from asrkit.synthetic.layout import SplitCount, SynthReport, Utterance, begin, existing, finish
from asrkit.synthetic.voices import RATE, Speaker, find_espeak, make_speakers, private_library, speak

VERSION = 1  # of sentences, voices and layout: raise it whenever the same parameters give other files
DEFAULT_HOURS = 0.5
FORMATS = ("mp3", "flac")
_FEWEST = 3  # clips, sentences, speakers: one for each split
_GUESS_S = 2.8  # mean length of a clip, in seconds, for the first round and the progress bar
_WORTH_A_POOL = 60  # clips below which starting processes costs more than it gives


@dataclass(frozen=True)
class _Task:
    """What one process needs to make one clip."""

    index: int
    sentence: str
    speaker: Speaker
    seed: int
    path: Path
    library: str


def make_corpus(
    output: str | Path,
    *,
    hours: float | None = None,
    clips: int | None = None,
    seed: int = 1,
    format: str = "mp3",
    speakers: int = 40,
    text: str | Path | None = None,
    jobs: int | None = None,
    progress: bool = True,
) -> SynthReport:
    """Write a synthetic Spanish corpus into `output`, the folder that later is `data.root`.

    Give the size as `hours` of audio or as a number of `clips` (default: half an hour, or each line of `text` once).
    Speakers and sentences are disjoint between train (80 % of the clips), dev and test (10 % each). `text` is a UTF-8
    file with one sentence per line; when more clips are asked for than it has lines, other speakers of the same split
    repeat them. `jobs` is the number of processes (default: one per core; a script that asks for more than one needs
    the usual `if __name__ == "__main__":`). With the same parameters and the corpus already complete in `output`, it
    returns at once with `already_there`.

    Raises RecipeError for parameters that cannot be and without the extra `synth`; DataError for an unusable `text`
    and for an `output` that holds something else; StorageError when the disk refuses.
    """
    started = time.monotonic()
    _check(hours, clips, seed, format, speakers, jobs)
    lines, repeated = _read_text(Path(text)) if text is not None else (None, 0)
    if hours is None and clips is None:
        hours, clips = (DEFAULT_HOURS, None) if lines is None else (None, len(lines))
    parameters = {
        "version": VERSION,
        "seed": seed,
        "hours": hours,
        "clips": clips,
        "format": format,
        "speakers": speakers,
        "text_sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines is not None else None,
    }
    output = Path(output)
    if (found := existing(output, parameters)) is not None:
        return found
    find_espeak()
    try:
        begin(output, parameters)
        size = _Size(clips, None if hours is None else hours * 3600)
        voices = make_speakers(speakers, seed)
        with private_library() as library:
            tasks = _tasks(output / "clips", seed, format, voices, lines, library)
            utterances = _speak_until(tasks, size, jobs, progress)
        counts = _count(utterances, time.monotonic() - started, output, repeated)
        finish(output, parameters, utterances, counts)
    except OSError as error:
        raise StorageError(
            f"cannot write the corpus into {output} ({error})",
            fix="free some space or give another --output",
            reason="cannot_write",
        ) from error
    return counts


def _check(hours: float | None, clips: int | None, seed: int, format: str, speakers: int, jobs: int | None) -> None:
    if hours is not None and clips is not None:
        raise RecipeError("both --hours and --clips are given", fix="give one of them", reason="synth_size")
    if hours is not None and not (hours > 0 and math.isfinite(hours)):
        raise RecipeError(f"--hours {hours}", possible="a positive number", fix="try --hours 0.5", reason="synth_size")
    if seed < 0:
        raise RecipeError(f"--seed {seed}", possible="0 or more", fix="leave out the sign", reason="synth_seed")
    for name, value in (("clips", clips), ("speakers", speakers)):
        if value is not None and value < _FEWEST:
            raise RecipeError(
                f"--{name} {value} cannot fill train, dev and test",
                possible=f"{_FEWEST} or more",
                fix=f"give --{name} {_FEWEST} or more",
                reason="synth_size",
            )
    if format not in FORMATS:
        raise RecipeError(
            f"--format {format}", possible=", ".join(FORMATS), fix="take one of these", reason="unknown_format"
        )
    if jobs is not None and jobs < 1:
        raise RecipeError(f"--jobs {jobs}", possible="1 or more", fix="leave it out", reason="synth_jobs")


def _read_text(path: Path) -> tuple[list[str], int]:
    """The distinct sentences of a file and the number of lines that repeat another; empty lines do not count."""
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"--text {path} cannot be read ({error})", fix="give a UTF-8 text file", reason="text_unreadable"
        ) from error
    distinct: dict[str, str] = {}
    total = 0
    for number, line in enumerate(content.splitlines(), start=1):
        sentence = " ".join(line.split())
        if not sentence:
            continue
        if any(letter.isdigit() for letter in sentence) or not any(letter.isalpha() for letter in sentence):
            raise DataError(
                f"--text {path}, line {number}: {sentence!r} has digits or no letters",
                possible="sentences with numbers written as words",
                fix="write it as it is spoken",
                reason="text_not_words",
            )
        total += 1
        distinct.setdefault(sentence_key(sentence), sentence)
    if len(distinct) < _FEWEST:
        raise DataError(
            f"--text {path} has {len(distinct)} distinct sentences",
            possible=f"{_FEWEST} or more, one for each split",
            fix="add sentences, one per line",
            reason="text_too_short",
        )
    return list(distinct.values()), total - len(distinct)


def _split_of(number: int) -> str:
    """The split of sentence `number`: any first part of the corpus has about 80 % train, 10 % dev, 10 % test."""
    return {1: "dev", 2: "test"}.get(number % 10, "train")


def _tasks(
    folder: Path, seed: int, format: str, speakers: list[Speaker], lines: list[str] | None, library: str
) -> Iterator[tuple[str, _Task]]:
    """Endless (split, task): the sentence decides the split, the speakers of the split take turns."""
    held_out = max(1, round(len(speakers) / 8))
    of_split = {
        "dev": speakers[:held_out],
        "test": speakers[held_out : 2 * held_out],
        "train": speakers[2 * held_out :],
    }
    source = enumerate(sentences(seed)) if lines is None else itertools.cycle(enumerate(lines))
    for index, (number, sentence) in enumerate(source):
        if number == 0:
            turns = dict.fromkeys(of_split, 0)
        split = _split_of(number)
        again = index // len(lines) if lines else 0  # a sentence said again goes to the next speaker
        speaker = of_split[split][(turns[split] + again) % len(of_split[split])]
        turns[split] += 1
        path = folder / f"common_voice_es_{10_000_000 + index}.{format}"
        yield split, _Task(index, sentence, speaker, seed, path, library)


@dataclass(frozen=True)
class _Size:
    """How much is wanted: a number of clips, or seconds of audio."""

    clips: int | None
    seconds: float | None

    def missing(self, done: list[Utterance], seconds: float) -> int:
        """About how many clips are still to be made; 0 when it is enough."""
        if self.seconds is None:
            return (self.clips or 0) - len(done)
        mean = seconds / len(done) if done else _GUESS_S
        return max(_FEWEST - len(done), math.ceil((self.seconds - seconds) / mean), 0)


def _speak_until(tasks: Iterator[tuple[str, _Task]], size: _Size, jobs: int | None, progress: bool) -> list[Utterance]:
    """Speak rounds of tasks until the wanted size is reached; the shortest prefix that reaches it is kept."""
    processes = jobs if jobs is not None else 1 if size.missing([], 0.0) < _WORTH_A_POOL else _cores()
    done: list[Utterance] = []
    seconds = 0.0
    with ExitStack() as stack:
        pool = None
        if processes > 1:  # spawn: forking a process that has threads (torch's) can hang
            pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(processes))
        bar = stack.enter_context(_bar(size, progress))
        while more := size.missing(done, seconds):
            batch = list(itertools.islice(tasks, more))
            clips = [task for _, task in batch]
            made = pool.imap(_make_clip, clips, chunksize=8) if pool else map(_make_clip, clips)
            for (split, task), samples in zip(batch, made, strict=True):
                if not size.missing(done, seconds):
                    task.path.unlink()
                    continue
                done.append(Utterance(split, task.sentence, task.speaker, task.path.name, samples / RATE))
                seconds += samples / RATE
                bar.update(1 if size.seconds is None else samples / RATE)
    return done


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _bar(size: _Size, progress: bool) -> Any:
    from tqdm import tqdm

    hidden = not (progress and sys.stderr.isatty())
    if size.seconds is None:
        return tqdm(total=size.clips, unit="clip", desc="speaking", disable=hidden, leave=False)
    layout = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of audio [{elapsed}<{remaining}]"
    return tqdm(total=size.seconds, desc="speaking", bar_format=layout, disable=hidden, leave=False)


def _make_clip(task: _Task) -> int:
    """Speak and write one clip; returns its number of samples."""
    import soundfile

    clip = speak(task.sentence, task.speaker, np.random.default_rng([task.seed, task.index]), task.library)
    kind = task.path.suffix[1:].upper()
    if kind not in soundfile.available_formats():
        raise RecipeError(
            f"this libsndfile ({soundfile.__libsndfile_version__}) cannot write {kind}",
            possible=", ".join(name for name in FORMATS if name.upper() in soundfile.available_formats()),
            fix="give --format flac, or install the soundfile wheel",
            reason="unknown_format",
        )
    try:
        soundfile.write(task.path, clip, RATE, format=kind, subtype="PCM_16" if kind == "FLAC" else None)
    except soundfile.LibsndfileError as error:
        raise OSError(f"{task.path.name}: {error}") from error
    return len(clip)


def _count(utterances: list[Utterance], elapsed: float, output: Path, repeated: int) -> SynthReport:
    splits = {}
    for split in ("train", "dev", "test"):
        own = [utterance for utterance in utterances if utterance.split == split]
        splits[split] = SplitCount(
            clips=len(own),
            hours=sum(utterance.seconds for utterance in own) / 3600,
            speakers=len({utterance.speaker.client_id for utterance in own}),
            sentences=len({utterance.sentence for utterance in own}),
        )
    return SynthReport(output, splits, repeated_lines=repeated, seconds_taken=elapsed, already_there=False)
