"""Audio -> text with a trained model: `asrkit.load(folder).transcribe(x)`. Uses the bundle and nothing else."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from asrkit.audio import SILENT_PEAK, Audio
from asrkit.audio.sources import AUDIO_SUFFIXES, Input, Piece, Source, find_audio, name_of, open_input
from asrkit.audio.vad import Speech, silero, speech_of
from asrkit.bundle import Bundle, load_bundle
from asrkit.bundle.hub_models import HUB, fetch_bundle
from asrkit.decoders import Decoder, Hypothesis, build_decoder
from asrkit.errors import AsrkitError, AudioError
from asrkit.transcribe.longform import Grid, decode_pieces, joined_log_probs, padded, statistics
from asrkit.transcribe.memory import batch_seconds, batches
from asrkit.transcribe.transcript import Transcript, Word

__all__ = ["AUDIO_SUFFIXES", "Piece", "Source", "Transcriber", "Transcript", "Word", "find_audio", "load"]

TOO_SHORT = "shorter than one frame of the model"
WINDOW, WINDOW_SECONDS = 64, 900.0  # files, and seconds of them, looked at together, so that similar ones share a batch
LONG_SHARE = 0.125  # of `batch_seconds` for windows of long audio, whose memory is to be small and flat
AHEAD = 32  # files that workers decode before they are asked for
Heard = Callable[[float], None]


class Transcriber:
    """A loaded model that turns audio into text; any number of threads may use one.

    The text of an input does not depend on what is transcribed beside it, on its batch or on the number of workers.
    Audio of up to half a minute or so (`grid.one_pass` samples) goes through the model at once; longer audio in
    windows, in memory that does not grow with it (asrkit.transcribe.longform says what is exact there).

    `batch_seconds`: seconds of audio, padding included, in one forward pass; by default what the memory is good for.
    `vad`: cut long audio where nobody speaks (asrkit.audio.vad) instead.
    """

    vad = False

    def __init__(self, bundle: Bundle, decoder: str | Mapping[str, Any] | Decoder | None = None) -> None:
        self.bundle, self.model, self.tokenizer = bundle, bundle.model, bundle.tokenizer
        own = bundle.config["recipe"].get("decoder", "greedy")
        inside = bundle.path if decoder is None else None
        self.decoder = build_decoder(own if decoder is None else decoder, self.tokenizer, inside)
        self.sample_rate = self.model.features.sample_rate
        self.device = next(self.model.parameters()).device
        self.grid = Grid.of(self.model)
        self._lock = threading.Lock()

    @cached_property
    def batch_seconds(self) -> float:
        """Seconds of audio, padding included, in one forward pass."""
        with self._lock:
            return batch_seconds(self.model)

    @overload
    def transcribe(self, source: Source) -> Transcript: ...

    @overload
    def transcribe(self, source: list[Source] | list[Path] | list[str] | list[bytes]) -> list[Transcript]: ...

    @overload
    def transcribe(self, source: Generator[Any, Any, Any]) -> Iterator[Transcript]: ...

    def transcribe(self, source: Any) -> Any:
        """A path, a Piece of a file, bytes, a file object, or (samples (S,), rate in Hz) -> Transcript; a list of them
        -> list of Transcripts; a generator of them -> iterator of Transcripts, made as they are asked for (`stream`).

        One input that is no audio, or holds no samples, raises AudioError, one that the disk does not let us read
        StorageError; in a list or generator it becomes a Transcript with its status. Sound shorter than one frame of
        the model is readable: its Transcript has the status "too_short".
        Arrays are mono: floats with full scale 1, or integers of at most 32 bits with the full scale of their type.
        """
        if isinstance(source, list):
            return list(self.stream(source))
        if isinstance(source, Iterator) and not hasattr(source, "read"):
            return self.stream(source)
        return self._run([self._open(source)])[0]

    def log_probs(self, source: Source) -> Tensor:
        """One input -> log-probabilities (T', V) on the CPU; a frame lasts `model.frame_seconds` seconds.

        Raises AudioError as `transcribe` does, and `too_short` where there is no frame.
        """
        given = self._open(source)
        if given.long:
            return torch.cat(list(self._pieces(given)))
        if self.model.num_frames(len(given.audio.samples)) < 1:
            raise AudioError(f"{given.name} is {TOO_SHORT}", fix="give more of it", reason="too_short")
        log_probs, lengths = self._forward([given.audio.samples])
        return log_probs[0, : int(lengths[0])]

    def stream(self, sources: Iterable[Source], jobs: int = 1, heard: Heard | None = None) -> Iterator[Transcript]:
        """Transcripts of many inputs, in their order, in batches of similar lengths; a bad input does not stop the
        rest.

        jobs: threads that decode audio beside the model, up to 32 inputs ahead; 1: none but the caller's. heard: is
        told the seconds of audio that the model has just been through.
        """
        window: list[Input | Transcript] = []
        seconds = 0.0
        for given in self._opened(sources, jobs):
            window.append(given)
            seconds += given.audio.seconds if isinstance(given, Input) else 0.0
            if len(window) == WINDOW or seconds > WINDOW_SECONDS:
                yield from self._window(window, heard)
                window, seconds = [], 0.0
        yield from self._window(window, heard)

    def _open(self, source: Source) -> Input:
        return open_input(source, self.sample_rate, self.grid.one_pass)

    def _open_or_say(self, source: Source) -> Input | Transcript:
        try:
            return self._open(source)
        except AsrkitError as error:
            return Transcript.failed(name_of(source), error)

    def _opened(self, sources: Iterable[Source], jobs: int) -> Iterator[Input | Transcript]:
        """Inputs in their order, decoded by `jobs` threads."""
        if jobs <= 1:
            yield from map(self._open_or_say, sources)
            return
        waiting: deque[Future[Input | Transcript]] = deque()
        pool = ThreadPoolExecutor(jobs, "asrkit-decode")
        try:
            for source in sources:
                waiting.append(pool.submit(self._open_or_say, source))
                if len(waiting) >= AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _window(self, window: list[Input | Transcript], heard: Heard | None) -> Iterator[Transcript]:
        results = {index: given for index, given in enumerate(window) if isinstance(given, Transcript)}
        inputs = {index: given for index, given in enumerate(window) if isinstance(given, Input)}
        short = [index for index, given in inputs.items() if not given.long]
        for batch in batches([inputs[index].audio.seconds for index in short], self.batch_seconds):
            places = [short[place] for place in batch]
            results.update(zip(places, self._run([inputs[index] for index in places], heard), strict=True))
        for index, given in inputs.items():
            if given.long:
                try:
                    (results[index],) = self._run([given], heard)
                except AsrkitError as error:  # damage beyond its beginning
                    results[index] = Transcript.failed(given.name, error)
        yield from (results[index] for index in range(len(window)))

    def _run(self, inputs: list[Input], heard: Heard | None = None) -> list[Transcript]:
        """One input of any length, or several that go through in one pass."""
        if len(inputs) == 1 and inputs[0].long:
            return [self._long(inputs[0], heard)]
        results = [self._without_model(given) for given in inputs]
        rows = [i for i, result in enumerate(results) if result is None]
        if rows:
            log_probs, lengths = self._forward([inputs[i].audio.samples for i in rows])
            with self._lock:  # decoders of other packages may keep a state
                decoded = self.decoder(log_probs, lengths)
            for i, hypotheses in zip(rows, decoded, strict=True):
                results[i] = self._transcript(inputs[i].name, inputs[i].audio.seconds, hypotheses[0])
        if heard is not None:
            heard(sum(given.audio.seconds for given in inputs))
        return [result for result in results if result is not None]

    def _forward(self, waveforms: list[np.ndarray], norm: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Waveforms (S,) -> log-probabilities (B, T', V) and lengths (B,) on the CPU; norm: CMVN statistics."""
        padded_waveforms, lengths = padded(waveforms)
        with torch.inference_mode():
            features, frames = self.model.features(padded_waveforms.to(self.device), lengths.to(self.device))
            log_probs, frames = self.model.acoustic(features, frames, norm)
        return log_probs.cpu(), frames.cpu()

    def _pieces(self, given: Input, blocks: Iterable[np.ndarray] | None = None) -> Iterator[Tensor]:
        """Log-probabilities (T', V) of a long input, window after window."""
        norm = None
        if self.model.acoustic.cmvn.mode == "utterance":
            norm = statistics(self.model, self.grid, given.blocks(), self.device)
        windows = self.grid.windows(given.blocks() if blocks is None else blocks)
        width = (self.grid.hop + 2 * self.grid.context) * self.grid.samples / self.sample_rate
        batch = max(1, int(LONG_SHARE * self.batch_seconds / width))
        yield from joined_log_probs(lambda waveforms: self._forward(waveforms, norm), windows, batch)

    def _long(self, given: Input, heard: Heard | None) -> Transcript:
        samples, peak = 0, 0.0

        def counted() -> Iterator[np.ndarray]:
            nonlocal samples, peak
            for block in given.blocks():
                samples += len(block)
                if len(block):
                    peak = max(peak, float(np.abs(block).max()))
                if heard is not None:
                    heard(len(block) / self.sample_rate)
                yield block

        if self.vad:
            words, texts = self._of_speech(given.name, counted())
        else:
            best = decode_pieces(self.decoder, self._pieces(given, counted()), self.model.frame_seconds, self._lock)
        seconds = samples / self.sample_rate
        if peak < SILENT_PEAK:
            return _silence(given.name, seconds, peak)
        if self.vad:
            return Transcript(given.name, " ".join(texts), tuple(words), round(seconds, 3))
        return self._transcript(given.name, seconds, best)

    def _of_speech(self, name: str, blocks: Iterable[np.ndarray]) -> tuple[list[Word], list[str]]:
        """Words and texts of the stretches with speech, each as if it were a file of its own."""
        words: list[Word] = []
        texts: list[str] = []
        group: list[Speech] = []

        def flush() -> None:
            audios = [Audio(one.samples, self.sample_rate, self.sample_rate, 1) for one in group]
            for speech, heard in zip(group, self._run([Input(name, None, a, False) for a in audios]), strict=True):
                start = speech.start / self.sample_rate
                words.extend(
                    replace(word, start=round(word.start + start, 3), end=round(word.end + start, 3))
                    for word in heard.words
                )
                texts.extend([heard.text] if heard.text else [])

        for speech in speech_of(blocks, self.sample_rate):
            longest = max(len(one.samples) for one in [*group, speech]) / self.sample_rate
            if group and longest * (len(group) + 1) > LONG_SHARE * self.batch_seconds:
                flush()
                group = []
            group.append(speech)
        if group:
            flush()
        return words, texts

    def _without_model(self, given: Input) -> Transcript | None:
        """What is known without asking the model: sound without a frame, and silence, in which models hear words."""
        audio = given.audio
        if self.model.num_frames(len(audio.samples)) < 1:
            seconds = round(audio.seconds, 3)
            return Transcript(given.name, "", seconds=seconds, status="too_short", message=TOO_SHORT)
        peak = float(np.abs(audio.samples).max())
        return _silence(given.name, audio.seconds, peak) if peak < SILENT_PEAK else None

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


def _silence(name: str, seconds: float, peak: float) -> Transcript:
    loud = f"at {20 * np.log10(peak):.0f} dB of full scale" if peak else "nowhere"
    return Transcript(name, "", seconds=round(seconds, 3), message=f"silence: it peaks {loud}")


def load(
    folder: str | Path,
    device: str = "auto",
    decoder: str | Mapping[str, Any] | Decoder | None = None,
    vad: bool = False,
) -> Transcriber:
    """A trained model: the folder of a bundle (`.../model`) or of a run that holds one, or `hf://OWNER/NAME`.

    device: cpu, cuda, cuda:1, or auto (a GPU if there is one). decoder: a name of kind `decoders`, settings such as
    {"name": "beam", "options": {"lm": "lm.arpa"}}, or a decoder; None: the recipe's. vad: long audio is cut where
    nobody speaks (needs `asrkit[longform]`) instead of into overlapping windows. Runs no code from the folder. Only
    `hf://...` asks the Hub (asrkit.bundle.hub_models), and only for a bundle's own files.
    """
    if str(folder).startswith(HUB):
        folder = fetch_bundle(str(folder))
    path = Path(folder)
    if not (path / "config.json").is_file() and (path / "model" / "config.json").is_file():
        path = path / "model"
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Transcriber(load_bundle(path, device), decoder)
    if vad:
        silero()  # says now if it is missing
        model.vad = True
    return model
