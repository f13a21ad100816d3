"""A bundle at work for somebody else: another folder, read-only, another user, another environment, no home."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
from toy import RATE, make_corpus, tones, toy_recipe

import asrkit
from asrkit.experiment import train

ROOT = Path(__file__).resolve().parents[1]
NOBODY = 65534
OTHER: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": [], "capture_output": True, "text": True}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    quiet = [(f"training.{key}", 25) for key in ("epochs", "evaluate_every", "checkpoint_every")]
    return train(toy_recipe(folder, make_corpus(folder / "cv"), *quiet), "", folder / "run", say=lambda _: None).bundle


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder that every user can reach, unlike those of pytest."""
    folder = Path(tempfile.mkdtemp(prefix="asrkit travels ñ "))
    folder.chmod(0o755)
    yield folder
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | stat.S_IWUSR)
    shutil.rmtree(folder)


def open_to_all(path: Path) -> bool:
    """Whether every user can read this, and enter all folders above it."""
    return all(p.stat().st_mode & (stat.S_IXOTH if p.is_dir() else stat.S_IROTH) for p in (path, *path.parents))


def python_of_all() -> Path:
    """A Python of this version that every user can start."""
    name = "python{}.{}".format(*sys.version_info[:2])
    found = [sys.executable, *(str(Path(folder) / name) for folder in ("/usr/local/bin", "/usr/bin"))]
    for path in (Path(candidate).resolve() for candidate in found):
        if path.exists() and open_to_all(path):
            return path
    pytest.skip(f"no {name} that another user may start")


def fresh_environment(folder: Path) -> Path:
    """The Python of a new environment that sees the packages of this one."""
    subprocess.run([python_of_all(), "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    packages = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    if not all(open_to_all(Path(path)) for path in (*packages, ROOT / "asrkit")):
        pytest.skip("the packages of this environment are closed to other users")
    lines = [f"import site; site.addsitedir({path!r})\n" for path in packages]
    (Path(site) / "those_of_the_tests.pth").write_text("".join(lines), encoding="utf-8")
    return python


def copy_for_others(bundle: Path, folder: Path) -> Path:
    """The bundle, readable and not writable, in a folder that is not writable either."""
    target = Path(shutil.copytree(bundle, folder / "their models" / "m"))
    for path in (*target.iterdir(), target, target.parent):
        path.chmod(0o555 if path.is_dir() else 0o444)
    return target


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
def test_another_user_in_a_fresh_environment_reads_the_same(bundle: Path, elsewhere: Path) -> None:
    clip = elsewhere / "clip.wav"
    soundfile.write(clip, tones("abe iou bebe", 3), RATE)
    clip.chmod(0o444)
    expected = asrkit.load(bundle).transcribe(clip)
    assert expected.text
    model = copy_for_others(bundle, elsewhere)
    command = ["-m", "asrkit", "transcribe", "--model", str(model), "--format", "json", str(clip)]
    environment = {"HOME": "/nonexistent", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "LANG": "C"}
    python = fresh_environment(elsewhere / "environment")
    done = subprocess.run([python, *command], cwd="/", env=environment, check=False, **OTHER)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["text"] == expected.text
    assert [(w["word"], w["start"], w["end"]) for w in found["words"]] == [
        (w.word, w.start, w.end) for w in expected.words
    ]
    ask = f"import os; print(os.getuid(), os.access({str(model)!r}, os.W_OK))"
    said = subprocess.run([python, "-c", ask], check=True, **OTHER)
    assert said.stdout.split() == [str(NOBODY), "False"]  # it was another user, who could not have written there


def test_nothing_of_the_old_place_is_in_a_bundle(bundle: Path) -> None:
    """Neither its folder nor that of the data, the user or the machine."""
    secrets = [str(bundle.parent.parent), str(Path.home()), os.uname().nodename]
    for path in bundle.iterdir():
        data = path.read_bytes()
        assert not [secret for secret in secrets if len(secret) > 3 and secret.encode() in data], path.name
