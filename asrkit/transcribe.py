"""Audio -> text with a trained model: `asrkit.load(folder).transcribe(x)`. Uses the bundle and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from asrkit.audio import MAX_PEAK, Audio, read_audio, resample
from asrkit.bundle import Bundle, load_bundle
from asrkit.clips import SILENT_PEAK
from asrkit.decoders import Decoder, Hypothesis, build_decoder
from asrkit.errors import AsrkitError, AudioError, RecipeError, nearest

Source = str | Path | bytes | BinaryIO | tuple[np.ndarray | Tensor, int]
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".oga", ".mp3", ".aiff", ".aif", ".au")
BATCH_SECONDS = 240.0  # audio, padding included, in one forward pass
ARRAY_RATES = (1_000, 1_000_000)  # samples per second that an array may have
TOO_SHORT = "shorter than one frame of the model"
WINDOW = 64  # files looked at together, so that similar lengths share a batch


@dataclass(frozen=True)
class Word:
    """One word with its start and end in seconds and its confidence, the mean posterior of its labels in [0, 1]."""

    word: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True)
class Transcript:
    """What was heard in one input. `status` is "ok", or the reason code of the error that `message` states.

    Silence is ok and has no text; the message then gives its peak.
    """

    source: str
    text: str
    words: tuple[Word, ...] = ()
    seconds: float = 0.0
    status: str = "ok"
    message: str = ""

    def to(self, form: str) -> str:
        """The transcript as `txt` or `json`."""
        if form == "txt":
            return self.text + "\n"
        if form == "json":
            return json.dumps(asdict(self), ensure_ascii=False) + "\n"
        raise RecipeError(f"format {form!r}", possible=nearest(form, ("txt", "json")), reason="format")


class Transcriber:
    """A loaded model that turns audio into text. The text of an input does not depend on what is transcribed beside
    it."""

    def __init__(self, bundle: Bundle, decoder: str | Mapping[str, Any] | Decoder | None = None) -> None:
        self.bundle, self.model, self.tokenizer = bundle, bundle.model, bundle.tokenizer
        own = bundle.config["recipe"].get("decoder", "greedy")
        inside = bundle.path if decoder is None else None
        self.decoder = build_decoder(own if decoder is None else decoder, self.tokenizer, inside)
        self.sample_rate = self.model.features.sample_rate
        self.device = next(self.model.parameters()).device

    def transcribe(self, source: Source | list[Source]) -> Any:
        """A path, bytes, a file object, or (samples (S,), rate in Hz) -> Transcript; a list of them -> list of
        Transcripts.

        One input that is no audio, or holds no samples, raises AudioError, one that the disk does not let us read
        StorageError; in a list it becomes a Transcript with its status. Sound shorter than one frame of the model is
        readable: its Transcript has the status "too_short".
        Arrays are mono: floats with full scale 1, or integers of at most 32 bits with the full scale of their type.
        """
        if isinstance(source, list):
            return list(self.stream(source))
        return self._decode([self._audio(source)], [_name(source)])[0]

    def log_probs(self, source: Source) -> Tensor:
        """One input -> log-probabilities (T', V) on the CPU; a frame lasts `model.frame_seconds`.

        Raises AudioError as `transcribe` does, and `too_short` where there is no frame.
        """
        audio = self._audio(source)
        if self.model.num_frames(len(audio.samples)) < 1:
            raise AudioError(f"{_name(source)} is {TOO_SHORT}", fix="give more of it", reason="too_short")
        log_probs, lengths = self._forward([audio])
        return log_probs[0, : int(lengths[0])]

    def stream(self, sources: Iterable[Source]) -> Iterator[Transcript]:
        """Transcripts of many inputs, in their order, in batches of similar lengths; a bad input does not stop the
        rest."""
        window: list[Source] = []
        for source in sources:
            window.append(source)
            if len(window) == WINDOW:
                yield from self._window(window)
                window = []
        yield from self._window(window)

    def _window(self, sources: list[Source]) -> Iterator[Transcript]:
        results: dict[int, Transcript] = {}
        audios: dict[int, Audio] = {}
        for index, source in enumerate(sources):
            try:
                audios[index] = self._audio(source)
            except AsrkitError as error:
                results[index] = Transcript(_name(source), "", status=error.reason or "error", message=error.what)
        batch: list[int] = []
        for index in sorted(audios, key=lambda i: audios[i].seconds):
            if batch and audios[index].seconds * (len(batch) + 1) > BATCH_SECONDS:
                self._run(batch, sources, audios, results)
                batch = []
            batch.append(index)
        self._run(batch, sources, audios, results)
        yield from (results[index] for index in range(len(sources)))

    def _run(
        self, batch: list[int], sources: list[Source], audios: dict[int, Audio], results: dict[int, Transcript]
    ) -> None:
        if batch:
            texts = self._decode([audios[index] for index in batch], [_name(sources[index]) for index in batch])
            results.update(zip(batch, texts, strict=True))

    def _audio(self, source: Source) -> Audio:
        if not isinstance(source, tuple):
            return read_audio(source, self.sample_rate)
        samples, rate = _array(source)
        return Audio(resample(samples, rate, self.sample_rate), self.sample_rate, rate, 1, ())

    def _forward(self, audios: list[Audio]) -> tuple[Tensor, Tensor]:
        lengths = torch.tensor([len(audio.samples) for audio in audios])
        waveforms = torch.zeros(len(audios), max(int(lengths.max()), 1))
        for row, audio in enumerate(audios):
            waveforms[row, : len(audio.samples)] = torch.from_numpy(audio.samples)
        with torch.inference_mode():
            log_probs, frames = self.model(waveforms.to(self.device), lengths.to(self.device))
        return log_probs.cpu(), frames.cpu()

    def _decode(self, audios: list[Audio], names: list[str]) -> list[Transcript]:
        results = [self._without_model(name, audio) for name, audio in zip(names, audios, strict=True)]
        heard = [i for i, result in enumerate(results) if result is None]
        if heard:
            log_probs, lengths = self._forward([audios[i] for i in heard])
            for i, hypotheses in zip(heard, self.decoder(log_probs, lengths), strict=True):
                results[i] = self._transcript(names[i], audios[i].seconds, hypotheses[0])
        return [result for result in results if result is not None]

    def _without_model(self, name: str, audio: Audio) -> Transcript | None:
        """What is known without asking the model: sound without a frame, and silence, in which models hear words."""
        seconds = round(audio.seconds, 3)
        if self.model.num_frames(len(audio.samples)) < 1:
            return Transcript(name, "", seconds=seconds, status="too_short", message=TOO_SHORT)
        peak = float(np.abs(audio.samples).max())
        if peak < SILENT_PEAK:
            loud = f"at {20 * np.log10(peak):.0f} dB of full scale" if peak else "nowhere"
            return Transcript(name, "", seconds=seconds, message=f"silence: it peaks {loud}")
        return None

    def _transcript(self, name: str, seconds: float, best: Hypothesis) -> Transcript:
        step = self.model.frame_seconds
        words = tuple(
            Word(
                word,
                round(min(best.starts[first] * step, seconds), 3),
                round(min(best.ends[last - 1] * step, seconds), 3),
                round(float(np.mean(best.confidences[first:last])), 4),
            )
            for word, first, last in self.tokenizer.word_spans(best.labels)
        )
        return Transcript(name, self.tokenizer.decode(best.labels).strip(), words, round(seconds, 3))


def load(
    folder: str | Path, device: str = "auto", decoder: str | Mapping[str, Any] | Decoder | None = None
) -> Transcriber:
    """A trained model: the folder of a bundle (`.../model`) or of a run that holds one.

    device: cpu, cuda, cuda:1, or auto (a GPU if there is one). decoder: a name of kind `decoders`, settings such as
    {"name": "beam", "options": {"lm": "lm.arpa"}}, or a decoder; None: the recipe's. Runs no code from the folder.
    """
    path = Path(folder)
    if not (path / "config.json").is_file() and (path / "model" / "config.json").is_file():
        path = path / "model"
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return Transcriber(load_bundle(path, device), decoder)


def find_audio(inputs: Sequence[str]) -> list[Path]:
    """Files, folders (searched through, by suffix) and glob patterns -> audio files, in the order given, sorted
    within."""
    found: list[Path] = []
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES and p.is_file())
        elif not path.exists() and any(mark in given for mark in "*?["):
            base = Path(path.anchor) if path.is_absolute() else Path()
            pattern = str(path.relative_to(path.anchor)) if path.is_absolute() else given
            found += sorted(p for p in base.glob(pattern) if p.is_file())
        else:
            found.append(path)  # a missing file becomes a result with its status, not a silent gap
    return found


def _array(source: tuple[Any, ...]) -> tuple[np.ndarray, int]:
    """(samples (S,), rate) as a caller gives them -> float32 samples, full scale 1, and a whole rate.

    Raises AudioError: `bad_array`, `bad_rate`, or as for files `no_samples`, `nonfinite`, `bad_scale`.
    """
    possible = "finite samples (S,) with their rate: (samples, 16000)"
    if len(source) != 2:
        raise AudioError(f"a tuple of {len(source)}", possible=possible, reason="bad_array")
    given, rate = source
    if isinstance(given, Tensor):
        given = given.detach().cpu()
        given = (given.float() if given.dtype == torch.bfloat16 else given).numpy()
    samples = np.asarray(given)
    if samples.ndim != 1 or samples.dtype.kind not in "fiu":
        raise AudioError(f"an array of shape {samples.shape}, {samples.dtype}", possible=possible, reason="bad_array")
    if samples.dtype.kind in "iu" and samples.dtype.itemsize > 4:  # nobody records them, and 16-bit values get into one
        raise AudioError(
            f"an array of {samples.dtype}, whose full scale is anyone's guess",
            possible="floats with full scale 1, or integers of at most 32 bits",
            fix="say what they are, as in samples.astype('int16')",
            reason="bad_array",
        )
    try:
        whole = int(rate)
    except (TypeError, ValueError, OverflowError):
        whole = -1
    if isinstance(rate, str | bytes | bool) or whole != rate or not ARRAY_RATES[0] <= whole <= ARRAY_RATES[1]:
        raise AudioError(
            f"an array with the rate {rate!r}",
            possible=f"{ARRAY_RATES[0]} to {ARRAY_RATES[1]} samples per second, a whole number",
            reason="bad_rate",
        )
    return _full_scale(samples), whole


def _full_scale(samples: np.ndarray) -> np.ndarray:
    """Samples (S,) of any type -> float32 with full scale 1; AudioError if that cannot be."""
    if samples.size == 0:
        raise AudioError("an array without samples", possible="at least one", reason="no_samples")
    if samples.dtype.kind in "iu":
        middle = 2.0 ** (8 * samples.dtype.itemsize - 1)  # unsigned samples have silence in the middle, as in WAV
        offset = middle if samples.dtype.kind == "u" else 0.0
        return ((samples.astype(np.float64) - offset) / middle).astype(np.float32)
    peak = float(np.abs(samples).max())  # NaN or infinite if any sample is
    if not np.isfinite(peak):
        raise AudioError(f"an array of shape {samples.shape} with NaN or infinity", reason="nonfinite")
    if peak > MAX_PEAK:
        raise AudioError(
            f"an array that peaks at {peak:.3g} where full scale is 1",
            possible=f"at most {MAX_PEAK:g}",
            fix="divide by its full scale (32768 for 16-bit values)",
            reason="bad_scale",
        )
    return samples.astype(np.float32)


def _name(source: Source) -> str:
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, tuple):
        return "array"
    return str(getattr(source, "name", "bytes"))
