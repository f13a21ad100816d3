"""Run folders: one owner at a time, one recipe for good, and logs that survive a crash."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import platform
import re
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from asrkit.disk import atomic_write, storage_error, write_synced
from asrkit.errors import InUseError, RecipeError, StorageError
from asrkit.recipe import differences, dump_recipe, load_recipe
from asrkit.registry import list_plugins

__all__ = ["MetricsLog", "RunFolder", "atomic_write", "environment"]

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[^\W_][\w.+-]*")
_held: set[int] = set()  # descriptors of locks; a forked data worker must not keep its dead parent's lock alive


def _close_in_child() -> None:
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


# --- the run folder


class RunFolder:
    """`runs/<name>/<encoder>/seed<k>/` with recipe.yaml, resolved.yaml, env.json, metrics.jsonl, checkpoints/, model/.

    Creating one makes the folder and proves, before any work, that it can be written to.

    Raises:
        StorageError: the path is a file, read-only, or cannot be made (exit 5).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        probe = self.path / f".tmp-{os.getpid()}-probe"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(probe)
            write_synced(probe, b"asrkit")
            os.unlink(probe)
        except OSError as error:
            raise StorageError(
                f"the run folder {self.path} cannot be used ({error.strerror or error})",
                fix="give another folder with --output",
                reason="run_folder",
            ) from error

    @classmethod
    def of(cls, output: str | Path, name: str, encoder: str, seed: int) -> RunFolder:
        """The folder of one run below `output`; RecipeError for names that are not plain folder names."""
        for what, value in (("name", name), ("encoder", encoder)):
            if not isinstance(value, str) or not _NAME.fullmatch(value):
                fix = "use letters, digits and . _ + -, beginning with a letter or digit"
                raise RecipeError(f"{what} {value!r} cannot name a folder", fix=fix, reason="folder_name")
        return cls(Path(output) / name / encoder / f"seed{int(seed)}")

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process. The kernel frees the lock of a process that died, however it died.

        Raises:
            InUseError: another process holds it (exit 6); names its pid, host and start.
        """
        path = self.path / "run.lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise storage_error(error, path) from error
        owner = os.getpid()
        _held.add(descriptor)
        try:
            self._acquire(descriptor, path)
            try:
                yield
            finally:
                if os.getpid() == owner:
                    with contextlib.suppress(OSError):  # a full disk must not hide what happened inside
                        os.ftruncate(descriptor, 0)
                    # Not by closing alone: a child forked this very moment still has its copy.
                    fcntl.flock(descriptor, fcntl.LOCK_UN)
        finally:
            if os.getpid() == owner:  # in a forked child the number may be another file's by now
                _held.discard(descriptor)
                os.close(descriptor)

    def _acquire(self, descriptor: int, path: Path) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            try:
                owner = json.loads(os.pread(descriptor, 4096, 0))
                who = f"process {owner['pid']} on {owner['host']} since {owner['start']}"
            except (ValueError, TypeError, KeyError):
                who = "another process, just starting or ending"
            fix = "wait for it, stop it, or give another folder with --output"
            raise InUseError(f"{self.path} is in use by {who}", fix=fix, reason="in_use") from error
        except OSError as error:
            fix = "put the run folder on a disk that supports flock"
            raise StorageError(f"{path}: cannot be locked ({error.strerror})", fix=fix, reason="no_lock") from error
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "start": time.strftime("%Y-%m-%d %H:%M:%S")}
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(owner).encode(), 0)
        except OSError as error:
            raise storage_error(error, path) from error

    def claim(
        self,
        recipe: Mapping[str, Any],
        *,
        source: str = "",
        neutral: Collection[str] = (),
        constants: Collection[str] = (),
    ) -> list[str]:
        """Bind the folder to a resolved recipe on first use; afterwards only the same recipe may use it.

        Args:
            recipe: the resolved recipe (plain data).
            source: the text of the recipe file, saved as recipe.yaml.
            neutral: dotted paths of keys (with all below them) that may differ, such as `training.epochs`.
            constants: top-level keys that only references named. What they did is in the resolved recipe, which would
                be no recipe with a key that nothing uses: they are neither saved in it nor compared.

        Returns:
            The neutral differences to the first use, "training.epochs: 10 -> 20"; they are logged too.

        Raises:
            RecipeError: a key that is not neutral differs (exit 2); lists every one.
            StorageError: the files cannot be read or written (exit 5).
        """
        resolved = self.path / "resolved.yaml"
        recipe = {key: value for key, value in recipe.items() if key not in constants}
        if not resolved.exists():  # written last, so that it stands for all three
            text = dump_recipe(recipe)
            atomic_write(self.path / "recipe.yaml", source or text)
            atomic_write(self.path / "env.json", json.dumps(environment(), indent=2, ensure_ascii=False) + "\n")
            atomic_write(resolved, text)
            return []
        try:
            earlier = {key: value for key, value in load_recipe(resolved).items() if key not in constants}
        except RecipeError as error:
            raise StorageError(
                f"{resolved} is damaged ({error})", fix="give another --output", reason="damaged"
            ) from error
        lines = {path: f"{path}: {before} -> {after}" for path, before, after in differences(earlier, recipe)}
        identity = [line for path, line in lines.items() if not _is_neutral(path, neutral)]
        if identity:
            raise RecipeError(
                f"{self.path} was made with another recipe: {'; '.join(identity)}",
                fix="give another folder with --output, or take these back",
                reason="other_recipe",
            )
        for line in lines.values():
            logger.info("goes on with another setting: %s", line)
        return list(lines.values())


def _is_neutral(path: str, neutral: Collection[str]) -> bool:
    return any(path == key or path.startswith(f"{key}.") for key in neutral)


# --- logs


class MetricsLog:
    """Appends one JSON object per line, flushed at once, all digits.

    JSON has no NaN: a non-finite number is written as null, and its path and kind are added to the record
    (`{"loss": null, "_not_finite": [["loss", "nan"]]}`); `read` puts it back.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        _, torn = _split(self.path)
        if torn:  # or the next line would be glued to it
            logger.warning("%s: removed a last line that was cut off by a crash (%d bytes)", self.path, torn)
            self._rewrite(lambda record: True)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one record; numbers of NumPy and torch become plain ones. Raises StorageError."""
        not_finite: list[list[str]] = []
        data = _finite(record, (), not_finite)
        if not_finite:
            data["_not_finite"] = not_finite
        line = json.dumps(data, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        try:
            with self.path.open("ab", buffering=0) as file:
                file.write(line)
        except OSError as error:
            raise storage_error(error, self.path, len(line)) from error

    def truncate_after(self, step: int) -> None:
        """Drop records of later steps than `step`, and a torn last line: what a resumed run will write again."""
        self._rewrite(lambda record: record.get("step", -math.inf) <= step)

    def drop(self, unwanted: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the records for which `unwanted` is true."""
        self._rewrite(lambda record: not unwanted(record))

    def _rewrite(self, keep: Any) -> None:
        lines, torn = _split(self.path)
        kept = [line for line in lines if keep(json.loads(line))]
        if torn or len(kept) < len(lines):
            atomic_write(self.path, b"".join(line + b"\n" for line in kept))

    @staticmethod
    def read(path: str | Path, damage: list[StorageError] | None = None) -> list[dict[str, Any]]:
        """All records; a torn last line is skipped, damage elsewhere is a StorageError that names the line.

        damage: where it is put instead, and the lines that are whole are read all the same.
        """
        return [_with_not_finite(json.loads(line)) for line in _split(Path(path), damage)[0]]


