"""A trained model as data: config.json, model.safetensors, the tokenizer's file, README.md. Loading runs no code of it.

The encoder is found by name among installed plugins; nothing is imported by path, unpickled or executed. Sizes, names,
shapes, types, hashes and finiteness of all tensors are checked before the first is used (asrkit.bundle.checks), and a
short known input must give the numbers that it gave when the bundle was written.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from asrkit import __version__, registry
from asrkit.bundle.card import model_card
from asrkit.bundle.checks import (
    Foreign,
    check_architecture,
    check_config,
    missing_plugin,
    not_a_model,
    read_header,
    read_json,
    shown,
)
from asrkit.defects import defects_of, forget, warn
from asrkit.errors import AsrkitError, RecipeError, StorageError, TrustError
from asrkit.model import CTCModel, build_model, parameter_count
from asrkit.runs import atomic_write

FORMAT = 1
MAX_CONFIG = 1 << 20  # bytes
MAX_TOKENIZER = 1 << 24
INSTALLATION = ("plugin_api", "duplicate_plugin")  # errors of what is installed here, not of the model
PARTS = ("data", "text", "features", "cmvn", "norm", "layers", "decoder")  # of the recipe: what a model needs to run


@dataclass(frozen=True)
class Bundle:
    """A loaded model with everything that turns audio into text."""

    model: CTCModel
    tokenizer: Any
    config: dict[str, Any]
    path: Path


def save_bundle(folder: Path, model: CTCModel, tokenizer: Any, recipe: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write the bundle and its model card. `facts`: sizes, hashes and scores of splits, exclusions, metrics (JSON
    data)."""
    model.eval()
    model.acoustic.objective = None  # of training only
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.acoustic.state_dict().items()}
    files = {"model.safetensors": save_tensors(tensors), **tokenizer.files()}
    plugin = registry.describe("encoders", recipe["encoder"])
    sections: dict[str, Any] = {part: recipe[part] for part in PARTS if part in recipe}
    if prior := (recipe.get("ctc") or {}).get("decode_prior"):
        sections["ctc"] = {"decode_prior": prior}
    if defects_of(recipe):
        sections["defects"] = list(defects_of(recipe))
    sections["data"] = {"sample_rate": recipe["data"]["sample_rate"]}
    config = {
        "format": FORMAT,
        "asrkit": __version__,
        "name": recipe["name"],
        "encoder": {"name": plugin.name, "package": plugin.package, "version": plugin.version, "api": registry.API},
        "recipe": sections,
        "seed": recipe["seed"],
        "labels": tokenizer.size,
        "tokenizer": tokenizer.to_config(),
        "parameters": parameter_count(model.acoustic),
        "frame_seconds": model.frame_seconds,
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        "self_check": self_check(model),
        **facts,
    }
    if scores := _scores_so_far(folder, config["files"]) | facts.get("scores", {}):
        config["scores"] = scores
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        atomic_write(folder / name, data)
    atomic_write(folder / "README.md", model_card(config))
    atomic_write(folder / "config.json", json.dumps(config, indent=1, ensure_ascii=False) + "\n")


