"""asrkit lm build TEXT...: an n-gram language model, as an ARPA file that every decoder reads."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asrkit.lm.kneser_ney import NgramModel

HELP = "make a language model for the beam decoder"
EXAMPLES = """examples:
  asrkit lm build sentences.txt --order 4 --output lm.arpa
  asrkit lm build /cv/es/train.tsv --model runs/model2/sequence_batch_norm/seed1 --order 3 --output lm.arpa
  asrkit lm build sentences.txt --unit characters --order 6 --output characters.arpa"""


def add_parser(subparsers: Any) -> None:
    """Define the verb's arguments."""
    parser = subparsers.add_parser("lm", help=HELP, description=HELP)
    verbs = parser.add_subparsers(dest="lm_verb", metavar="VERB", required=True)
    what = "modified Kneser-Ney n-grams of a text, as an ARPA file"
    build = verbs.add_parser(
        "build", help=what, description=what, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    build.add_argument(
        "text",
        nargs="+",
        metavar="TEXT",
        help="text files, a sentence a line; tables with a column; - (standard input)",
    )
    build.add_argument("--output", required=True, type=Path, metavar="FILE.arpa", help="the file to write")
    build.add_argument("--order", type=int, default=3, metavar="N", help="the longest n-grams (default 3)")
    build.add_argument(
        "--unit",
        default="words",
        choices=("words", "characters", "labels"),
        help="n-grams of words (decoded with a lexicon), characters, or the labels of --model (free spelling)",
    )
    build.add_argument("--column", default="sentence", metavar="NAME", help="of tables (default sentence)")
    rules = build.add_mutually_exclusive_group()
    rules.add_argument("--rules", metavar="NAME", help="text rules, a name of kind `text` (default spanish)")
    rules.add_argument("--model", type=Path, metavar="RUN", help="take the text rules of this run or model")
    rules.add_argument("--recipe", type=Path, metavar="FILE", help="take the text rules of this recipe")
    build.add_argument("--json", action="store_true", help="the figures as JSON")
    build.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Count, smooth and write."""
    from tqdm import tqdm

    from asrkit.cli.common import print_json, quiet_libraries
    from asrkit.lm.arpa import write_arpa
    from asrkit.lm.counts import read_text
    from asrkit.lm.kneser_ney import estimate
    from asrkit.lm.sentences import size_of, splitter

    quiet_libraries()
    rules, encode = _rules(args)
    split = splitter(args.unit, encode)
    hidden = args.json or not sys.stderr.isatty()
    with tqdm(total=size_of(args.text), unit="B", unit_scale=True, desc="read", disable=hidden, leave=False) as bar:
        text = read_text(split(rules(sentence)) for sentence in _sentences(args, bar.update))
    with tqdm(total=args.order, unit="order", desc="count", disable=hidden, leave=False) as bar:
        model = estimate(text, args.order, told=lambda n: bar.update())
    entries = sum(map(len, model.levels))
    with tqdm(total=entries, unit="n-gram", unit_scale=True, desc="write", disable=hidden, leave=False) as bar:
        write_arpa(model, args.output, bar.update)
    figures = {
        "output": args.output,
        "unit": args.unit,
        "order": model.order,
        "sentences": text.sentences,
        "ngrams": [len(level) for level in model.levels],
        "discounts": model.discounts,
        "fallback_orders": model.fallbacks,
        "bytes": args.output.stat().st_size,
    }
    if args.json:
        print_json(figures)
    else:
        print(_summary(args, model, figures))
    return 0


def _sentences(args: argparse.Namespace, update: Callable[[int], Any]) -> Iterator[str]:
    from asrkit.lm.sentences import read_sentences

    for sentence, size in read_sentences(args.text, args.column):
        update(size)
        yield sentence


def _rules(args: argparse.Namespace) -> tuple[Callable[[str], str], Callable[[str], list[str]] | None]:
    """The text rules, and for --model the labels of a text."""
    from asrkit import registry

    name, encode = args.rules or "spanish", None
    if args.recipe is not None:
        from asrkit.recipe import load_recipe
        from asrkit.recipe.schema import SCHEMA

        name = load_recipe(args.recipe, (), known=SCHEMA)["text"]["rules"]
    if args.model is not None:
        from asrkit.transcribe import load

        bundle = load(args.model, "cpu", "greedy").bundle
        name, tokenizer = bundle.config["recipe"]["text"]["rules"], bundle.tokenizer

        def encode(text: str) -> list[str]:
            return [tokenizer.labels[i] for i in tokenizer.encode(text)]

    return registry.load("text", name)(), encode


def _summary(args: argparse.Namespace, model: NgramModel, figures: dict[str, Any]) -> str:
    from asrkit.cli.common import format_table
    from asrkit.lm.kenlm import KENLM_ORDER

    rows = [
        [n, len(level), *(f"{amount:.4f}" for amount in amounts)]
        for n, (level, amounts) in enumerate(zip(model.levels, model.discounts, strict=True), start=1)
    ]
    lines = [format_table(("order", "n-grams", "D(1)", "D(2)", "D(3+)"), rows)]
    if model.fallbacks:
        orders = ", ".join(map(str, model.fallbacks))
        lines.append(f"order {orders}: too little text for Chen and Goodman's discounts; 0.5, 1 and 1.5 instead")
    if model.order < args.order:
        lines.append(f"no sentence has n-grams of order {model.order + 1}")
    size = f"{figures['bytes'] / 1e6:.1f} MB"
    lines.append(f"{args.output}: {figures['sentences']} sentences, {args.unit}, order {model.order}, {size}")
    if 2 <= model.order <= KENLM_ORDER:
        lines.append(f"next: asrkit tune-decoder RUN --lm {args.output}")
    else:
        lines.append(f"for other programs: asrkit's beam search reads orders 2 to {KENLM_ORDER}")
    return "\n".join(lines)
