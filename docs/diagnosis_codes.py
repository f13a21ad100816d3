"""The table of findings in docs/diagnosis.md, from the catalog of the code.

    python docs/diagnosis_codes.py

Rewrites what lies between the two marks of the page; a test fails where it is not what the code says.
"""

from __future__ import annotations

import re
from pathlib import Path

import asrkit.diagnostics
from asrkit.diagnostics import CATALOG

PAGE = Path(__file__).with_name("diagnosis.md")
BEGIN, END = "<!-- codes: python docs/diagnosis_codes.py -->", "<!-- end of codes -->"
SOURCES = {  # what a code in one of these files can be found in
    "batch": ("batch.py",),
    "model": ("model.py", "behaviour.py", "norms.py", "scales.py", "backward.py"),
    "run": ("progress.py", "run.py"),
}


def seen_in(code: str) -> str:
    """Which of batch, model and run a finding can come from."""
    folder = Path(asrkit.diagnostics.__file__).parent
    texts = {
        where: "".join((folder / n).read_text(encoding="utf-8") for n in names) for where, names in SOURCES.items()
    }
    return ", ".join(where for where, text in texts.items() if f'"{code}"' in text)


def table() -> str:
    """A row for every code, in the order of the catalog."""
    rows = [f"| `{code}` | {seen_in(code)} | {why} | {fix} |" for code, (why, fix) in CATALOG.items()]
    return "\n".join(["| code | seen in | what it means | likely fix |", "|---|---|---|---|", *rows])


def written(page: str) -> str:
    """The page with this table between its marks."""
    pattern = f"{re.escape(BEGIN)}.*?{re.escape(END)}"
    new, count = re.subn(pattern, lambda _: f"{BEGIN}\n{table()}\n{END}", page, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"{PAGE}: the marks {BEGIN} and {END} are not there once each")
    return new


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