def _scores_so_far(folder: Path, files: dict[str, str]) -> dict[str, Any]:
    """What `asrkit evaluate` has put into a bundle of the same files: a finished run that is started again keeps it."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return dict(config["scores"]) if config["files"] == files else {}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def load_bundle(folder: str | Path, device: str = "cpu") -> Bundle:
    """Read a bundle; TrustError (exit 7) for anything that is not what its config and its architecture say.

    Nothing is allocated before the header of the tensor file, the architecture and the real size of the file agree.
    Raises StorageError (exit 5) for a damaged copy, RecipeError (exit 2) for a device that this machine has not.
    """
    path = Path(folder)
    config = _read_config(path)
    try:
        model, tokenizer = _build(path, config)
    except RecipeError as error:
        if error.reason in INSTALLATION:
            raise
        raise not_a_model(path, error) from error  # no recipe of the reader's
    except AsrkitError:
        raise
    except Exception as error:  # whatever a foreign config can make torch, a plugin or Python say
        raise not_a_model(path, error) from error
    _move(model.eval(), device)
    warn(defects_of(config["recipe"]), path)
    try:
        _verify_self_check(model, config["self_check"], path)
    except AsrkitError:
        raise
    except Exception as error:  # layers that fit their tensors and still cannot run
        raise not_a_model(path, error) from error
    return Bundle(model, tokenizer, config, path)


def _build(path: Path, config: dict[str, Any]) -> tuple[CTCModel, Any]:
    check_config(config)
    encoder = config["encoder"]
    try:
        registry.describe("encoders", encoder["name"])
    except RecipeError as error:
        if error.reason != "unknown_encoder":
            raise
        raise missing_plugin(path, encoder) from error
    files = {name: _find_file(path, name) for name in config["files"]}
    header = read_header(files["model.safetensors"])
    contents = {
        name: _read_file(file, config["files"][name]) for name, file in files.items() if name != "model.safetensors"
    }
    tokenizer = registry.load("tokenizers", config["tokenizer"]["name"]).from_files(config["tokenizer"], contents)
    recipe = {**config["recipe"], "encoder": encoder["name"], "seed": config["seed"], "spec_augment": None}
    check_architecture(recipe, tokenizer.size, header, path)
    data = _read_file(files["model.safetensors"], config["files"]["model.safetensors"])
    model = build_model(recipe, tokenizer.size)
    model.acoustic.objective = None  # of training only
    _fill(model.acoustic, data, path)
    return model, tokenizer


def _move(model: CTCModel, device: str) -> None:
    try:
        model.to(device)
    except (RuntimeError, AssertionError, ValueError) as error:
        why = str(error).splitlines()[0]
        why = "no such device" if why.startswith("Expected one of") else why  # then torch lists two dozen
        raise RecipeError(f"device {device!r}: {why}", possible="cpu, cuda, cuda:1, auto", reason="device") from error


def self_check(model: CTCModel) -> dict[str, Any]:
    """A chirp of one second through the model: best label of every frame, and mean log-probability, to compare after
    loading."""
    rate = model.features.sample_rate
    time = torch.arange(rate, dtype=torch.float64) / rate
    wave = (0.3 * torch.sin(2 * math.pi * (200 * time + 900 * time.square()))).float()
    device = next(model.parameters()).device
    forget(model)
    with torch.inference_mode():
        log_probs, lengths = model(wave.unsqueeze(0).to(device), torch.tensor([rate], device=device))
    log_probs = log_probs[0, : int(lengths[0])].cpu()
    return {"labels": log_probs.argmax(-1).tolist(), "mean": float(log_probs.mean()), "frames": int(lengths[0])}


def _verify_self_check(model: CTCModel, expected: dict[str, Any], path: Path) -> None:
    got = self_check(model)
    agree = sum(a == b for a, b in zip(got["labels"], expected["labels"], strict=False))
    close = abs(got["mean"] - expected["mean"]) <= 1e-3 * max(1.0, abs(expected["mean"]))
    if got["frames"] != expected["frames"] or agree < 0.98 * got["frames"] or not close:
        raise StorageError(
            f"{path}: the model does not give the numbers it gave when it was saved (mean "
            f"log-probability {got['mean']:.5f}, "
            f"then {expected['mean']:.5f})",
            fix="install the versions named in config.json, or save the bundle again from its checkpoint",
            reason="self_check",
        )


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    if not file.is_file():
        raise StorageError(
            f"{path} is not a model: there is no config.json",
            possible="the folder `model` inside a run folder",
            fix="give e.g. runs/demo/sequence_batch_norm/seed1/model",
            reason="not_a_bundle",
        )
    if file.stat().st_size > MAX_CONFIG:
        raise TrustError(f"{file} is larger than 1 MiB", fix="do not use this model", reason="config_size")
    try:
        config = read_json(file.read_bytes())
        if not isinstance(config, dict) or not isinstance(config.get("format"), int):
            raise Foreign("missing or malformed: format")
    except (ValueError, RecursionError) as error:
        raise not_a_model(file, error) from error
    if config["format"] != FORMAT:
        raise StorageError(
            f"{file} has format {config['format']}, this asrkit reads {FORMAT}",
            fix="upgrade asrkit",
            reason="bundle_format",
        )
    return config


def _find_file(path: Path, name: str) -> Path:
    if name not in ("model.safetensors", "tokens.txt", "tokenizer.model"):
        raise TrustError(
            f"{path} names a file that no asrkit model has: {shown(name)}", fix="do not use it", reason="bundle_file"
        )
    file = path / name
    if file.is_symlink() or not file.is_file():
        raise TrustError(f"{file} is missing or is a link", fix="copy the whole folder again", reason="bundle_file")
    if name != "model.safetensors" and file.stat().st_size > MAX_TOKENIZER:
        raise TrustError(f"{file} is larger than 16 MiB", fix="do not use it", reason="bundle_file")
    return file


def _read_file(file: Path, digest: str) -> bytes:
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise StorageError(
            f"{file} is damaged: its hash is not that of config.json", fix="copy the folder again", reason="hash"
        )
    return data


def _fill(module: nn.Module, data: bytes, path: Path) -> None:
    """Load tensors whose names, shapes and types are known to fit."""
    tensors: dict[str, Tensor] = load_tensors(data)
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise TrustError(f"{path}: tensor {name} is not finite", fix="do not use it", reason="tensor")
    module.load_state_dict(tensors)
