"""Every reader of foreign bytes, fed with damaged ones: an answer or an AsrkitError, never another exception.

Each reader is a target that takes bytes. `test_fuzz` takes seconds and is the same every time; `pytest -m soak -k fuzz`
goes on for minutes (ASRKIT_FUZZ_SECONDS for each target, default 60) and is never the same. What once broke a reader is
kept in `corpus/<target>-*` and read by `test_past_crashes`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import struct
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hostile import Toy, replace, shared_toy
from hypothesis import HealthCheck, given, settings
from mutation import as_json, byte_edits, changed, mutated, value_edits
from test_x import model_of
from toy import RATE, RECIPE, tones

from asrkit.audio import read_audio
from asrkit.bundle import load_bundle
from asrkit.checkpoints import Checkpoints
from asrkit.checkpoints.optimizer_state import optimizer_from_tensors
from asrkit.corpus import open_corpus
from asrkit.corpus.archive import Archive
from asrkit.corpus.tables import read_rows
from asrkit.errors import AsrkitError, printable
from asrkit.lm.arpa import read_unigrams
from asrkit.lm.lexicon import read_lexicon
from asrkit.recipe import load_recipe
from asrkit.recipe.schema import SCHEMA
from asrkit.recipe.validation import validate
from asrkit.report.collect import collect
from asrkit.runs import MetricsLog
from asrkit.subwords import SentencePieceTokenizer
from asrkit.survey import survey
from asrkit.survey.page import page

pytestmark = pytest.mark.fault

CORPUS = Path(__file__).with_name("corpus")
SECONDS = float(os.environ.get("ASRKIT_FUZZ_SECONDS", "60"))
AUDIO = (("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III"),
         ("AIFF", "PCM_16"), ("AU", "PCM_16"))  # fmt: skip


class Bench:
    """Valid files to damage, and what reads them. Each target gives the files' bytes and a reader of such bytes."""

    def __init__(self, toy: Toy, folder: Path) -> None:
        self.toy, self.folder = toy, folder
        self.bundle = folder / "bundle"
        shutil.copytree(toy.model, self.bundle)

    def target(self, name: str) -> tuple[list[bytes], Callable[[bytes], None]]:
        """Seeds and reader of a target."""
        kind, _, rest = name.partition("-")
        seeds = getattr(self, f"{kind}_seeds")(*([rest] if rest else []))
        reader = getattr(self, kind)
        return seeds, (lambda data: reader(data, rest)) if rest else reader

    # --- recipes

    def recipe_seeds(self) -> list[bytes]:
        root = Path(__file__).resolve().parents[2] / "recipes"
        return [RECIPE.encode(), (root / "demo.yaml").read_bytes()]

    def recipe(self, data: bytes) -> None:
        path = self.folder / "recipe.yaml"
        path.write_bytes(data)
        validate(load_recipe(path, [("data.root", "/x")], known=SCHEMA))

    # --- bundles: the file, with the hash that belongs to it

    def config_seeds(self) -> list[bytes]:
        return [(self.toy.model / "config.json").read_bytes()]

    def config(self, data: bytes) -> None:
        (self.bundle / "config.json").write_bytes(data)
        load_bundle(self.bundle)

    def tensors_seeds(self) -> list[bytes]:
        return [(self.toy.model / "model.safetensors").read_bytes()]

    def tensors(self, data: bytes) -> None:
        self._with("model.safetensors", data)

    def header_seeds(self) -> list[bytes]:
        data = self.tensors_seeds()[0]
        return [data[8 : 8 + struct.unpack("<Q", data[:8])[0]]]

    def header(self, data: bytes) -> None:
        whole = self.tensors_seeds()[0]
        body = whole[8 + struct.unpack("<Q", whole[:8])[0] :]
        self._with("model.safetensors", struct.pack("<Q", len(data)) + data + body)

    def tokens_seeds(self) -> list[bytes]:
        return [(self.toy.model / "tokens.txt").read_bytes()]

    def tokens(self, data: bytes) -> None:
        self._with("tokens.txt", data)

    def _with(self, name: str, data: bytes) -> None:
        for file in ("config.json", "model.safetensors", "tokens.txt"):
            shutil.copyfile(self.toy.model / file, self.bundle / file)
        replace(self.bundle, name, data)
        config = json.loads((self.bundle / "config.json").read_text())
        if name == "tokens.txt":
            config["tokenizer"]["fingerprint"] = hashlib.sha256(data).hexdigest()
            (self.bundle / "config.json").write_text(json.dumps(config))
        load_bundle(self.bundle)

    def sentencepiece_seeds(self) -> list[bytes]:
        return [model_of(20), model_of(20, model_type="bpe")]

    def sentencepiece(self, data: bytes) -> None:
        tokenizer = SentencePieceTokenizer(data)
        text = tokenizer.decode(list(range(1, min(tokenizer.size, 200))))
        assert text.isprintable()
        tokenizer.unknown("abe iou")

    # --- tables and archives

    def table_seeds(self, suffix: str) -> list[bytes]:
        rows = [("a.wav", "Abe iou.", "s1", "train", "1.5"), ("b/c.wav", 'He "says", no', "s2", "dev", "")]
        names = ("path", "sentence", "speaker", "split", "duration")
        if suffix == "jsonl":
            return ["".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows).encode()]
        if suffix == "csv":
            quoted = [",".join(f'"{cell.replace(chr(34), 2 * chr(34))}"' for cell in row) for row in rows]
            return ["\n".join([",".join(names), *quoted, ""]).encode()]
        return ["\n".join("\t".join(row) for row in (names, *rows, ())).encode()]

    def table(self, data: bytes, suffix: str) -> None:
        folder = self.folder / "manifest"
        folder.mkdir(exist_ok=True)
        path = folder / f"manifest.{suffix}"
        path.write_bytes(data)
        with contextlib.suppress(AsrkitError):
            lines = data.rstrip(b"\r\n").split(b"\n")
            assert len(list(read_rows(path))) == len(lines) - (suffix != "jsonl" or lines == [b""])
        for split in (corpus := open_corpus(path)).splits():
            for utterance in corpus.read(split):
                assert folder in utterance.audio.parents

    def voice_seeds(self) -> list[bytes]:
        return [(self.toy.corpus / "train.tsv").read_bytes()]

    def voice(self, data: bytes) -> None:
        root = self.folder / "cv"
        (root / "clips").mkdir(parents=True, exist_ok=True)
        (root / "train.tsv").write_bytes(data)
        found = survey(root, decode=0)
        text = page(found)
        assert "<script" not in text.lower()
        for utterance in open_corpus(root).read("train"):
            assert root in utterance.audio.parents

    def archive_seeds(self) -> list[bytes]:
        found = []
        for mode in ("w", "w:gz"):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
                for file in ("train.tsv", "dev.tsv", "clips/common_voice_es_0.wav"):
                    tar.add(self.toy.corpus / file, f"es/{file}")
            found.append(buffer.getvalue())
        return found

    def archive(self, data: bytes) -> None:
        path, cache = self.folder / "archive.tar.gz", self.folder / "cache"
        path.write_bytes(data)
        shutil.rmtree(cache, ignore_errors=True)
        corpus = Archive(path, cache, progress=False)
        with contextlib.redirect_stderr(io.StringIO()):
            corpus.fetch(corpus.read("train"))
        assert all(cache in file.resolve().parents for file in cache.rglob("*"))

    def parquet_seeds(self) -> list[bytes]:
        audio = [{"bytes": b"RIFF", "path": f"{i}.wav"} for i in range(5)]
        table = pa.table({"audio": audio, "sentence": ["Abe iou."] * 5, "client_id": list("abcde")})
        sink = io.BytesIO()
        pq.write_table(table, sink)
        return [sink.getvalue()]

    def parquet(self, data: bytes) -> None:
        root = self.folder / "parquet"
        root.mkdir(exist_ok=True)
        (root / "train-0.parquet").write_bytes(data)
        corpus = open_corpus(root, cache=self.folder / "cache")
        with contextlib.redirect_stderr(io.StringIO()):
            for split in corpus.splits():
                corpus.fetch(corpus.read(split))

    # --- language models

    def arpa_seeds(self) -> list[bytes]:
        words = "-1.0\t<s>\t-0.3\n-1.2\t</s>\n-0.9\tabe\t-0.2\n-0.8\tiou\t-0.1\n"
        text = f"\\data\\\nngram 1=4\nngram 2=1\n\n\\1-grams:\n{words}\n\\2-grams:\n-0.5\tabe iou\n\n\\end\\\n"
        return [text.encode()]

    def arpa(self, data: bytes) -> None:
        path = self.folder / "lm.arpa"
        path.write_bytes(data)
        read_unigrams(path)

    def lexicon_seeds(self) -> list[bytes]:
        return [b"abe a b e\niou\n"]

    def lexicon(self, data: bytes) -> None:
        path = self.folder / "words.txt"
        path.write_bytes(data)
        assert read_lexicon(path)

    # --- audio

    def audio_seeds(self, which: str) -> list[bytes]:
        container, codec = AUDIO[int(which)]
        buffer = io.BytesIO()
        soundfile.write(buffer, tones("abe iou", 1), RATE, format=container, subtype=codec)
        return [buffer.getvalue()]

    def audio(self, data: bytes, which: str) -> None:
        audio = read_audio(data, RATE, max_seconds=20)
        assert audio.samples.dtype == np.float32
        assert np.isfinite(audio.samples).all()
        assert 0 < len(audio.samples) <= 20 * RATE

    # --- what a run leaves

    def manifest_seeds(self) -> list[bytes]:
        return [self._newest().joinpath("MANIFEST.json").read_bytes()]

    def manifest(self, data: bytes) -> None:
        self._checkpoint("MANIFEST.json", data)

    def state_seeds(self) -> list[bytes]:
        return [self._newest().joinpath("state.json").read_bytes()]

    def state(self, data: bytes) -> None:
        self._checkpoint("state.json", data)

    def _newest(self) -> Path:
        return sorted((self.toy.folder / "checkpoints").glob("step-*"))[-1]

    def _checkpoint(self, name: str, data: bytes) -> None:
        source, folder = self._newest(), self.folder / "checkpoints"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder / source.name)
        place = folder / source.name
        (place / name).write_bytes(data)
        if name != "MANIFEST.json":
            manifest = json.loads((place / "MANIFEST.json").read_text())
            manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            (place / "MANIFEST.json").write_text(json.dumps(manifest))
        store = Checkpoints(folder)
        for found in (store.latest(), store.best()):
            if found is not None:
                found.model()
                optimizer_from_tensors(found.optimizer(), found.state.get("optimizer"))

    def metrics_seeds(self) -> list[bytes]:
        return [(self.toy.folder / "metrics.jsonl").read_bytes()[:3000]]

    def metrics(self, data: bytes) -> None:
        path = self.folder / "metrics.jsonl"
        path.write_bytes(data)
        MetricsLog.read(path)
        MetricsLog(path).truncate_after(3)

    def study_seeds(self) -> list[bytes]:
        row = {"id": "a/seed1", "path": "cells/a", "arm": "a", "seed": 1, "status": "done", "chosen": True, "lr": 0.1}
        arms = [{"arm": "a", "context": "c", "recipe": "r", "axes": {}, "encoder": "none", "lr": 0.1}]
        return [as_json({"format": 1, "name": "s", "cells": [row], "arms": arms})]

    def study(self, data: bytes) -> None:
        folder = self.folder / "study"
        folder.mkdir(exist_ok=True)
        (folder / "study.json").write_bytes(data)
        found = collect(folder)
        found.contexts()
        [found.of_arm(arm["arm"]) for arm in found.arms]


