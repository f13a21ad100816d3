"""Models from the Hugging Face Hub: `hf://OWNER/NAME` or `hf://OWNER/NAME@REVISION`, and nothing without the `hf://`.

Asked for are the files that a bundle can have, by their names, and no listing of the repository: whatever else lies
there never reaches this disk. What arrives is checked like any other folder (asrkit.bundle).
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from asrkit.errors import DataError, RecipeError

HUB = "hf://"
FILES = ("model.safetensors", "tokens.txt", "tokenizer.model")  # of a bundle, beside config.json
ADDRESS = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
MAX_CONFIG = 1 << 20  # bytes


def fetch_bundle(address: str) -> Path:
    """Download a bundle (resumable; what has not changed is not fetched again) and return its folder: `cache_folder`.

    Raises RecipeError (`hub_address`, `no_hub`) for an address of another form or without huggingface_hub, DataError
    (`hub_model`) where the Hub does not give the files, be it for want of a network.
    """
    match = ADDRESS.fullmatch(address)
    if match is None:
        raise RecipeError(
            f"model {address!r}", possible="hf://OWNER/NAME or hf://OWNER/NAME@REVISION", reason="hub_address"
        )
    try:
        import huggingface_hub
    except ImportError as error:
        raise RecipeError(
            f"{address} needs huggingface_hub", fix="pip install huggingface_hub", reason="no_hub"
        ) from error
    repository, revision = match.groups()
    if any(part.strip(".") == "" for part in repository.split("/")):  # `..` is a place, not a name
        raise RecipeError(f"model {address!r}", possible="hf://OWNER/NAME", reason="hub_address")
    folder = cache_folder() / repository.replace("/", "--") / (revision or "main").replace("/", "--")

    def fetch(name: str) -> Path:
        try:  # into a folder of its own: the Hub's cache holds links, which a bundle may not have
            return Path(huggingface_hub.hf_hub_download(repository, name, revision=revision, local_dir=folder))
        except Exception as error:  # its client raises everything from ValueError to its own HTTP errors
            raise _refused(address, name, error) from error

    for name in _files(fetch("config.json"), address):
        fetch(name)
    return folder


def cache_folder() -> Path:
    """`asrkit/models` in $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "asrkit" / "models"


def _refused(address: str, name: str, error: Exception) -> DataError:
    why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return DataError(
        f"{address}: {name} did not come ({type(error).__name__}: {why})",
        fix="check the address and the network; `hf auth login` where the model is private",
        reason="hub_model",
    )


def _files(config: Path, address: str) -> list[str]:
    """The files that a config names, of those that a bundle can have; checking the rest is up to asrkit.bundle."""
    foreign = DataError(f"{address} is no asrkit model: its config.json is not one", reason="hub_model")
    if config.stat().st_size > MAX_CONFIG:
        raise foreign
    try:
        data: Any = json.loads(config.read_text(encoding="utf-8"))
        named = data["files"].keys()
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise foreign from error
    return [name for name in FILES if name in named]
