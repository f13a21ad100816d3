"""Rows X of the reference: nothing of a stranger's runs, leaves its folder, or takes the machine.

Each test asserts exit code, reason code, the state on disk by hash, and that a healthy run afterwards succeeds.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hostile import Toy, command, copy_of, edit, hashes, replace, shared_toy, weights
from test_recipe import HOSTILE
from toy import LETTERS, RATE, tones

import asrkit
from asrkit import registry
from asrkit.audio import isolation, read_audio
from asrkit.audio.codecs import SUBTYPES
from asrkit.curves import draw_curves
from asrkit.errors import AudioError
from asrkit.subwords import SentencePieceTokenizer

pytestmark = pytest.mark.fault

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return shared_toy(tmp_path_factory)


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """The file that a payload would make."""
    path = tmp_path / "marker"
    yield path
    assert not path.exists(), "a stranger's code has run"


def trains(toy: Toy, capsys: Capture, output: Path) -> None:
    assert command(capsys, *toy.words(output)).code == 0


def transcribes(toy: Toy, capsys: Capture, *more: str | Path) -> str:
    """The healthy model still reads a clip; gives its text."""
    clip = toy.corpus / "clips" / "common_voice_es_0.wav"
    answer = command(capsys, "transcribe", "--model", toy.model, clip, *more)
    assert answer.code == 0, answer.err
    return answer.out


def hostile_folder(tmp_path: Path, marker: Path, toy: Toy, text: str) -> Path:
    """A recipe with everything around it that the vectors of HOSTILE reach for."""
    folder = tmp_path / "recipes"
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    (tmp_path / "outside.yaml").write_text("secret: 1\n")
    (folder / "parts" / "climber.yaml").write_text("a: !include:../../outside.yaml\n")
    (folder / "parts" / "payload.yaml").write_text(f"a: !apply:os.system [touch {marker}]\n")
    for link, target in (("link.yaml", tmp_path / "outside.yaml"), ("linked", tmp_path)):
        if not (folder / "parts" / link).is_symlink():
            (folder / "parts" / link).symlink_to(target)
    path = folder / "recipe.yaml"
    path.write_text(text.replace("MARKER", str(marker)))
    return path


RUNS_CODE = [name for name in HOSTILE if "bomb" not in name and "include" not in name]


def test_x01_recipes_that_run_code(toy: Toy, tmp_path: Path, marker: Path, capsys: Capture) -> None:
    """Every vector, through the command line and as the value of an option: exit 7, one line, no run folder."""
    before = hashes(toy.corpus)
    for name in RUNS_CODE:
        recipe = hostile_folder(tmp_path, marker, toy, HOSTILE[name])
        answer = command(capsys, "train", recipe, f"--data.root={toy.corpus}", "--output", tmp_path / "run")
        assert (answer.code, bool(answer.reason)) == (7, True), (name, answer.err)
        assert "line" in answer.err or name in ("handle", "large"), (name, answer.err)
        assert answer.err.count("\n") == 1, name
    for text in (f"!apply:os.system [touch {marker}]", f"(!!python/object/apply:os.system ['touch {marker}'] , 1)"):
        answer = command(capsys, *toy.words(tmp_path / "run", f"--name={text}"))
        assert (answer.code, answer.reason) in ((7, "tag"), (7, "tuple")), answer.err
    assert not (tmp_path / "run").exists()
    assert hashes(toy.corpus) == before
    trains(toy, capsys, tmp_path / "run")


def test_x01_trust_is_asked_for_and_recorded(
    toy: Toy, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only way round is `--trust-recipe`, and the run's record says that it was taken."""
    recipe = tmp_path / "own.yaml"
    recipe.write_text(toy.recipe.read_text() + "seed: !apply:operator.add [1, 2]\n")
    words = [str(recipe) if word == str(toy.recipe) else word for word in toy.words(tmp_path / "run")]
    assert command(capsys, *words).code == 7
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(sys, "argv", ["asrkit", *words, "--trust-recipe"])
    answer = command(capsys, *sys.argv[1:])
    assert answer.code == 0, answer.err
    assert "--trust-recipe" in json.loads((tmp_path / "run" / "env.json").read_text())["command"]
    assert "seed: 3\n" in (tmp_path / "run" / "resolved.yaml").read_text()


def test_x02_no_prefix_opens_a_door(toy: Toy, tmp_path: Path, marker: Path, capsys: Capture) -> None:
    """Whatever module a name begins with, a recipe builds nothing; files outside its folder are not read."""
    vectors = {
        f"{tag}:{name}": f"seed: !{tag}:{name} [touch {marker}]\n"
        for tag in ("new", "name", "apply", "applyref", "module")
        for name in ("speechbrain.utils.checkpoints.os.system", "torch.os.system", "asrkit.runs.os.system", "os")
    }
    vectors |= {name: text for name, text in HOSTILE.items() if "include" in name}
    for name, text in vectors.items():
        recipe = hostile_folder(tmp_path, marker, toy, text)
        answer = command(capsys, "train", recipe, f"--data.root={toy.corpus}", "--output", tmp_path / "run")
        assert (answer.code, answer.reason) in ((7, "tag"), (7, "include")), (name, answer.err)
        assert "secret" not in answer.err
    assert not (tmp_path / "run").exists()
    trains(toy, capsys, tmp_path / "run")


