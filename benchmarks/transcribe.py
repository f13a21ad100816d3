"""Audio files to text, end to end: asrkit beside SpeechBrain's EncoderASR with the same layers, in one run.

    python benchmarks/transcribe.py CLIPS [--clips 24] [--width 512] [--threads 2] [--repeats 3] [--batch 8]

CLIPS is a folder of recordings (real Common Voice clips, or what `asrkit data synth` makes). The model is that of
recipes/common_voice_es/model2.yaml with random weights, which cost as much as trained ones; both sides read files,
resample, compute features, run the layers and decode greedily. Ways take turns; printed is the real-time factor
(seconds of work per second of audio; below 1 is faster than real time): median, smallest and largest on the wall, the
median in CPU time, which other work on the machine disturbs less, and the ratios of the medians to asrkit's.
`one by one` gives each side a file at a time (EncoderASR.transcribe_file); `in batches` is asrkit's list of files, and
EncoderASR.transcribe_batch on files sorted by length, which SpeechBrain leaves to its user to write.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from epoch_peer import Model
from speechbrain.decoders.ctc import ctc_greedy_decode
from speechbrain.inference.ASR import EncoderASR
from speechbrain.lobes.features import Fbank
from speechbrain.processing.features import InputNormalization
from torch import Tensor, nn

from asrkit.audio.sources import AUDIO_SUFFIXES
from asrkit.bundle import load_bundle, save_bundle
from asrkit.model import build_model
from asrkit.recipe import load_recipe
from asrkit.recipe.schema import SCHEMA
from asrkit.tokenizers import CharacterTokenizer
from asrkit.transcribe import Transcriber

RECIPE = Path(__file__).parents[1] / "recipes" / "common_voice_es" / "model2.yaml"
LETTERS = "abcdefghijklmnopqrstuvwxyzáéíóúüñ"


class Encoder(nn.Module):
    """What a hyperparams.yaml would chain: waveforms (B, S), relative lengths (B,) -> log-probs (B, T', V)."""

    def __init__(self, model: Model, features: int) -> None:
        super().__init__()
        self.fbank = Fbank(sample_rate=16000, n_mels=features, n_fft=512)
        self.normalize = InputNormalization(norm_type="sentence")
        self.model = model

    def forward(self, waveforms: Tensor, relative: Tensor) -> Tensor:
        return self.model(self.normalize(self.fbank(waveforms), relative), relative)


class Letters:
    """As much of a SentencePiece tokenizer as EncoderASR asks for."""

    def __init__(self, labels: list[str]) -> None:
        self.labels = labels

    def decode_ids(self, ids: list[int]) -> str:
        return "".join(self.labels[i] for i in ids)


def both_models(width: int, folder: Path) -> tuple[Transcriber, EncoderASR]:
    """The same layers on either side."""
    options = [("data.root", str(folder)), ("encoder", "none"), ("width", str(width))]
    recipe = load_recipe(RECIPE, options, known=SCHEMA)
    tokenizer = CharacterTokenizer(LETTERS + " ")
    ours = build_model(recipe, tokenizer.size)
    facts = {"metrics": {}, "splits": {}, "excluded": {}, "leakage": "", "source_rates": {}}
    save_bundle(folder / "model", ours, tokenizer, recipe, facts)
    features = recipe["features"]["options"]["size"]
    layers = Model(recipe["layers"], "none", features, tokenizer.size)
    sizes = [sum(p.numel() for p in model.parameters()) for model in (ours.acoustic, layers)]
    print(f"model 2, width {width}: {sizes[0]:,} parameters, SpeechBrain's {sizes[1]:,}")
    peer = EncoderASR(
        modules={"encoder": Encoder(layers, features)},
        hparams={
            "tokenizer": Letters(["", *LETTERS, " "]),
            "decoding_function": functools.partial(ctc_greedy_decode, blank_id=0),
            "sample_rate": 16000,
        },
    )
    return Transcriber(load_bundle(folder / "model")), peer


def peer_batches(peer: EncoderASR, files: list[str], size: int) -> list[str]:
    """Files in batches of similar lengths."""
    loaded = sorted(((peer.load_audio(file), file) for file in files), key=lambda pair: len(pair[0]))
    texts = {}
    for start in range(0, len(loaded), size):
        part = loaded[start : start + size]
        waveforms = nn.utils.rnn.pad_sequence([x for x, _ in part], batch_first=True)
        relative = torch.tensor([len(x) / waveforms.shape[1] for x, _ in part])
        words, _ = peer.transcribe_batch(waveforms, relative)
        texts.update(zip((file for _, file in part), words, strict=True))
    return [texts[file] for file in files]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    for name, default in (("clips", 24), ("width", 512), ("threads", 2), ("repeats", 3), ("batch", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    files = sorted(str(p) for p in args.folder.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES)[: args.clips]
    with tempfile.TemporaryDirectory() as folder:
        ours, peer = both_models(args.width, Path(folder))
        seconds = sum(result.seconds for result in ours.transcribe(files[:2]) + ours.transcribe(files[2:]))
        ways: dict[str, Callable[[], object]] = {
            "asrkit, in batches": lambda: ours.transcribe(files),
            "EncoderASR, in batches": lambda: peer_batches(peer, files, args.batch),
            "asrkit, one by one": lambda: [ours.transcribe(file) for file in files],
            "EncoderASR, one by one": lambda: [peer.transcribe_file(file) for file in files],
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(args.repeats):
            for name, way in ways.items():
                start, cpu = time.perf_counter(), time.process_time()
                way()
                taken[name].append(((time.perf_counter() - start) / seconds, (time.process_time() - cpu) / seconds))
    print(f"{len(files)} clips, {seconds:.0f} s of audio, {args.threads} threads, {args.repeats} repeats")
    medians = {
        name: [statistics.median(column) for column in zip(*times, strict=True)] for name, times in taken.items()
    }
    for name, times in taken.items():
        base = medians["asrkit, " + name.partition(", ")[2]]
        wall, cpu = medians[name]
        spread = f"[{min(t for t, _ in times):.4f}, {max(t for t, _ in times):.4f}]"
        ratios = f"wall {wall / base[0]:.2f}, CPU {cpu / base[1]:.2f} times asrkit's"
        print(f"{name:24s} real-time factor {wall:.4f} {spread}, CPU {cpu:.4f}; {ratios}")


if __name__ == "__main__":
    main()