TARGETS = ["recipe", "config", "tensors", "header", "tokens", "sentencepiece", "table-tsv", "table-csv", "table-jsonl",
           "voice", "archive", "parquet", "manifest", "state", "metrics", "study", "arpa", "lexicon",
           *(f"audio-{i}" for i in range(len(AUDIO)))]  # fmt: skip
JSON_TARGETS = ["config", "header", "manifest", "state", "study"]
EXAMPLES = {"config": 30, "tensors": 30, "header": 30, "tokens": 30, "voice": 20, "archive": 40, "parquet": 30,
            "state": 40, "manifest": 40}  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(shared_toy(tmp_path_factory), tmp_path_factory.mktemp("fuzz"))


def feed(reader: Callable[[bytes], None], data: bytes) -> bool:
    """Whether the reader takes these bytes; everything but an AsrkitError goes on."""
    refusal = None
    try:
        reader(data)
    except AsrkitError as error:
        refusal = error
    if refusal is not None:
        assert refusal.reason, refusal
        assert printable(str(refusal)) == str(refusal)
    return refusal is None


def fuzz(reader: Callable[[bytes], None], seeds: list[bytes], examples: int, until: float, again: bool) -> None:
    """Draw damaged seeds; `again`: the same ones every time."""
    common: dict[str, Any] = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}

    @settings(max_examples=examples, derandomize=again, **common)
    @given(byte_edits)
    def run(edits: Any) -> None:
        if time.monotonic() < until:
            feed(reader, mutated(seeds[len(edits) % len(seeds)], edits))

    run()


