"""`asrkit data get common-voice-es`: the way to Common Voice since it left the Hub, step by step or by itself."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

from asrkit.errors import AsrkitError, DataError, RecipeError, StorageError

KEY = "MDC_API_KEY"
NAME = re.compile(r"common-voice-([a-z]{2,3}(?:-[A-Za-z0-9]+)*)")
SITE = "https://datacollective.mozillafoundation.org"
CORPUS = "Common Voice Scripted Speech"
SIZES = {
    "es": "release 25.0 of Spanish: 52 GB, and about 12 GB more for the clips of train, dev and test when you train"
}


def add_parser(subparsers: Any) -> None:
    """Add `get` to the verbs of `asrkit data`."""
    parser = subparsers.add_parser(
        "get",
        help="how to get Common Voice; downloads it where an API key is set",
        description="Common Voice is given out by the Mozilla Data Collective only, to people who have an account and "
        f"have accepted the terms. This prints the steps; with the extra asrkit[commonvoice] installed and {KEY} in "
        "the environment it downloads the archive, and goes on where a download was interrupted. The archive needs no "
        "extracting: give it as data.root.",
        epilog="example: asrkit data get common-voice-es --output /data",
    )
    parser.add_argument("name", metavar="common-voice-LANG", help="for example common-voice-es")
    parser.add_argument("--output", type=Path, default=Path(), metavar="DIR", help="where to (default: this folder)")
    parser.add_argument("--id", metavar="ID", help="the dataset's id or slug, instead of the newest release")
    parser.add_argument("--json", action="store_true", help="the result as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the steps, or download."""
    from asrkit.cli.common import print_json

    match = NAME.fullmatch(args.name)
    if match is None:
        raise RecipeError(
            f"no corpus {args.name!r}",
            possible="common-voice-LANG with the language's code: common-voice-es, common-voice-ca, ...",
            reason="unknown_corpus",
        )
    language = match[1]
    client = _client()
    if client is None or not os.environ.get(KEY):
        lines = steps(language, args.output, installed=client is not None)
        if args.json:
            print_json({"downloaded": None, "steps": lines})
        else:
            print("\n".join(lines))
        return 0
    path = download(client, language, args.output, args.id, progress=sys.stderr.isatty() and not args.json)
    if args.json:
        print_json({"downloaded": path, "steps": []})
    else:
        print(f"{path}: ready\nnext: asrkit data check {path}")
    return 0


def steps(language: str, output: Path, installed: bool) -> list[str]:
    """What a person has to do, one line each."""
    again = f"asrkit data get common-voice-{language}" + (f" --output {output}" if output != Path() else "")
    install = [] if installed else ['     pip install "asrkit[commonvoice]"']
    size = [f"   ({SIZES[language]})"] if language in SIZES else []
    return [
        f"{CORPUS}, language {language}: the steps",
        f"1. Make an account at {SITE} and sign in.",
        f'2. Search there for "{CORPUS}" and your language ({language}), open the newest release and accept its terms.',
        *size,
        "3. Either press Download; the browser gives you a file cv-corpus-...tar.gz.",
        "   Or let asrkit download it, which goes on where it was interrupted: make an API key on your profile, then",
        *install,
        f"     export {KEY}=...",
        f"     {again}",
        "4. Train on the archive itself; nothing needs to be extracted by hand:",
        "     asrkit train recipes/common_voice_es/model2.yaml --data.root=.../cv-corpus-...tar.gz",
        "The clips are CC0. The terms ask you not to re-host them and not to try to identify speakers.",
    ]


def download(client: Any, language: str, output: Path, identity: str | None = None, progress: bool = False) -> Path:
    """Download the newest release of a language, or the dataset `identity`, and return the archive's path.

    client: the module `datacollective`. Raises DataError (`not_found`, `terms`, `download`), StorageError
    (`disk_full`).
    """
    from asrkit.disk import disk_full, free_bytes

    try:
        details = client.get_dataset_details(identity) if identity else _newest(client, language)
        size = int(details.sizeBytes or 0)
        output.mkdir(parents=True, exist_ok=True)
        present = sum(path.stat().st_size for path in output.glob(f"{details.filename}*")) if details.filename else 0
        need, free = max(0, size - present), free_bytes(output)
        print(
            f"{details.name}: {size / 1e9:.1f} GB into {output}: needs {need / 1e9:.1f} GB of disk, "
            f"{free / 1e9:.1f} GB free",
            file=sys.stderr,
        )
        if need > free:
            raise disk_full(output, need)
        path = Path(client.download_dataset(details.id, download_directory=str(output), show_progress=progress))
    except AsrkitError:
        raise
    except Exception as error:  # whatever the client and its HTTP library raise
        raise _translated(error, language) from error
    if size and path.stat().st_size != size:
        raise DataError(
            f"{path} has {path.stat().st_size} bytes, the release {size}",
            fix="delete the file and run the same command again",
            reason="download",
        )
    return path


def _newest(client: Any, language: str) -> Any:
    """The newest full release of this language in the catalog."""
    found = client.list_datasets(CORPUS, locale=language, sort="newest", results_per_page=100)
    wanted = [item for item in found.items if item.name and CORPUS.casefold() in item.name.casefold()]
    full = [item for item in wanted if "delta" not in item.name.casefold()]
    if not full:
        others = ", ".join(f"{item.name} ({item.id})" for item in found.items[:10])
        raise DataError(
            f"the catalog has no {CORPUS} for {language!r}",
            possible=others or None,
            fix=f"look for the dataset at {SITE} and give its id: --id=...",
            reason="not_found",
        )
    return max(full, key=lambda item: (_version(item.name), item is full[0]))


def _version(name: str) -> tuple[int, ...]:
    """The numbers of `Common Voice Scripted Speech 25.0 - Spanish`, so that 25.0 is newer than 9.0."""
    match = re.search(r"\d+(?:\.\d+)*", name)
    return tuple(map(int, match[0].split("."))) if match else ()


def _translated(error: Exception, language: str) -> AsrkitError:
    """The client's error as ours, with the fix."""
    text = " ".join(str(error).split())[:300]
    kind = type(error).__name__
    if kind == "AuthenticationError":
        return DataError(f"the API key in {KEY} is refused ({text})", fix=f"make a new one at {SITE}", reason="api_key")
    if isinstance(error, PermissionError):
        fix = f"sign in at {SITE}, open the dataset and accept its terms; then run the same command again"
        return DataError(f"the download is refused ({text})", fix=fix, reason="terms")
    if isinstance(error, FileNotFoundError):
        return DataError(
            f"no such dataset ({text})",
            fix=f"look for {CORPUS} and {language!r} at {SITE} and give its id: --id=...",
            reason="not_found",
        )
    return StorageError(
        f"the download stopped ({kind}: {text})",
        fix="run the same command again: it goes on where it stopped",
        reason="download",
    )


def _client() -> Any:
    """The module `datacollective` of the extra, None where it is not installed."""
    try:
        import datacollective
    except ImportError:
        return None
    return datacollective
