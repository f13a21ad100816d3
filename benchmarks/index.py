"""Indexing a release of the size of Common Voice Spanish: time, memory, and the share of the bare reading of lines.

    python benchmarks/index.py [--rows 360000] [--folder DIR]

Writes a train.tsv of 13 columns (as releases since 17 have them) and a clip_durations.tsv for 4.7 times as many clips
(the release has that many), reads them through `open_corpus(...).read("train")` in a process of its own, and prints
seconds, peak memory and the ratio to reading and splitting the same lines with nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COLUMNS = (
    "client_id path sentence_id sentence sentence_domain up_votes down_votes age gender accents variant locale segment"
)
AGES, GENDERS = ("", "twenties", "thirties", "fourties"), ("", "male_masculine", "female_feminine")
ACCENTS = ("", "México", "España: Sur peninsular (Andalucia, Extremadura, Murcia)", "Caribe|Venezuela")
WORDS = [
    "la",
    "casa",
    "que",
    "tiene",
    "una",
    "puerta",
    "abierta",
    "sobre",
    "el",
    "río",
    "donde",
    "los",
    "niños",
    "juegan",
    "por",
    "la",
    "mañana",
    "sin",
    "ruido",
]


def write_release(root: Path, rows: int) -> None:
    """A release folder without audio."""
    (root / "clips").mkdir(parents=True, exist_ok=True)
    rng = random.Random(1)
    speakers = [hashlib.sha512(str(i).encode()).hexdigest() for i in range(rows // 14 + 1)]
    with (root / "train.tsv").open("w", encoding="utf-8", newline="\n") as file:
        file.write("\t".join(COLUMNS.split()) + "\n")
        for i in range(rows):
            speaker = rng.randrange(len(speakers))
            sentence = " ".join(rng.choices(WORDS, k=rng.randint(4, 14))).capitalize() + f" {i}."
            cells = [speakers[speaker], f"common_voice_es_{20_000_000 + i}.mp3"]
            cells += [hashlib.sha256(sentence.encode()).hexdigest(), sentence, ""]
            cells += [str(rng.randint(2, 5)), str(rng.randint(0, 1))]
            cells += [AGES[speaker % 4], GENDERS[speaker % 3], ACCENTS[speaker % 4], "", "es", ""]
            file.write("\t".join(cells) + "\n")
    with (root / "clip_durations.tsv").open("w", encoding="utf-8", newline="\n") as file:
        file.write("clip\tduration[ms]\n")
        for i in range(int(rows * 4.7)):
            file.write(f"common_voice_es_{20_000_000 + i}.mp3\t{rng.randint(1500, 10000)}\n")


def measure(root: Path) -> None:
    """Index the release and print one line; runs in a fresh process, so that its peak memory means something."""
    from asrkit.corpus import open_corpus

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    wall, cpu = time.perf_counter(), time.process_time()
    utterances = open_corpus(root).read("train")
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.process_time()
    with (root / "train.tsv").open(encoding="utf-8", newline="\n") as file:
        lines = sum(len(line.split("\t")) == len(COLUMNS.split()) for line in file)
    bare = time.process_time() - start
    known = sum(utterance.seconds is not None for utterance in utterances)
    print(
        f"{len(utterances)} of {lines - 1} rows, {known} with a duration: {wall:.2f} s wall, {cpu:.2f} s CPU "
        f"({cpu / bare:.1f} times reading and splitting the lines), peak {peak:.0f} MiB ({before:.0f} before)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=360_000)
    parser.add_argument("--folder", type=Path, help="keep the release here")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure)
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = args.folder or Path(temporary) / "es"
        write_release(root, args.rows)
        subprocess.run([sys.executable, __file__, "--measure", str(root)], check=True)


if __name__ == "__main__":
    main()
