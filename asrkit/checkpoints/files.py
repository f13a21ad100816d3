"""One checkpoint as files: tensors in safetensors, everything else in JSON, no pickle, hashes of all in a manifest."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from asrkit.errors import NumericError, StorageError

FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
MANIFEST = "MANIFEST.json"
_STEP = re.compile(r"step-(\d{8,})")


class Damaged(Exception):
    """Why one checkpoint cannot be used."""


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint on disk."""

    path: Path
    step: int
    state: dict[str, Any]

    def model(self) -> dict[str, Tensor]:
        """The model's tensors, on the CPU; hashes are checked on the very bytes that are used. Raises StorageError."""
        return self._tensors("model.safetensors")

    def optimizer(self) -> dict[str, Tensor]:
        """The optimizer's tensors, see `optimizer_from_tensors`. Raises StorageError."""
        return self._tensors("optimizer.safetensors")

    def _tensors(self, name: str) -> dict[str, Tensor]:
        try:
            return safetensors.torch.load(_read_checked(self.path, name, _manifest(self.path)))
        except (Damaged, safetensors.SafetensorError) as error:
            raise StorageError(f"{self.path}: {error}", fix="use another checkpoint", reason="damaged") from error


def steps_in(folder: Path) -> list[tuple[int, Path]]:
    """Steps and folders of all checkpoints in a folder, newest first, whatever the clock says."""
    found = [(_STEP.fullmatch(path.name), path) for path in folder.iterdir()]
    return sorted(((int(match[1]), path) for match, path in found if match and path.is_dir()), reverse=True)


def open_checkpoint(path: Path, step: int, *, verify: bool) -> Checkpoint:
    """The checkpoint in `path`, of update `step`; its state is always checked, with `verify` its tensors too.

    Raises Damaged where something is missing or is not what was written.
    """
    manifest = _manifest(path)
    if manifest["step"] != step:
        raise Damaged(f"{MANIFEST} is of step {manifest['step']}")
    if verify:
        for name in FILES[:-1]:
            _read_checked(path, name, manifest)
    try:
        state = json.loads(_read_checked(path, "state.json", manifest))
    except (ValueError, RecursionError) as error:
        raise Damaged(f"state.json is not JSON ({error})") from error
    if not isinstance(state, dict):
        raise Damaged("state.json holds no state")
    return Checkpoint(path, step, state)


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        files = manifest["files"]
        if isinstance(files, dict) and set(files) >= set(FILES) and isinstance(manifest["step"], int):
            return manifest
    except OSError as error:
        raise Damaged(f"{MANIFEST}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Damaged(f"{MANIFEST} is not what was written") from error
    raise Damaged(f"{MANIFEST} does not name all files")


def _read_checked(path: Path, name: str, manifest: Mapping[str, Any]) -> bytes:
    try:
        data = (path / name).read_bytes()
    except OSError as error:
        raise Damaged(f"{name}: {error.strerror}") from error
    if manifest["files"][name] != {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}:
        raise Damaged(f"{name} is not what was written: size or sha256 differs")
    return data


def refuse_non_finite(part: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise NumericError (`non_finite_checkpoint`) for NaN or infinity; part: model or optimizer, for the words."""
    for name, tensor in tensors.items():
        if (tensor.is_floating_point() or tensor.is_complex()) and not bool(torch.isfinite(tensor).all()):
            wrong = int((~torch.isfinite(tensor)).sum())
            raise NumericError(
                f"{part} tensor {name!r} holds NaN or infinity in {wrong} of {tensor.numel()} values; not saved",
                fix="go on from the last checkpoint with a smaller learning rate",
                reason="non_finite_checkpoint",
            )


def tensors_to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors of any device as a safetensors file."""
    return safetensors.torch.save({k: t.detach().to("cpu", copy=True).contiguous() for k, t in tensors.items()})


def state_to_bytes(state: Mapping[str, Any]) -> bytes:
    """Plain data, numbers of NumPy and torch among them, as JSON. Raises StorageError (`state`) for anything else."""

    def plain(value: Any) -> Any:
        if hasattr(value, "item") and getattr(value, "size", None) is not None:
            return value.item()  # a number of NumPy or torch
        raise TypeError(f"a {type(value).__name__} is not JSON data")

    try:
        return json.dumps(state, ensure_ascii=False, default=plain).encode()
    except (TypeError, ValueError, RuntimeError) as error:
        raise StorageError(f"the state cannot be saved ({error})", fix="give plain data", reason="state") from error
