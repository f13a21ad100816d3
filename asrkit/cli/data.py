"""`asrkit data synth`: make a Spanish corpus on this machine."""

from __future__ import annotations

import argparse
import importlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asrkit.synthetic import SplitCount, SynthReport


def add_parser(subparsers: Any) -> None:
    """Add `data` and its verbs to the command line."""
    parser = subparsers.add_parser("data", help="make or inspect training data", description="Training data.")
    verbs = parser.add_subparsers(dest="data_verb", metavar="VERB", required=True)
    synth = verbs.add_parser(
        "synth",
        help="a Spanish corpus in Common Voice layout, spoken by espeak-ng on this machine",
        description="Writes Spanish sentences of a grammar of our own (or of --text), spoken by espeak-ng's voices, in "
        "the layout of a Common Voice release. The same options give the same files; a corpus that is already there is "
        "left alone.",
        epilog="example: asrkit data synth --output /tmp/synth --hours 0.5",
    )
    synth.add_argument("--output", required=True, metavar="DIR", help="new folder; later given as data.root")
    size = synth.add_mutually_exclusive_group()
    size.add_argument("--hours", type=float, metavar="H", help="hours of audio (default: 0.5, or --text once)")
    size.add_argument("--clips", type=int, metavar="N", help="number of clips instead of hours")
    synth.add_argument("--seed", type=int, default=1, metavar="N", help="another seed, another corpus (default: 1)")
    synth.add_argument("--format", default="mp3", metavar="mp3|flac", help="format of the clips (default: mp3)")
    synth.add_argument("--speakers", type=int, default=40, metavar="N", help="number of voices (default: 40)")
    synth.add_argument("--text", metavar="FILE", help="sentences to speak, one per line, instead of the grammar's")
    synth.add_argument("--jobs", type=int, metavar="N", help="processes (default: one per core)")
    synth.add_argument("--json", action="store_true", help="the summary as JSON")
    synth.set_defaults(run=run)
    for name in ("check", "stats", "get", "prepare"):
        importlib.import_module(f"asrkit.cli.data_{name}").add_parser(verbs)


def run(args: argparse.Namespace) -> int:
    """Make the corpus and print one summary; errors are raised as asrkit.errors."""
    from asrkit.synthetic import make_corpus

    report = make_corpus(
        args.output,
        hours=args.hours,
        clips=args.clips,
        seed=args.seed,
        format=args.format,
        speakers=args.speakers,
        text=args.text,
        jobs=args.jobs,
        progress=not args.json,
    )
    print(json.dumps(report.to_dict(), ensure_ascii=False) if args.json else _summary(report))
    return 0


def _summary(report: SynthReport) -> str:
    lines = [f"{'split':<8}{'clips':>8}{'hours':>9}{'speakers':>10}{'sentences':>11}"]
    parts: list[tuple[str, SplitCount | SynthReport]] = [*report.splits.items(), ("all", report)]
    for name, part in parts:
        lines.append(f"{name:<8}{part.clips:>8}{part.hours:>9.3f}{part.speakers:>10}{part.sentences:>11}")
    if report.repeated_lines:
        lines.append(f"{report.repeated_lines} lines of --text repeat another line and were read once")
    how = "already there" if report.already_there else f"made in {report.seconds_taken:.1f} s"
    lines.append(f"{report.output}: {how}")
    lines.append(f"next: asrkit train recipes/demo.yaml --data.root={report.output}")
    return "\n".join(lines)
