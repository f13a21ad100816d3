"""What SpeechBrain and asrkit do with the same hostile files: rows X of docs/reliability.md, measured side by side.

    python benchmarks/hostile_peer.py     # about a minute; payloads only touch a marker file in a temporary folder

Every case runs in a process of its own, forked from one that has imported everything, for ten seconds at most.
"ran" means that the payload's marker was there afterwards.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import resource
import signal
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

LIMIT = 10  # seconds
MEMORY = 8 << 30
Case = Callable[[Path, Path], Any]  # (empty folder, marker) -> whatever


class Payload:
    """Touches the marker when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


VECTORS = {
    "!apply:os.system": "a: !apply:os.system [touch MARKER]\n",
    "!new:subprocess.Popen": "a: !new:subprocess.Popen [[touch, MARKER]]\n",
    "!!python/object/apply": "a: !!python/object/apply:os.system [touch MARKER]\n",
    "tuple text": "a: (!!python/object/apply:os.system ['touch MARKER'] , 1)\n",
    "a name below speechbrain": "a: !apply:speechbrain.utils.checkpoints.os.system [touch MARKER]\n",
    "alias bomb": "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else 'x'] * 9)}]\n" for i in range(9)),
    "power": "a: 9\nb: !ref <a> ** 9 ** 9\n",
}


def recipe_of(text: str) -> tuple[Case, Case]:
    """The recipe read by both."""

    def theirs(folder: Path, marker: Path) -> None:
        from hyperpyyaml import load_hyperpyyaml

        load_hyperpyyaml(text.replace("MARKER", str(marker)))

    def ours(folder: Path, marker: Path) -> None:
        from asrkit.recipe import load_recipe

        (folder / "recipe.yaml").write_text(text.replace("MARKER", str(marker)))
        load_recipe(folder / "recipe.yaml")

    return theirs, ours


def option_theirs(folder: Path, marker: Path) -> None:
    from hyperpyyaml import load_hyperpyyaml

    load_hyperpyyaml("a: 1\n", overrides=f"a: !apply:os.system [touch {marker}]")


def option_ours(folder: Path, marker: Path) -> None:
    from asrkit.recipe import load_recipe

    (folder / "recipe.yaml").write_text("a: 1\n")
    load_recipe(folder / "recipe.yaml", [("a", f"!apply:os.system [touch {marker}]")])


def model_folder(folder: Path, marker: Path) -> None:
    """What a stranger's model may hold, under the names that both loaders look for."""
    (folder / "hyperparams.yaml").write_text(f"a: !apply:os.system [touch {marker}]\n")
    (folder / "custom.py").write_text(f"open({str(marker)!r}, 'w')\n")
    (folder / "config.json").write_text(json.dumps({"format": 1, "encoder": {"name": "custom.py"}}))


def folder_theirs(folder: Path, marker: Path) -> None:
    from speechbrain.inference.ASR import EncoderASR

    model_folder(folder, marker)
    EncoderASR.from_hparams(source=str(folder), savedir=str(folder / "saved"))


def foreign_theirs(folder: Path, marker: Path) -> None:
    from speechbrain.inference.interfaces import foreign_class

    model_folder(folder, marker)
    (folder / "hyperparams.yaml").write_text("a: 1\n")
    foreign_class(source=str(folder), pymodule_file="custom.py", classname="Model", savedir=str(folder / "saved"))


def folder_ours(folder: Path, marker: Path) -> None:
    import asrkit

    model_folder(folder, marker)
    asrkit.load(folder)


def checkpoint_yaml_theirs(folder: Path, marker: Path) -> None:
    from speechbrain.utils.checkpoints import Checkpointer

    place = folder / "CKPT+x"
    place.mkdir()
    (place / "CKPT.yaml").write_text(f"a: !!python/object/apply:os.system [touch {marker}]\n")
    Checkpointer(folder).list_checkpoints()


def manifest_ours(folder: Path, marker: Path) -> None:
    from asrkit.checkpoints import Checkpoints

    place = folder / "step-00000001"
    place.mkdir()
    for name in ("MANIFEST.json", "state.json"):
        (place / name).write_text(f"a: !!python/object/apply:os.system [touch {marker}]\n")
    if Checkpoints(folder).latest() is None:
        raise ValueError("set aside as damaged")


