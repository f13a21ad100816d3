"""Where each word and each character of a known text is in a recording: CTC forced alignment.

Of all frame paths that collapse to the text, the most probable one (Viterbi; Kürzinger et al. 2020, arXiv 2007.09127,
without their skipping of audio). The text goes through the model's own rules first. CTC models are peaky: a label
often has one frame, so starts are to be trusted more than ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from asrkit import registry
from asrkit.audio.sources import name_of, open_input
from asrkit.corpus.selection import normalized
from asrkit.ctc import BLANK, required_frames
from asrkit.errors import AsrkitError, DataError
from asrkit.tokenizers import SPACE_MARK
from asrkit.transcribe import Source, Transcriber, Transcript, Word
from asrkit.transcribe.viterbi import lean_path

# Frames times states. Up to here torchaudio remembers the way back, a byte each (about ten minutes of speech); then
# asrkit.transcribe.viterbi takes over, up to hours.
REMEMBERED, MAX_CELLS = 1 << 28, 1 << 36


@dataclass(frozen=True)
class Span:
    """One label of an alignment: its first frame, the frame after its last, and the mean posterior between."""

    label: int
    start: int
    end: int
    posterior: float


@dataclass(frozen=True)
class Alignment(Transcript):
    """A transcript whose text was given. `characters` are its labels without spaces (pieces, with subwords);
    confidences are mean posteriors of frames, `confidence` that of all labels' frames together."""

    characters: tuple[Word, ...] = ()
    confidence: float = 0.0

    def by_character(self) -> Transcript:
        """The characters in the place of the words, for formats that hold words alone."""
        return replace(self, words=self.characters)


def align_labels(log_probs: Tensor, labels: Sequence[int], name: str = "the clip") -> list[Span]:
    """log_probs (T', V) in nats, labels without blanks -> one span per label, in order.

    Raises DataError: `no_text` for no labels, `too_short_for_ctc` where T' < labels + repeats, `too_long_to_align`.
    """
    frames, needed = log_probs.shape[0], required_frames(labels)
    if not labels:
        raise DataError(f"{name}: the text is empty after the text rules", fix="give its words", reason="no_text")
    if frames < needed:
        raise DataError(
            f"{name}: {len(labels)} labels with {needed - len(labels)} repeats need {needed} frames, T' is {frames}",
            fix="check that the text belongs to the recording, or use a model with fewer strides",
            reason="too_short_for_ctc",
        )
    cells = frames * (2 * len(labels) + 1)
    if cells > MAX_CELLS:
        raise DataError(
            f"{name}: {frames} frames by {len(labels)} labels are too much for one alignment",
            fix="cut recording and text into parts",
            reason="too_long_to_align",
        )
    # In float64: over thousands of frames float32 sums no longer tell two near paths apart.
    exact = log_probs.detach().cpu().double()
    path = lean_path(exact, labels) if cells > REMEMBERED else _path(exact, labels)
    return list(_spans(path, exact.gather(1, path[:, None])[:, 0].exp()))


def _path(log_probs: Tensor, labels: Sequence[int]) -> Tensor:
    from torchaudio.functional import forced_align

    return forced_align(log_probs.unsqueeze(0), torch.tensor([list(labels)]), blank=BLANK)[0][0].long()


def _spans(path: Tensor, posteriors: Tensor) -> Iterator[Span]:
    """Runs of one label in a path (T',) that are not blank; two equal labels always have a blank between them."""
    values, counts = torch.unique_consecutive(path, return_counts=True)
    end = 0
    for label, count in zip(values.tolist(), counts.tolist(), strict=True):
        start, end = end, end + count
        if label != BLANK:
            yield Span(label, start, end, float(posteriors[start:end].mean()))


class Aligner:
    """A loaded model that finds given texts in recordings."""

    def __init__(self, transcriber: Transcriber) -> None:
        self.transcriber = transcriber
        text = transcriber.bundle.config["recipe"]["text"]
        self.rules, self.mapping = registry.load("text", text["rules"])(), text.get("map") or {}

    def align(self, source: Source, text: str, name: str | None = None) -> Alignment:
        """A path, bytes, a file object or (samples (S,), rate in Hz), and what is said in it; times in seconds.

        Raises AudioError as `Transcriber.transcribe` does, DataError as `align_labels` and, for a character that the
        model has no label for, `unknown_character`.
        """
        model, tokenizer = self.transcriber.model, self.transcriber.tokenizer
        name = name or name_of(source)
        written = normalized(text, self.rules, self.mapping)
        labels = tokenizer.encode(written)
        audio = open_input(source, self.transcriber.sample_rate).audio
        seconds = audio.seconds
        spans = align_labels(self.transcriber.log_probs((audio.samples, audio.sample_rate)), labels, name)
        step = model.frame_seconds

        def word(text: str, parts: Sequence[Span]) -> Word:
            frames = sum(part.end - part.start for part in parts)
            mean = sum(part.posterior * (part.end - part.start) for part in parts) / frames
            start, end = (min(frame * step, seconds) for frame in (parts[0].start, parts[-1].end))
            return Word(text, round(start, 3), round(end, 3), round(mean, 4))

        words = tuple(word(text, spans[first:last]) for text, first, last in tokenizer.word_spans(labels))
        letters = ((tokenizer.labels[span.label].replace(SPACE_MARK, " ").strip(), span) for span in spans)
        characters = tuple(word(text, [span]) for text, span in letters if text)
        whole = word(written, spans).confidence
        return Alignment(name, written, words, round(seconds, 3), characters=characters, confidence=whole)

    def stream(self, pairs: Iterable[tuple[Source, str]]) -> Iterator[Alignment]:
        """Alignments of (source, text) pairs in their order; one that fails has its reason code as status."""
        for source, text in pairs:
            name = name_of(source)
            try:
                yield self.align(source, text, name)
            except AsrkitError as error:
                yield Alignment.failed(name, error, text)


def read_text(given: str) -> str:
    """A text as the command line gives it: the content of a file of that name, if there is one, else itself."""
    from asrkit.disk import storage_error

    path = Path(given)
    try:
        is_file = path.is_file()
    except OSError:  # longer than any name
        is_file = False
    try:
        return path.read_text(encoding="utf-8-sig") if is_file else given
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text", fix="give the text, or a text file", reason="encoding") from error
    except OSError as error:
        raise storage_error(error, path) from error
