"""Runs the fault tests and the same faults on SpeechBrain, and writes docs/reliability.md.

    python benchmarks/reliability.py                    # tests and peer, five minutes
    python benchmarks/reliability.py --soak             # 500 kills and what else takes long, too
    python benchmarks/reliability.py --peer FILE.json   # SpeechBrain's column from an earlier faults_peer.py
    python benchmarks/reliability.py --junit FILE.xml   # results of an earlier `pytest -m fault --junitxml FILE.xml`
    python benchmarks/reliability.py --junit ALL.xml AGAIN.xml   # a test that is in several counts as in the last

A row belongs to every test named test_<row>_..., wherever it lies.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from fault_rows import CHANGED, LETTERS, ROWS

ROOT = Path(__file__).resolve().parents[1]
HEAD = """# Reliability: what goes wrong, and what asrkit does then

Written by `python benchmarks/reliability.py` on {day} from the tests named after each row (`tests/faults/`): {total}
fault tests in {seconds:.0f} s of wall time beside whatever else the machine did, {cores} cores ({machine}), torch
{torch}. Each asserts how it ended (exit and reason code), what is on disk afterwards, and that a healthy run then
succeeds; the faults are those of `asrkit.testing.faults`, which your own tests can use as well. Beside it, by
`benchmarks/faults_peer.py`: what SpeechBrain {speechbrain} does on the same fault, with a trainer of the same layers
written as its recipes are. "not
run": the row was not tried on SpeechBrain, or does not apply to it.
"""


@dataclass
class Outcome:
    """What became of the tests of one row."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        if not self.passed + self.failed + self.skipped:
            return "no test"
        parts = [f"{self.failed} failed"] if self.failed else []
        parts += [f"{self.passed} passed"] if self.passed else []
        parts += [f"{self.skipped} skipped"] if self.skipped else []
        return ", ".join(parts)


def run_tests(marker: str, junit: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-m", marker, "--junitxml", str(junit), "-o",
               "junit_logging=system-out", "tests"]  # fmt: skip
    subprocess.run(command, cwd=ROOT, env={"OMP_NUM_THREADS": "1", **os.environ}, check=False)


def read_junit(*paths: Path) -> tuple[dict[str, Outcome], Outcome, list[str]]:
    """Outcome by row, of all tests together, and what soak tests have printed; of a test in several files the last."""
    rows, total, said = {row: Outcome() for row in ROWS}, Outcome(), []
    cases = [case for path in paths for case in ElementTree.parse(path).iter("testcase")]
    for case in {(case.get("classname"), case.get("name")): case for case in cases}.values():
        name = case.get("name", "")
        match = re.match(r"test_([scndxi]\d\d)_", name)
        kind = "passed"
        if case.find("skipped") is not None:
            kind = "skipped"
        elif case.find("failure") is not None or case.find("error") is not None:
            kind = "failed"
        for outcome in [total] + ([rows[match[1].upper()]] if match and match[1].upper() in rows else []):
            setattr(outcome, kind, getattr(outcome, kind) + 1)
            outcome.seconds += float(case.get("time", 0))
        text = (case.findtext("system-out") or "").strip().splitlines()
        said += [f"{match[1].upper()}: {line}" for line in text if match and re.match(r"\d", line)]
    return rows, total, said


def page(rows: dict[str, Outcome], total: Outcome, peer: dict[str, object], soak: list[str]) -> str:
    import torch

    measured = dict(peer.get("rows", {}))  # type: ignore[call-overload]
    lines = [
        HEAD.format(
            day=date.today().isoformat(), total=total.passed + total.failed, seconds=total.seconds,
            cores=os.cpu_count(), machine=platform.machine(), torch=torch.__version__.partition("+")[0],
            speechbrain=peer.get("speechbrain", "(not run)"),
        )
    ]  # fmt: skip
    for letter, title in LETTERS.items():
        lines += [f"## {letter}. {title}", ""]
        lines += ["| row | fault | promise | tests | s | SpeechBrain |", "|---|---|---|---|---|---|"]
        for row, (fault, promise) in ROWS.items():
            if row[0] == letter:
                outcome = rows[row]
                seconds = f"{outcome.seconds:.1f}" if outcome.seconds else "-"
                cells = [row, fault, promise, str(outcome), seconds, measured.get(row, "not run")]
                lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
        lines.append("")
    lines += ["## Where a row is not as first planned", ""]
    lines += [f"- {row}: {why}." for row, why in CHANGED.items()]
    lines += ["", "## By hand", "", "`pytest -m soak`; the last figures:", ""]
    lines += [f"- {line}" for line in soak] or ["- not run"]
    return "\n".join(lines) + "\n"


def old_soak(path: Path) -> list[str]:
    """The soak figures of the page as it is, to be kept where soak tests are not run again."""
    if not path.exists():
        return []
    _, _, tail = path.read_text(encoding="utf-8").partition("the last figures:\n")
    return [line[2:] for line in tail.splitlines() if line.startswith("- ") and line != "- not run"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "reliability.md")
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--junit", type=Path, nargs="+")
    parser.add_argument("--soak", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        junit, peer, soak = args.junit, args.peer, old_soak(args.output)
        if junit is None:
            junit = [Path(folder) / "fault.xml"]
            run_tests("fault and not soak", junit[0])
        if peer is None:
            peer = Path(folder) / "peer.json"
            subprocess.run(
                [sys.executable, str(ROOT / "benchmarks" / "faults_peer.py"), "--output", str(peer)], check=True
            )
        if args.soak:
            run_tests("soak", Path(folder) / "soak.xml")
            soak = read_junit(Path(folder) / "soak.xml")[2]
        rows, total, _ = read_junit(*junit)
        args.output.write_text(page(rows, total, json.loads(peer.read_text(encoding="utf-8")), soak), encoding="utf-8")
    print(f"{args.output}: {total}, {total.seconds:.0f} s")
    sys.exit(1 if total.failed else 0)


if __name__ == "__main__":
    main()
