"""Exported models on real clips: onnxruntime and, where it is installed, sherpa-onnx against the model itself."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asrkit.audio.sources import Piece, open_input
from asrkit.bundle import Bundle
from asrkit.decoders import best_paths
from asrkit.onnx import FULL_SCALE, run, session
from asrkit.scoring import cer, score, wer

Samples = np.ndarray


@dataclass
class Column:
    """What one program wrote: texts, in the order of the clips."""

    name: str
    texts: list[str] = field(default_factory=list)

    def figures(self, references: list[str], model: list[str], symbols: bool) -> dict[str, Any]:
        """Of how many clips the text is the model's, and the error rates."""
        rows = ((str(i), "", *pair) for i, pair in enumerate(zip(references, self.texts, strict=True)))
        scores = score(rows, symbols=symbols)
        same = sum(a == b for a, b in zip(self.texts, model, strict=True))
        return {"program": self.name, "same_text": same, "cer": cer(scores), "wer": wer(scores)}


class OnnxModel:
    """An exported model with the features and labels of its bundle: samples (S,) -> text, by onnxruntime."""

    def __init__(self, data: bytes, bundle: Bundle, target: str) -> None:
        self.session, self.bundle = session(data), bundle
        self.scale = FULL_SCALE if target == "wenet_ctc" else 1

    def text(self, samples: Samples) -> str:
        """Greedy text; empty for sound shorter than one output frame, which no ONNX graph takes."""
        if self.bundle.model.num_frames(len(samples)) < 1:
            return ""
        wave = torch.from_numpy(samples).unsqueeze(0) * self.scale
        with torch.inference_mode():
            features, frames = self.bundle.model.features(wave, torch.tensor([len(samples)]))
        return _text(self.bundle, *run(self.session, features, frames))


def own_text(bundle: Bundle, samples: Samples) -> str:
    """The model's own greedy text of samples (S,) at its rate."""
    if bundle.model.num_frames(len(samples)) < 1:
        return ""
    with torch.inference_mode():
        return _text(bundle, *bundle.model(torch.from_numpy(samples).unsqueeze(0), torch.tensor([len(samples)])))


def _text(bundle: Bundle, log_probs: torch.Tensor, frames: torch.Tensor) -> str:
    return str(bundle.tokenizer.decode(best_paths(log_probs, frames)[0][0])).strip()


def sherpa_recognizer(model: Path, tokens: Path, target: str, sample_rate: int, feature_dim: int) -> Any:
    """sherpa-onnx's recognizer of two exported files, on one thread."""
    import sherpa_onnx

    make = getattr(sherpa_onnx.OfflineRecognizer, f"from_{target}")
    return make(model=str(model), tokens=str(tokens), num_threads=1, sample_rate=sample_rate, feature_dim=feature_dim)


def sherpa_text(recognizer: Any, samples: Samples, sample_rate: int) -> tuple[str, list[float]]:
    """Text and the time in seconds of every label, as sherpa-onnx gives them."""
    stream = recognizer.create_stream()
    stream.accept_waveform(sample_rate, samples)
    recognizer.decode_stream(stream)
    return stream.result.text.strip(), list(stream.result.timestamps)


def sherpa_installed() -> bool:
    return importlib.util.find_spec("sherpa_onnx") is not None


def waves(clips: Iterable[Path | Piece], sample_rate: int) -> Iterator[Samples]:
    """Clips as samples (S,) float32 at this rate. Raises AudioError."""
    for clip in clips:
        yield open_input(clip, sample_rate).audio.samples


def compare(
    bundle: Bundle,
    files: dict[str, Path],
    tokens: Path,
    target: str,
    pairs: list[tuple[Path | Piece, str]],
    sherpa: bool,
) -> list[dict[str, Any]]:
    """Figures of the model, of every exported file (name -> path) and, with `sherpa`, of these under sherpa-onnx.

    pairs: clips, and their sentences after the model's text rules.
    """
    rate, size = bundle.model.features.sample_rate, bundle.model.features.size
    own = Column("asrkit")
    runtime = [
        (Column(f"onnxruntime {name}"), OnnxModel(path.read_bytes(), bundle, target)) for name, path in files.items()
    ]
    phones = [
        (Column(f"sherpa-onnx {name}"), sherpa_recognizer(path, tokens, target, rate, size))
        for name, path in files.items()
        if sherpa
    ]
    for samples in waves((clip for clip, _ in pairs), rate):
        own.texts.append(own_text(bundle, samples))
        for column, model in runtime:
            column.texts.append(model.text(samples))
        for column, recognizer in phones:
            column.texts.append(sherpa_text(recognizer, samples, rate)[0])
    references, symbols = [text for _, text in pairs], bundle.tokenizer.name == "symbols"
    columns = [own, *(column for column, _ in runtime + phones)]
    return [column.figures(references, own.texts, symbols) for column in columns]