def test_x03_bombs(toy: Toy, tmp_path: Path, marker: Path, capsys: Capture) -> None:
    """Refused in milliseconds, in little memory."""
    for name in ("alias_bomb", "power", "power_by_parts", "reference_bomb", "empty_bomb", "copy_bomb", "text_bomb",
                 "square_bomb", "digits", "deep", "deep_blocks", "large", "many", "backtrack"):  # fmt: skip
        recipe = hostile_folder(tmp_path, marker, toy, HOSTILE[name])
        command(capsys, "train", recipe)  # warm
        start = time.process_time()
        answer = command(capsys, "train", recipe, "--output", tmp_path / "run")
        seconds = time.process_time() - start
        print(name, seconds)
        assert (answer.code, bool(answer.reason)) == (7, True), (name, answer.err)
        assert seconds < (0.5 if name in ("many", "copy_bomb") else 0.25), (name, seconds)
    assert not (tmp_path / "run").exists()
    trains(toy, capsys, tmp_path / "run")


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", ".hidden", "a/b", "a\\\\b", "a\\x1b[31m", "x" * 300])
def test_x02_a_recipe_cannot_name_a_folder_elsewhere(
    toy: Toy, tmp_path: Path, name: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`name:` makes runs/<name>/: it stays there."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(toy.recipe.read_text().replace("name: toy", f'name: "{name}"'))
    answer = command(capsys, "train", recipe, f"--data.root={toy.corpus}")
    assert (answer.code, answer.reason) == (2, "value"), answer.err
    assert "\x1b" not in answer.err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["here", "recipe.yaml"]


def test_x02_names_are_no_formulas(tmp_path: Path) -> None:
    """A dollar sign would make matplotlib read TeX, and fail at the end of a training."""
    figures = dict.fromkeys(("loss", "cer", "wer", "blank", "grad_norm"), 1.0)
    draw_curves([{"step": 1, "train": figures, "dev": figures}], tmp_path / "curves.png", "a$\\frac^$")
    assert (tmp_path / "curves.png").stat().st_size > 1000


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def pickles(marker: Path) -> dict[str, bytes]:
    """The payload as a plain pickle, as what torch.save writes now, and as it wrote before."""
    found = {"pickle": pickle.dumps(Payload(marker))}
    for name, new in (("zip", True), ("legacy", False)):
        buffer = io.BytesIO()
        torch.save(Payload(marker), buffer, _use_new_zipfile_serialization=new)
        found[name] = buffer.getvalue()
    return found


def test_x04_pickles_are_not_opened(
    toy: Toy, tmp_path: Path, marker: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As weights, as alphabet and as a checkpoint's optimizer, with matching hashes, and with torch's own guard off."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    clip = toy.corpus / "clips" / "common_voice_es_0.wav"
    for kind, data in pickles(marker).items():
        for file, reason in (("model.safetensors", "tensor_file"), ("tokens.txt", "tokenizer_file")):
            bundle = copy_of(toy.model, tmp_path / f"{kind}-{file}")
            replace(bundle, file, data)
            before = hashes(bundle)
            answer = command(capsys, "transcribe", "--model", bundle, clip)
            assert (answer.code, answer.reason) == (7 if reason == "tensor_file" else 5, reason), answer.err
            assert hashes(bundle) == before
    run = copy_of(toy.folder, tmp_path / "run")
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    manifest = json.loads((newest / "MANIFEST.json").read_text())
    data = pickles(marker)["zip"]
    (newest / "optimizer.safetensors").write_bytes(data)
    manifest["files"]["optimizer.safetensors"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (newest / "MANIFEST.json").write_text(json.dumps(manifest))
    answer = command(capsys, *toy.words(run), "--training.epochs=3")
    assert (answer.code, answer.reason) == (5, "damaged"), answer.err
    assert not marker.exists()
    transcribes(toy, capsys)
    trains(toy, capsys, tmp_path / "again")


def test_x05_no_scanner_is_needed(tmp_path: Path) -> None:
    """There is no unpickler in asrkit at all, so no pickle has to be judged: nothing in the tree calls one."""
    forbidden = {
        ("pickle", "*"), ("dill", "*"), ("cloudpickle", "*"), ("joblib", "*"), ("shelve", "*"), ("marshal", "*"),
        ("torch", "load"), ("yaml", "load"), ("yaml", "unsafe_load"), ("yaml", "full_load"),
        ("os", "system"), ("os", "popen"), ("os", "execv"), ("os", "execvp"), ("shutil", "unpack_archive"),
        ("builtins", "eval"), ("builtins", "exec"),
    }  # fmt: skip
    root = Path(asrkit.__file__ or "").parents[1]
    files = [file for folder in ("asrkit", "plugins/asrkit_norms") for file in (root / folder).rglob("*.py")]
    assert len(files) > 100
    found = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names: list[tuple[str, str]] = []
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                names = [(module.split(".")[0], "*") for module in modules]
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                names = [(node.value.id, node.attr)]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                names = [("builtins", node.func.id)]
            keywords = [key for key in getattr(node, "keywords", []) if key.arg in ("shell", "allow_pickle")]
            calls = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            unpacks = calls and node.func.attr in ("extractall", "extract")  # type: ignore[union-attr]
            if forbidden & set(names) or keywords or unpacks:
                found.append(f"{file.name}:{getattr(node, 'lineno', 0)}")
    assert found == []


def entry(shape: list[int], start: int, end: int, kind: str = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


def tensor_file(header: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def tensors(size: int, **entries: dict[str, Any]) -> bytes:
    return tensor_file(json.dumps(entries).encode(), bytes(size))


def many_entries() -> bytes:
    """A header of a million names: 40 s and 2 GB where it is parsed."""
    names = b",".join(b'"%d":{"dtype":"F32","shape":[],"data_offsets":[0,0]}' % i for i in range(1_000_000))
    return tensor_file(b"{" + names + b"}")


def twice(data: bytes) -> bytes:
    """One name twice, with the same bytes."""
    size = struct.unpack("<Q", data[:8])[0]
    text = data[8 : 8 + size].decode().strip()
    first = text[1 : text.index("}") + 1]
    return tensor_file(f"{{{first},{text[1:]}".encode(), data[8 + size :])


def nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["head.linear.bias"][0] = float("nan")


def zip_bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data/0", bytes(32 << 20))
        file.writestr("archive/data.pkl", b"")
    return buffer.getvalue()


BAD_TENSORS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "million entries": (lambda data: many_entries(), "tensor_file"),
    "header of a petabyte": (lambda data: struct.pack("<Q", 1 << 50) + b"{}", "tensor_file"),
    "header beyond the end": (lambda data: struct.pack("<Q", 1000) + b"{}", "tensor_file"),
    "no header": (lambda data: b"\x01", "tensor_file"),
    "empty": (lambda data: b"", "tensor_file"),
    "zip bomb": (lambda data: zip_bomb(), "tensor_file"),
    "cut": (lambda data: data[:-7], "tensor_file"),
    "longer": (lambda data: data + bytes(64), "tensor_file"),
    "one name twice": (twice, "tensor_file"),
    "overlap": (lambda data: tensors(16, a=entry([2], 0, 8), b=entry([2], 0, 8)), "tensor_shapes"),
    "hole": (lambda data: tensors(16, a=entry([2], 8, 16)), "tensor_file"),
    "negative": (lambda data: tensors(0, a=entry([-2], 0, -8)), "tensor_file"),
    "nested": (lambda data: tensor_file(b"[" * 90_000 + b"]" * 90_000), "tensor_file"),
}  # fmt: skip


def test_x06_tensor_files(toy: Toy, tmp_path: Path, capsys: Capture) -> None:
    """Malformed, doubled, greedy, not finite: refused before the library reads them, in a second each."""
    clip = toy.corpus / "clips" / "common_voice_es_0.wav"
    data = (toy.model / "model.safetensors").read_bytes()
    for name, (damage, reason) in BAD_TENSORS.items():
        bundle = copy_of(toy.model, tmp_path / name)
        replace(bundle, "model.safetensors", damage(data))
        before = hashes(bundle)
        start = time.perf_counter()
        answer = command(capsys, "transcribe", "--model", bundle, clip)
        assert time.perf_counter() - start < 2, name
        assert (answer.code, answer.reason) == (7, reason), (name, answer.err)
        assert hashes(bundle) == before
    bundle = copy_of(toy.model, tmp_path / "nan")
    weights(nan)(bundle)
    answer = command(capsys, "transcribe", "--model", bundle, clip)
    assert (answer.code, answer.reason) == (7, "tensor"), answer.err
    transcribes(toy, capsys)


def test_x06_a_key_that_stands_twice(toy: Toy, tmp_path: Path, capsys: Capture) -> None:
    """Readers disagree about which of two equal keys counts, so neither does."""
    bundle = copy_of(toy.model, tmp_path / "bundle")
    text = (bundle / "config.json").read_text()
    (bundle / "config.json").write_text(text.replace('"seed":', '"seed": 7, "seed":', 1))
    answer = command(capsys, "transcribe", "--model", bundle, toy.corpus / "clips")
    assert (answer.code, answer.reason) == (7, "config"), answer.err
    assert "twice" in answer.err


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


def long_name(kind: bytes) -> bytes:
    """A megabyte of a name; a .gz holds a gigabyte of it in one, and `tarfile` takes it into memory several times."""
    return member("././@LongLink", kind, size=1 << 20).tobuf(tarfile.GNU_FORMAT) + b"A" * (1 << 20)


def test_x07_archives(toy: Toy, tmp_path: Path, capsys: Capture) -> None:
    """Traversal, links, devices and headers that are bombs: the whole archive is refused, nothing is written."""
    hostile: dict[str, tuple[tarfile.TarInfo | bytes, str]] = {
        "parent": (member("../evil.tsv"), "archive_member"),
        "absolute": (member("/tmp/evil.tsv"), "archive_member"),
        "inner parent": (member("es/clips/../../../evil.wav"), "archive_member"),
        "link": (member("es/clips/a.wav", tarfile.SYMTYPE, "/etc/passwd"), "archive_member"),
        "linked folder": (member("es/clips", tarfile.SYMTYPE, str(tmp_path)), "archive_member"),
        "hard link": (member("es/clips/a.wav", tarfile.LNKTYPE, "../../secret"), "archive_member"),
        "device": (member("es/clips/a.wav", tarfile.CHRTYPE), "archive_member"),
        "pipe": (member("es/train.tsv", tarfile.FIFOTYPE), "archive_member"),
        "escape": (member("es/\x1b[2J.tsv"), "archive_member"),
        "long name": (long_name(tarfile.GNUTYPE_LONGNAME), "archive_member"),
        "long pax": (long_name(tarfile.XHDTYPE), "archive_member"),
    }
    (tmp_path / "secret").write_text("secret")
    good = io.BytesIO()
    with tarfile.open(fileobj=good, mode="w") as tar:
        tar.add(toy.corpus, "es")
    for name, (first, reason) in hostile.items():
        path = tmp_path / "in" / f"{name}.tar"
        path.parent.mkdir(exist_ok=True)
        head = first if isinstance(first, bytes) else first.tobuf(tarfile.GNU_FORMAT)
        path.write_bytes(head + good.getvalue())
        before = hashes(tmp_path)
        answer = command(capsys, "data", "check", path, "--cache", tmp_path / "cache")
        assert (answer.code, answer.reason) == (7, reason), (name, answer.err)
        assert "\x1b" not in answer.err
        assert hashes(tmp_path) == before
        path.unlink()
    path = tmp_path / "good.tar"
    path.write_bytes(good.getvalue())
    assert command(capsys, "data", "check", path, "--cache", tmp_path / "cache").code == 0


def test_x07_a_bundle_is_a_folder_of_known_files(toy: Toy, tmp_path: Path, capsys: Capture) -> None:
    """Archives are never unpacked, names are fixed, links are refused; what else lies there is not looked at."""
    clip = toy.corpus / "clips" / "common_voice_es_0.wav"
    changes: dict[str, Callable[[Path], None]] = {
        "parent": edit(lambda c: c["files"].update({"../secret": "0" * 64})),
        "absolute": edit(lambda c: c["files"].update({"/etc/passwd": "0" * 64})),
        "python": edit(lambda c: c["files"].update({"model.py": "0" * 64})),
        "link": lambda folder: ((folder / "model.safetensors").rename(folder / "w"),
                                (folder / "model.safetensors").symlink_to(folder / "w"))[0],
        "linked tokens": lambda folder: ((folder / "tokens.txt").unlink(),
                                         (folder / "tokens.txt").symlink_to("/etc/passwd"))[0],
        "pipe": lambda folder: ((folder / "tokens.txt").unlink(), os.mkfifo(folder / "tokens.txt"))[0],
    }  # fmt: skip
    for name, change in changes.items():
        bundle = copy_of(toy.model, tmp_path / name)
        change(bundle)
        answer = command(capsys, "transcribe", "--model", bundle, clip)
        assert (answer.code, answer.reason) == (7, "bundle_file"), (name, answer.err)
    packed = tmp_path / "model.zip"
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("../evil", "x")
    answer = command(capsys, "transcribe", "--model", packed, clip)
    assert (answer.code, answer.reason) == (5, "not_a_bundle"), answer.err
    assert not (tmp_path / "evil").exists()
    transcribes(toy, capsys)


def plant(folder: Path, marker: Path) -> None:
    """Put `planted` into a folder, beside what it holds."""
    for name, data in planted(marker).items():
        if not (folder / name).exists():
            (folder / name).write_bytes(data)


def planted(marker: Path) -> dict[str, bytes]:
    """Files that a careless loader, an import from their folder, or SpeechBrain's loader would run."""
    code, yaml = f"open({str(marker)!r}, 'w')\n", f"a: !apply:os.system [touch {marker}]\n"
    modules = ("custom", "model", "hubconf", "sitecustomize", "conftest", "torch", "numpy", "soundfile", "asrkit_norms",
               "setup", "__init__")  # fmt: skip
    settings = ("hyperparams", "recipe", "resolved", "config", "CKPT")
    found = {f"{name}.py": code.encode() for name in modules} | {f"{name}.yaml": yaml.encode() for name in settings}
    pickled = ("model.pt", "model.ckpt", "tokenizer.pkl", "alphabet.pickle", "optimizer.pt")
    return found | dict.fromkeys(pickled, pickles(marker)["pickle"])


def test_x08_a_model_folder_runs_nothing(
    toy: Toy, tmp_path: Path, marker: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code beside the model, in it and in the current folder; an encoder that is not installed names its package."""
    text = transcribes(toy, capsys)
    bundle = copy_of(toy.model, tmp_path / "bundle")
    plant(bundle, marker)
    monkeypatch.chdir(bundle)
    clip = toy.corpus / "clips" / "common_voice_es_0.wav"
    before = hashes(bundle)
    answer = command(capsys, "transcribe", "--model", ".", clip)
    assert (answer.code, answer.out) == (0, text), answer.err
    assert hashes(bundle) == before
    for name, package in (("custom", "custom"), ("custom:Encoder", "x"), ("os.system", "x"), ("../custom", "x")):
        edit(lambda c, n=name, p=package: c["encoder"].update(name=n, package=p))(bundle)
        answer = command(capsys, "transcribe", "--model", bundle, clip)
        assert (answer.code, answer.reason) == (7, "missing_plugin"), answer.err
        assert f"pip install {package}" in answer.err
    assert not [name for name in ("custom", "hubconf") if name in sys.modules]
    transcribes(toy, capsys)


PLUGIN = """
import asrkit, pathlib
pathlib.Path(r"RAN").touch()
@asrkit.register_encoder("from_x09")
class Encoder(asrkit.StackEncoder):
    pass
"""


def test_x09_plugins_are_code_and_are_asked_for(toy: Toy, tmp_path: Path, capsys: Capture) -> None:
    """A plugin runs when `--plugin` names it, never because it lies there; the record lists all with their versions."""
    ran, plugin = tmp_path / "ran", tmp_path / "mine.py"
    plugin.write_text(PLUGIN.replace("RAN", str(ran)))
    for words in (toy.words(tmp_path / "run", "--encoder=from_x09"), toy.words(tmp_path / "run", "--encoder=mine.py")):
        answer = command(capsys, *words)
        assert (answer.code, answer.reason) == (2, "unknown_encoder"), answer.err
    assert not ran.exists()
    assert not (tmp_path / "run").exists()
    try:
        answer = command(capsys, *toy.words(tmp_path / "run"), "--plugin", str(plugin))
        assert answer.code == 0, answer.err
    finally:
        registry._registered.pop(("encoders", "from_x09"), None)
    assert ran.exists()
    listed = json.loads((tmp_path / "run" / "env.json").read_text())["plugins"]
    assert any(line.startswith("encoders:sequence_batch_norm asrkit ") for line in listed)
    assert any("from_x09" in line for line in listed)
    trains(toy, capsys, tmp_path / "again")


SHELL = ("c3.wav;touch marker;.wav", "$(touch marker).wav", "`touch marker`.wav", "| touch marker.wav", "-rf.wav",
         "a&touch marker&.wav", "'; touch marker; '.wav", "--plugin=x.py", "\x1b[2Jmarker.wav")  # fmt: skip


def test_x10_names_are_no_commands(toy: Toy, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips with names that a shell, an option parser or a terminal would obey: read like any other clip."""
    corpus = copy_of(toy.corpus, tmp_path / "corpus")
    monkeypatch.chdir(tmp_path)
    table = corpus / "train.tsv"
    for place, name in enumerate(SHELL):
        text = f"abe {'iou'[place % 3]}{'abe'[place // 3]}"
        soundfile.write(corpus / "clips" / "x.wav", tones(text, 99 + place), RATE)
        (corpus / "clips" / "x.wav").rename(corpus / "clips" / name)
        table.write_text(table.read_text() + f"train9\t{name}\t\t{text}\t\t2\t0\t\t\t\t\tes\t\n")
    before = hashes(corpus)
    words = ["data", "prepare", toy.recipe, f"--data.root={corpus}", f"--data.cache={tmp_path / 'cache'}"]
    answer = command(capsys, *words, "--data.max_bad=0.0")
    assert answer.code == 0, answer.err  # none of them is left out
    monkeypatch.chdir(corpus / "clips")
    answer = command(capsys, "transcribe", "--model", toy.model, "--format", "json", "--", *SHELL)
    assert answer.code == 0, answer.err
    assert [json.loads(line)["source"] for line in answer.out.splitlines()] == list(SHELL)
    assert hashes(corpus) == before
    assert not list(tmp_path.rglob("marker"))
    trains(toy, capsys, tmp_path / "again")


@pytest.mark.parametrize("path", ["../secret.wav", "/etc/passwd", "a/../../secret.wav", "..\\secret.wav", ".", ""])
def test_x10_paths_stay_below_the_clips(toy: Toy, tmp_path: Path, path: str, capsys: Capture) -> None:
    """Rows of Common Voice and of a manifest that point elsewhere: exit 7, or no such clip; nothing is read there."""
    for kind in ("common_voice", "manifest"):
        root = copy_of(toy.corpus, tmp_path / kind)
        (root / "secret.wav").write_bytes(b"secret")
        (tmp_path / "secret.wav").write_bytes(b"secret")
        table = root / "train.tsv"
        if kind == "manifest":
            for split in ("train", "dev", "test"):
                rows = [line.split("\t") for line in (root / f"{split}.tsv").read_text().splitlines()[1:]]
                lines = [f"clips/{row[1]}\t{row[3]}\t{row[0]}" for row in rows]
                (root / f"{split}.tsv").write_text("\n".join(["path\tsentence\tspeaker", *lines]) + "\n")
            row = f"{path}\tAbe ou.\tx\n"
        else:
            row = f"train9\t{path}\t\tAbe ou.\t\t2\t0\t\t\t\t\tes\t\n"
        healthy = table.read_text()
        table.write_text(healthy + row)
        before = hashes(root)
        words = ["data", "prepare", toy.recipe, f"--data.root={root}", f"--data.cache={tmp_path / 'cache'}"]
        answer = command(capsys, *words)
        expected = {".": (3, "bad_row"), "": (3, "bad_row"), "..\\secret.wav": (3, "too_many_excluded")}
        assert (answer.code, answer.reason) == expected.get(path, (7, "path")), (kind, answer.err)
        assert hashes(root) == before
        table.write_text(healthy)
        assert command(capsys, *words).code == 0


def reason_of(data: bytes) -> str:
    """Why these bytes are not read; empty if they are."""
    try:
        read_audio(data, RATE)
    except AudioError as error:
        return error.reason
    return ""


TAG = b"ID3\3\0\0\0\0\0\12" + bytes(10)


def test_x11_codecs_that_nobody_tests_are_not_decoded() -> None:
    """All that the library could write, in every container: what is read is on the list, all else is refused."""
    wave = tones("abe", 1)
    read, refused = set(), set()
    for container in ("WAV", "WAVEX", "RF64", "AIFF", "AU", "FLAC", "OGG", "MP3", "CAF", "W64", "VOC", "NIST", "IRCAM"):
        for codec in soundfile.available_subtypes(container):
            buffer = io.BytesIO()
            try:
                soundfile.write(buffer, wave, RATE, format=container, subtype=codec)
            except (soundfile.LibsndfileError, ValueError):
                continue
            for head in (b"", TAG):  # what a tag hides
                reason = reason_of(head + buffer.getvalue())
                assert reason in ("", "codec", "not_audio"), (container, codec)
                (refused if reason else read).add((container, codec))
    assert {codec for _, codec in read} <= set(SUBTYPES)
    assert {container for container, _ in read} == {"WAV", "WAVEX", "RF64", "AIFF", "AU", "FLAC", "OGG", "MP3"}
    assert {("WAV", "MS_ADPCM"), ("WAV", "NMS_ADPCM_16"), ("WAV", "GSM610"), ("AIFF", "IMA_ADPCM")} <= refused - read


def chunks(*parts: tuple[bytes, bytes]) -> bytes:
    body = b"WAVE" + b"".join(name + struct.pack("<I", len(data)) + data for name, data in parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def form(tag: int) -> bytes:
    return struct.pack("<HHIIHH", tag, 1, RATE, RATE * 2, 2, 16)


@pytest.mark.parametrize(
    ("data", "good"),
    [
        (chunks((b"fmt ", form(1)), (b"data", bytes(200))), True),
        (chunks((b"LIST", bytes(100)), (b"fmt ", form(1)), (b"data", bytes(200))), True),
        (chunks((b"LIST", bytes(100)), (b"fmt ", form(2)), (b"data", bytes(200))), False),
        (chunks((b"fmt ", form(1)), (b"fmt ", form(0x38)), (b"data", bytes(200))), False),
        (chunks((b"fmt ", form(0xFFFE) + struct.pack("<HHI", 22, 16, 1) + struct.pack("<H", 2) + bytes(14)),
                (b"data", bytes(200))), False),
    ],
)  # fmt: skip
def test_x11_codecs_behind_other_chunks_are_found(data: bytes, good: bool) -> None:
    if good:
        assert len(read_audio(data, RATE).samples) == 100
    else:
        assert reason_of(data) == "codec"


def test_x11_many_tags_hide_no_codec(tmp_path: Path) -> None:
    """The library skips any number of tags. What is behind them is refused before the library has seen the file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, tones("abe", 1), RATE, format="WAV", subtype="GSM610")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(soundfile.SoundFile, "__init__", lambda *args, **options: pytest.fail("the library was asked"))
        for count in range(1, 12):
            data = TAG * count + buffer.getvalue()
            assert reason_of(data) == "codec", count
            (tmp_path / "clip.wav").write_bytes(data)
            with pytest.raises(AudioError, match="holds something else" if count <= 8 else "more than 8 tags"):
                read_audio(tmp_path / "clip.wav", RATE)
    buffer = io.BytesIO()
    soundfile.write(buffer, tones("abe", 1), RATE, format="MP3")
    assert reason_of(TAG * 8 + buffer.getvalue()) == ""


def test_x11_aiff_headers_where_nobody_looks() -> None:
    """The library takes a header behind the audio, the last of several, and one of a file that says it has no codec."""
    buffer = io.BytesIO()
    soundfile.write(buffer, tones("abe", 1), RATE, format="AIFF", subtype="IMA_ADPCM")
    data, parts, at = buffer.getvalue(), {}, 12
    while at < len(data):
        name, size = struct.unpack(">4sI", data[at : at + 8])
        parts[name], at = data[at + 8 : at + 8 + size], at + 8 + size + size % 2

    def form(kind: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
        body = b"".join(name + struct.pack(">I", len(part)) + part + bytes(len(part) % 2) for name, part in chunks)
        return b"FORM" + struct.pack(">I", len(body) + 4) + kind + body

    comm, ssnd = (b"COMM", parts[b"COMM"]), (b"SSND", parts[b"SSND"])
    pcm = (b"COMM", comm[1][:6] + struct.pack(">h", 16) + comm[1][8:18] + b"NONE" + bytes(2))
    plain = (b"COMM", pcm[1][:18])
    turned = form(b"AIFC", pcm, comm, ssnd).replace(b"COMM\0\0\0\x18", b"COMM\x18\0\0\0", 1)
    hidden = [form(b"AIFC", ssnd, comm), form(b"AIFF", comm, ssnd), form(b"AIFC", pcm, ssnd, comm), turned]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(soundfile.SoundFile, "__init__", lambda *args, **options: pytest.fail("the library was asked"))
        assert [reason_of(data) for data in hidden] == ["codec"] * 4
    assert [soundfile.info(io.BytesIO(data)).subtype for data in hidden[:3]] == ["IMA_ADPCM"] * 3
    good = [form(b"AIFC", pcm, ssnd), form(b"AIFC", ssnd, pcm), form(b"AIFF", plain, ssnd), form(b"AIFF", ssnd, plain)]
    assert [reason_of(data) for data in good] == [""] * 4


def test_x11_isolated_decoding_of_nothing() -> None:
    """A file without samples, or a piece beyond its end, is that, and no dead child; the next one is read."""
    file = io.BytesIO()
    soundfile.write(file, np.zeros(RATE), RATE, format="WAV")
    with isolation.isolated():
        with pytest.raises(AudioError) as error:
            read_audio(file.getvalue(), RATE, start=9.0)
        assert error.value.reason == "no_samples"
        assert len(read_audio(file.getvalue(), RATE).samples) == RATE


def test_x11_isolated_decoding(toy: Toy, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--isolate`: the same text from a child that has no secrets and no rights, and whose death is one bad file."""
    monkeypatch.setenv("ASRKIT_TEST_SECRET", "secret")
    text = transcribes(toy, capsys)
    assert transcribes(toy, capsys, "--isolate") == text
    clip = toy.corpus / "clips" / "common_voice_es_0.wav"
    clips = tmp_path / "clips"
    clips.mkdir()
    for name in ("a.wav", "c.wav"):
        (clips / name).write_bytes(clip.read_bytes())
    (clips / "b.wav").write_bytes(b"RIFF\0\0\0\0WAVE" + bytes(30))
    with isolation.isolated():
        assert np.array_equal(read_audio(clip, RATE).samples, soundfile.read(clip, dtype="float32")[0])
        child = isolation._children[os.getpid(), "soundfile"]
        assert child.process is not None
        folder = Path("/proc") / str(child.process.pid)
        if folder.is_dir():
            assert b"secret" not in (folder / "environ").read_bytes()
            limits = (folder / "limits").read_text()
            assert "Max open files            0                    0" in limits
            assert "Max file size             0                    0" in limits
        child.process.kill()
        process = child.process
        process.wait()
        child._start = lambda: process  # type: ignore[method-assign]  # it dies while it is asked
        with pytest.raises(AudioError) as error:
            read_audio(clip, RATE)
        assert error.value.reason == "decoder_died"
        del child._start  # type: ignore[method-assign]
        for changed in ({"more": None}, {"rate": "8"}, {"channels": 0}):  # replies of a child that was taken over
            reply = {"frames": 1, "channels": 1, "rate": RATE, "claimed": 1, "problem": None, "more": 0} | changed
            said = json.dumps({key: value for key, value in reply.items() if key != "more" or value is not None})
            data = isolation._HEAD.pack(len(said)) + said.encode() + bytes(4)
            script = f"import sys; sys.stdout.buffer.write({data!r}); sys.stdout.flush(); sys.stdin.read()"
            child.process = subprocess.Popen(
                [sys.executable, "-S", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            with pytest.raises(AudioError) as error:
                read_audio(clip, RATE)
            assert error.value.reason == "decoder_died"
            assert child.process is None
        assert len(read_audio(clip, RATE).samples)  # a new one is started
    before = hashes(clips)
    answer = command(capsys, "transcribe", "--model", toy.model, "--isolate", "--format", "json", clips)
    assert answer.code == 3
    assert [json.loads(line)["status"] for line in answer.out.splitlines()] == ["ok", "not_audio", "ok"]
    assert hashes(clips) == before
    assert transcribes(toy, capsys) == text


TAKEN_OVER = {  # what a child may do that nobody has to wait for
    "reads nothing": "import time; time.sleep(60)",
    "says nothing": "import sys, time; sys.stdin.read(1); time.sleep(60)",
    "half a reply": "import sys, time; sys.stdout.write('ab'); sys.stdout.flush(); time.sleep(60)",
    "a byte now and then": "import sys, time\nwhile 1: sys.stdout.write('\\1'); sys.stdout.flush(); time.sleep(0.3)",
}


@pytest.mark.parametrize("script", TAKEN_OVER.values(), ids=list(TAKEN_OVER))
def test_x11_isolated_decoding_ends_in_time(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """The limit holds for all of an answer, and where the file, longer than a pipe is, stays unread."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(200_000, np.float32), RATE, format="WAV")
    with isolation.isolated():
        child = isolation._Child("soundfile")
        monkeypatch.setitem(isolation._children, (os.getpid(), "soundfile"), child)
        monkeypatch.setattr(isolation, "SECONDS", 0.5)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        child.process = subprocess.Popen([sys.executable, "-S", "-c", script], **pipes)  # type: ignore[call-overload]
        begun = time.monotonic()
        with pytest.raises(AudioError, match="signal 9") as error:
            read_audio(buffer.getvalue(), RATE)
        assert error.value.reason == "decoder_died"
        assert 0.4 < time.monotonic() - begun < 30


def model_of(vocabulary: int, **options: Any) -> bytes:
    import sentencepiece

    texts = ["".join(LETTERS[i % 6] for i in range(k, k + 5)) + " abe iou bebe" for k in range(12)]
    model = io.BytesIO()
    settings = {"normalization_rule_name": "identity", "unk_id": 0, "bos_id": -1, "eos_id": -1, "pad_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=vocabulary, minloglevel=2,
        hard_vocab_limit=False, **{**settings, **options},
    )  # fmt: skip
    return model.getvalue()


def test_x12_sentencepiece_models_of_strangers(toy: Toy, tmp_path: Path, capsys: Capture) -> None:
    """Another size than the output layer, pieces that a terminal obeys, rules of its own, damage: refused."""
    recipe = tmp_path / "sp.yaml"
    recipe.write_text(toy.recipe.read_text() + "text: {tokenizer: sentencepiece, options: {size: 12}}\n")
    words = [str(recipe) if word == str(toy.recipe) else word for word in toy.words(tmp_path / "run")]
    answer = command(capsys, *words)
    assert answer.code == 0, answer.err
    healthy = tmp_path / "run" / "model"
    whole = (healthy / "tokenizer.model").read_bytes()
    hostile = {
        "size": (model_of(20), 7, "tensor_shapes"),
        "escape": (model_of(20, user_defined_symbols=["\x1b[2J"]), 7, "tokenizer_model"),
        "bytes": (model_of(300, byte_fallback=True, model_type="bpe"), 7, "tokenizer_model"),
        "map": (model_of(20, normalization_rule_name="nmt_nfkc"), 7, "tokenizer_model"),
        "cut": (whole[:-3], 5, "tokenizer_file"),
        "empty": (b"", 5, "tokenizer_file"),
        "page": (b"<html>" * 100, 5, "tokenizer_file"),
    }
    clip = toy.corpus / "clips" / "common_voice_es_0.wav"
    for name, (data, code, reason) in hostile.items():
        bundle = copy_of(healthy, tmp_path / name)
        replace(bundle, "tokenizer.model", data)

        def agree(config: dict[str, Any], data: bytes = data) -> None:
            config["tokenizer"]["fingerprint"] = hashlib.sha256(data).hexdigest()
            config["tokenizer"]["size"] = size_of(data, config["tokenizer"]["size"])

        edit(agree)(bundle)
        before = hashes(bundle)
        answer = command(capsys, "transcribe", "--model", bundle, clip)
        assert (answer.code, answer.reason) == (code, reason), (name, answer.err)
        assert answer.err.count("\n") == 1
        assert "\x1b" not in answer.err
        assert hashes(bundle) == before
    bundle = copy_of(healthy, tmp_path / "flipped")
    (bundle / "tokenizer.model").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert command(capsys, "transcribe", "--model", bundle, clip).reason == "hash"
    assert command(capsys, "transcribe", "--model", healthy, clip).code == 0


def size_of(data: bytes, otherwise: int) -> int:
    try:
        return SentencePieceTokenizer(data).size
    except Exception:
        return otherwise