def pickle_theirs(folder: Path, marker: Path) -> None:
    import torch
    from speechbrain.utils.checkpoints import torch_recovery

    (folder / "model.ckpt").write_bytes(pickle.dumps(Payload(marker)))
    torch_recovery(torch.nn.Linear(1, 1), folder / "model.ckpt", end_of_epoch=True)


def pickle_guard_off_theirs(folder: Path, marker: Path) -> None:
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    pickle_theirs(folder, marker)


def pickle_ours(folder: Path, marker: Path) -> None:
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    from asrkit.bundle.checks import read_header

    (folder / "model.safetensors").write_bytes(pickle.dumps(Payload(marker)))
    read_header(folder / "model.safetensors")


def evil_tar(folder: Path, marker: Path) -> Path:
    path = folder / "release.tar.gz"
    (folder / "out").mkdir()
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo(os.path.relpath(marker, folder / "out"))
        tar.addfile(info, io.BytesIO())
    return path


def tar_theirs(folder: Path, marker: Path) -> None:
    from speechbrain.utils.data_utils import download_file

    path = evil_tar(folder, marker)
    download_file(str(path), str(folder / "copy.tar.gz"), unpack=True, dest_unpack=str(folder / "out"))


def tar_ours(folder: Path, marker: Path) -> None:
    from asrkit.corpus.archive import Archive

    Archive(evil_tar(folder, marker), folder / "out").read("train")


def row_of(name: str) -> str:
    """The row of the reliability table."""
    return "X02" if "below" in name else "X03" if name in ("alias bomb", "power") else "X01"


CASES: list[tuple[str, str, Case, Case]] = [
    *((row_of(name), f"recipe: {name}", *recipe_of(text)) for name, text in VECTORS.items()),
    ("X01", "option: --a='!apply:...'", option_theirs, option_ours),
    ("X04", "pickle as weights", pickle_theirs, pickle_ours),
    ("X04", "the same, torch's guard switched off", pickle_guard_off_theirs, pickle_ours),
    ("X04", "checkpoint's metadata with a tag", checkpoint_yaml_theirs, manifest_ours),
    ("X07", "archive with ../", tar_theirs, tar_ours),
    ("X08", "model folder (from_hparams)", folder_theirs, folder_ours),
    ("X08", "model folder (foreign_class)", foreign_theirs, folder_ours),
]


def attempt(case: Case) -> str:
    """What happened, in a word: ran, refused (with the error's name), accepted, or no end."""
    with tempfile.TemporaryDirectory() as name:
        folder, marker = Path(name) / "in" / "deep", Path(name) / "marker"
        folder.mkdir(parents=True)
        reader, writer = os.pipe()
        begin = time.perf_counter()
        child = os.fork()
        if child == 0:
            _child(case, folder, marker, writer)
        os.close(writer)
        with os.fdopen(reader) as stream:
            said = stream.read()
        os.waitpid(child, 0)
        seconds = time.perf_counter() - begin
        time.sleep(0.2)  # a payload in a process of its own
        what = "the payload RAN" if marker.exists() else said or f"no end in {LIMIT} s"
        return f"{what} ({seconds * 1000:.0f} ms)" if said or marker.exists() else what


def _child(case: Case, folder: Path, marker: Path, writer: int) -> None:
    signal.alarm(LIMIT)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    said = "accepted"
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            case(folder, marker)
    except BaseException as error:
        reason = getattr(error, "reason", "")
        said = f"refused: {type(error).__name__}{f'[{reason}]' if reason else ''}"
    os.write(writer, said.encode())
    os._exit(0)


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    import speechbrain
    import speechbrain.inference.ASR
    import speechbrain.utils.data_utils

    import asrkit.transcribe

    assert asrkit.transcribe
    print(f"SpeechBrain {speechbrain.__version__}, Python {sys.version.split()[0]}\n")
    print("| row | fault | SpeechBrain | asrkit |\n|---|---|---|---|")
    for row, what, theirs, ours in CASES:
        print(f"| {row} | {what} | {attempt(theirs)} | {attempt(ours)} |", flush=True)


if __name__ == "__main__":
    main()
