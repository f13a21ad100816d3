"""Hours of speech that `asrkit data synth` makes per minute, by format and number of processes.

    python benchmarks/synth.py [--hours 0.2]

Prints, for each row, hours of audio per minute of wall time, CPU seconds per hour of audio (all processes), the size on
disk, and the ratio to the first row of the same run.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

from asrkit.synthetic import make_corpus


def _cpu_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    """Make each corpus in a temporary folder and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=0.2, help="hours of audio per row (default: 0.2)")
    hours = parser.parse_args().hours
    print(f"{'format':<8}{'jobs':>5}{'hours/min':>11}{'CPU s/hour':>12}{'MB/hour':>9}{'ratio':>7}")
    first = 0.0
    for format in ("mp3", "flac"):
        for jobs in (1, 2):
            with tempfile.TemporaryDirectory() as folder:
                wall, cpu = time.monotonic(), _cpu_seconds()
                report = make_corpus(Path(folder) / "es", hours=hours, format=format, jobs=jobs)
                wall, cpu = time.monotonic() - wall, _cpu_seconds() - cpu
                size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
            speed = report.hours / wall * 60
            first = first or speed
            print(
                f"{format:<8}{jobs:>5}{speed:>11.2f}{cpu / report.hours:>12.1f}"
                f"{size / report.hours / 1e6:>9.1f}{speed / first:>7.2f}"
            )


if __name__ == "__main__":
    main()