def fuzz_values(reader: Callable[[bytes], None], data: Any, examples: int, until: float, again: bool) -> None:
    """The same for one value of JSON data."""
    common: dict[str, Any] = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}

    @settings(max_examples=examples, derandomize=again, **common)
    @given(value_edits)
    def run(edits: Any) -> None:
        if time.monotonic() < until:
            feed(reader, as_json(changed(data, edits)))

    run()


@pytest.mark.filterwarnings("ignore::UserWarning")  # a recipe with defects says so
@pytest.mark.parametrize("name", TARGETS)
def test_fuzz(bench: Bench, name: str) -> None:
    """A second or two for each reader, the same bytes every time."""
    seeds, reader = bench.target(name)
    assert [feed(reader, data) for data in seeds] == [True] * len(seeds), "a whole file is refused"
    until = time.monotonic() + 60
    fuzz(reader, seeds, EXAMPLES.get(name.partition("-")[0], 80), until, True)
    if name in JSON_TARGETS:
        fuzz_values(reader, json.loads(seeds[0]), 2 * EXAMPLES.get(name.partition("-")[0], 80), until, True)


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", TARGETS)
def test_fuzz_for_minutes(bench: Bench, name: str) -> None:
    """ASRKIT_FUZZ_SECONDS for each reader, new bytes every time."""
    seeds, reader = bench.target(name)
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        fuzz(reader, seeds, 2000, until, False)
        if name in JSON_TARGETS:
            fuzz_values(reader, json.loads(seeds[0]), 2000, until, False)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_past_crashes(bench: Bench) -> None:
    """What once ended in another exception is answered or refused."""
    kept = sorted(CORPUS.glob("*"))
    assert len(kept) >= 1
    for path in kept:
        name = next(target for target in TARGETS if path.name.startswith(f"{target}."))
        _, reader = bench.target(name)
        feed(reader, path.read_bytes())
