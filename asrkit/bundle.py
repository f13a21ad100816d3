"""A trained model as data: config.json, model.safetensors, the tokenizer's file, README.md. Loading runs no code of it.

The encoder is found by name among installed plugins; nothing is imported by path, unpickled or executed. Sizes, names,
shapes, types, hashes and finiteness of all tensors are checked before the first is used, and a short known input must
give the numbers that it gave when the bundle was written.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from asrkit import __version__, registry
from asrkit.errors import RecipeError, StorageError, TrustError
from asrkit.model import CTCModel, build_model, parameter_count
from asrkit.runs import atomic_write

FORMAT = 1
MAX_CONFIG = MAX_HEADER = 1 << 20
PARTS = ("data", "text", "features", "cmvn", "norm", "layers", "decoder")  # of the recipe: what a model needs to run


@dataclass(frozen=True)
class Bundle:
    """A loaded model with everything that turns audio into text."""

    model: CTCModel
    tokenizer: Any
    config: dict[str, Any]
    path: Path


def save_bundle(
    folder: Path, model: CTCModel, tokenizer: Any, recipe: dict[str, Any], facts: dict[str, Any], card: str
) -> None:
    """Write the bundle. `facts`: data hashes, exclusions, metrics (JSON data); `card`: the model card, Markdown."""
    model.eval()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.acoustic.state_dict().items()}
    files = {"model.safetensors": save_tensors(tensors), **tokenizer.files()}
    plugin = registry.describe("encoders", recipe["encoder"])
    sections: dict[str, Any] = {part: recipe[part] for part in PARTS if part in recipe}
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
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        atomic_write(folder / name, data)
    atomic_write(folder / "README.md", card)
    atomic_write(folder / "config.json", json.dumps(config, indent=1, ensure_ascii=False) + "\n")


def load_bundle(folder: str | Path, device: str = "cpu") -> Bundle:
    """Read a bundle; TrustError (exit 7) for anything that is not what its config and its architecture say."""
    path = Path(folder)
    config = _read_config(path)
    encoder = config["encoder"]
    try:
        registry.describe("encoders", encoder["name"])
    except RecipeError as error:
        raise TrustError(
            f"{path} needs the encoder {encoder['name']!r} of {encoder['package']} {encoder['version']}",
            fix=f"pip install {encoder['package']}  (asrkit installs nothing by itself)",
            reason="missing_plugin",
        ) from error
    contents = {name: _read_file(path, name, digest) for name, digest in config["files"].items()}
    tokenizer = registry.load("tokenizers", config["tokenizer"]["name"]).from_files(config["tokenizer"], contents)
    recipe = {**config["recipe"], "encoder": encoder["name"], "seed": config["seed"], "spec_augment": None}
    model = build_model(recipe, tokenizer.size)
    _fill(model.acoustic, contents["model.safetensors"], path)
    model.eval().to(device)
    _verify_self_check(model, config["self_check"], path)
    return Bundle(model, tokenizer, config, path)


def self_check(model: CTCModel) -> dict[str, Any]:
    """A chirp of one second through the model: best label of every frame, and mean log-probability, to compare after
    loading."""
    rate = model.features.sample_rate
    time = torch.arange(rate, dtype=torch.float64) / rate
    wave = (0.3 * torch.sin(2 * math.pi * (200 * time + 900 * time.square()))).float()
    device = next(model.parameters()).device
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
        config = json.loads(file.read_text(encoding="utf-8"))
        needed = {"format": int, "encoder": dict, "recipe": dict, "tokenizer": dict, "files": dict, "self_check": dict}
        wrong = [key for key, kind in needed.items() if not isinstance(config.get(key), kind)]
        if wrong or not {"name", "package", "version"} <= config["encoder"].keys():
            raise ValueError(f"missing or malformed: {', '.join(wrong) or 'encoder'}")
    except (ValueError, AttributeError, RecursionError) as error:
        raise TrustError(
            f"{file} is not an asrkit model ({error})", fix="do not use this model", reason="config"
        ) from error
    if config["format"] != FORMAT:
        raise StorageError(
            f"{file} has format {config['format']}, this asrkit reads {FORMAT}",
            fix="upgrade asrkit",
            reason="bundle_format",
        )
    return config


def _read_file(path: Path, name: str, digest: str) -> bytes:
    if name not in ("model.safetensors", "tokens.txt", "tokenizer.model"):
        raise TrustError(
            f"{path} names a file that no asrkit model has: {name!r}", fix="do not use it", reason="bundle_file"
        )
    file = path / name
    if file.is_symlink() or not file.is_file():
        raise TrustError(f"{file} is missing or is a link", fix="copy the whole folder again", reason="bundle_file")
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise StorageError(
            f"{file} is damaged: its hash is not that of config.json", fix="copy the folder again", reason="hash"
        )
    return data


def _fill(module: nn.Module, data: bytes, path: Path) -> None:
    """Check the file's header against the architecture, then load."""
    expected = module.state_dict()
    size = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else MAX_HEADER + 1
    if size > MAX_HEADER or size + 8 > len(data):
        raise TrustError(f"{path}/model.safetensors has no sane header", fix="do not use it", reason="tensor_file")
    try:
        header = json.loads(data[8 : 8 + size])
    except ValueError as error:
        raise TrustError(
            f"{path}/model.safetensors has no sane header", fix="do not use it", reason="tensor_file"
        ) from error
    header.pop("__metadata__", None)
    problems = [f"{name} is missing" for name in expected if name not in header]
    problems += [f"{name} is not in this architecture" for name in header if name not in expected]
    problems += [
        f"{name} has shape {header[name]['shape']}, the architecture {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in header and header[name].get("shape") != list(tensor.shape)
    ]
    if problems:
        raise TrustError(
            f"{path}/model.safetensors does not fit its config: {problems[0]} ({len(problems)} differences)",
            fix="use the model with the asrkit and plugin versions named in config.json",
            reason="tensor_shapes",
        )
    tensors: dict[str, Tensor] = load_tensors(data)
    for name, tensor in tensors.items():
        if tensor.dtype != expected[name].dtype or not torch.isfinite(tensor).all():
            raise TrustError(
                f"{path}: tensor {name} is not finite, or not of its type", fix="do not use it", reason="tensor"
            )
    module.load_state_dict(tensors)