def _split(path: Path, damage: list[StorageError] | None = None) -> tuple[list[bytes], int]:
    """Complete lines of a log, and the size of what follows the last of them."""
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise storage_error(error, path) from error
    *lines, rest = data.split(b"\n")
    torn, broken = len(rest), set[int]()
    for number, line in enumerate(lines, 1):
        try:
            whole = isinstance(json.loads(line), dict)
        except ValueError:
            whole = False
        if not whole and number == len(lines) and not rest:  # zeros or half a block at the end, after a power loss
            return lines[:-1], len(line) + 1
        if not whole:
            found = StorageError(f"{path} line {number} is damaged", fix="repair or remove that line", reason="damaged")
            if damage is None:
                raise found
            damage.append(found)
            broken.add(number)
    return [line for number, line in enumerate(lines, 1) if number not in broken], torn


def _finite(value: Any, at: tuple[str, ...], not_finite: list[list[str]]) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(child, (*at, str(key)), not_finite) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(child, (*at, str(index)), not_finite) for index, child in enumerate(value)]
    if not isinstance(value, str | int | float | None) and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        not_finite.append([*at, repr(float(value))])
        return None
    return value


def _with_not_finite(record: dict[str, Any]) -> dict[str, Any]:
    for *parents, last, text in record.pop("_not_finite", []):
        place: Any = record
        for key in parents:
            place = place[int(key)] if isinstance(place, list) else place[key]
        place[int(last) if isinstance(place, list) else last] = float(text)
    return record


def started_in(run: Path) -> Path | None:
    """The folder that relative paths of a run's recipe are relative to; None where the run has not kept it."""
    try:
        found = json.loads((run / "env.json").read_text(encoding="utf-8"))
        return Path(found["working_directory"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def environment() -> dict[str, Any]:
    """What a run ran on: versions, plugins, machine. torchaudio's version is read, the library is not imported."""
    import torch

    import asrkit

    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    packages = ("torchaudio", "speechbrain", "hyperpyyaml", "safetensors", "sentencepiece", "datasets", "numpy")
    cuda = torch.cuda.is_available()
    return {
        "asrkit": asrkit.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{package: installed(package) for package in packages},
        "plugins": [f"{p.kind}:{p.name} {p.package} {p.version}" for p in list_plugins()],
        "platform": "-".join((platform.system(), platform.release(), platform.machine())),  # platform() starts `uname`
        "cpus": os.cpu_count(),
        "cuda": torch.cuda.get_device_name() if cuda else None,
        "threads": torch.get_num_threads(),
        "command": sys.argv,
        "working_directory": os.getcwd(),
    }
