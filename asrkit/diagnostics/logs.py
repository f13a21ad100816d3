"""What a run folder's logs say: its epochs, what training has found itself, what came after the last epoch, and how it
ended."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asrkit.diagnostics.findings import Finding
from asrkit.diagnostics.progress import JUDGED, RECENT
from asrkit.errors import printable
from asrkit.runs import MetricsLog

TAIL = 65_536  # bytes of log.txt that are looked at: an error's text may be long
_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (.*)")
_ERROR = re.compile(r"[A-Z]\w*(?:Error|Exception): ")


@dataclass(frozen=True)
class Logs:
    """epochs, refused: the records of these types. found: what training has said of its first batch and last epoch.

    recent: losses of the last updates of the last epoch. update: the last one, of an epoch that is not finished too.
    floor, heard: nats per label, and the dependence of every layer, where they are recorded. ended: the error that the
    log ends with, None where it ends with something else.
    """

    epochs: list[dict[str, Any]]
    refused: list[dict[str, Any]]
    found: list[Finding]
    recent: list[float]
    update: int
    floor: float | None
    heard: dict[str, float] | None
    ended: str | None

    @classmethod
    def read(cls, run: Path) -> Logs:
        """Raises StorageError (exit 5) for a metrics.jsonl that is damaged before its last line."""
        records = MetricsLog.read(run / "metrics.jsonl")
        epochs = [line for line in records if line["type"] == "epoch"]
        updates = [line for line in records if line["type"] == "update"]
        last: dict[str, Any] = epochs[-1] if epochs else {"step": 0}
        found = [Finding(**one) for line in records if line["type"] == "diagnosis" for one in line["findings"]]
        own = [Finding(**one) for one in last.get("diagnosis", {}).get("findings", [])]
        found += [one for one in own if one.code not in JUDGED]
        return cls(
            epochs=epochs,
            refused=[line for line in records if line["type"] == "refused"],
            found=found,
            recent=[line["loss"] for line in updates if line["step"] <= last["step"]][-RECENT:],
            update=max(last["step"], updates[-1]["step"] if updates else 0),
            floor=next((e["diagnosis"]["floor"] for e in reversed(epochs) if "diagnosis" in e), None),
            heard=last.get("diagnosis", {}).get("dependence"),
            ended=last_error(run / "log.txt"),
        )


def last_error(log: Path) -> str | None:
    """The error that training wrote last into its log.txt; None where its last line is another one."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.path.getsize(log) - TAIL))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return None
    said = next((match[1] for line in reversed(lines) if (match := _LINE.fullmatch(line))), "")
    return printable(said) if _ERROR.match(said) else None
