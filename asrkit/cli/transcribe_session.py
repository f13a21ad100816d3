"""What is said while `asrkit transcribe` works: results on the terminal, bad inputs, progress, error rates."""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from asrkit.cli.common import status_line

if TYPE_CHECKING:
    from pathlib import Path

    from asrkit.audio.sources import Piece
    from asrkit.cli.transcribe_outputs import Folder
    from asrkit.transcribe import Transcriber, Transcript


class Session:
    """Takes results in the order of the inputs and says or writes them; counts what was not transcribed.

    sentences: file name -> reference. form: what the terminal gets where there is no `folder`. total: number of
    inputs, None while they are still coming.
    """

    def __init__(
        self, model: Transcriber, sentences: dict[str, str], form: str, folder: Folder | None, total: int | None
    ) -> None:
        from tqdm import tqdm

        from asrkit import registry

        self.model, self.sentences, self.form, self.folder, self.total = model, sentences, form, folder, total
        self.rules = registry.load("text", model.bundle.config["recipe"]["text"]["rules"])()
        self.pairs: list[tuple[str, str, str, str]] = []
        self.bad: Counter[str] = Counter()
        self.count, self.seconds, self.begin = 0, 0.0, time.monotonic()
        self.silent = folder is None and sys.stdout.isatty()  # a bar between lines of text is no help
        shown = sys.stderr.isatty() and not self.silent
        self.bar = tqdm(total=total, unit="file", disable=not shown)

    def heard(self, seconds: float) -> None:
        """So many seconds of audio are through the model."""
        self.seconds += seconds
        took = time.monotonic() - self.begin
        self.bar.set_postfix_str(f"{self.seconds / 60:.1f} min, real-time factor {took / max(self.seconds, 1e-9):.3f}")

    def add(self, index: int, result: Transcript, file: Path | Piece) -> None:
        """The result of input `index`."""
        self.bar.update()
        self.count += 1
        if result.status != "ok":
            self.bad[result.status] += 1
            self.bar.write(status_line(result), file=sys.stderr)
        if self.folder is not None:
            self.folder.write(index, result)
        elif self.form in ("json", "jsonl") or (result.status == "ok" and self.form != "txt"):
            print(result.to(self.form), end="", flush=True)
        elif result.status == "ok":
            print(result.text if self.total == 1 else f"{file.name}: {result.text}", flush=True)
        self._compare(file.name, result.status, result.text)

    def recorded(self, record: dict[str, Any], name: str) -> None:
        """A line that an earlier run has left: it counts like a result of this one."""
        self.count += 1
        if record.get("status") != "ok":
            self.bad[str(record.get("status"))] += 1
        self._compare(name, str(record.get("status")), str(record.get("text", "")), show=False)

    def _compare(self, name: str, status: str, text: str, show: bool = True) -> None:
        if name not in self.sentences or status != "ok":
            return
        self.pairs.append((name, "", self.rules(self.sentences[name]), text))
        if show and self.folder is None and self.form == "txt":
            print(f"{'reference':>{len(name)}}: {self.pairs[-1][2]}", flush=True)

    def close(self) -> bool:
        """Say the figures; whether there was a bad input."""
        from asrkit.scoring import cer, score, wer

        self.bar.close()
        took = time.monotonic() - self.begin
        if self.seconds and self.total != 1:
            factor = took / self.seconds
            print(
                f"{self.seconds / 60:.1f} min of audio in {took:.1f} s (real-time factor {factor:.3f})", file=sys.stderr
            )
        if self.pairs:
            scores = score(self.pairs, symbols=self.model.tokenizer.name == "symbols")
            print(f"CER {cer(scores):.2%}, WER {wer(scores):.2%} over {len(scores)} references", file=sys.stderr)
        if self.bad:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.bad.most_common())
            wrong = sum(self.bad.values())
            print(f"asrkit: {wrong} of {self.count} inputs were not transcribed: {reasons}", file=sys.stderr)
        return bool(self.bad)
