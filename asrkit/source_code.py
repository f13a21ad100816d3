"""Which source code a model is made of: a run that goes on with other code is no longer the run that was begun."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

NO_PART = {"cli", "report", "study", "testing", "synthetic"}  # of what a run computes


def source_hashes(model: nn.Module) -> dict[str, str]:
    """Module name -> sha256 (16 digits) of the source file, for all modules that define a class of the model.

    Base classes count, torch's own and the standard library's do not; nor does what these modules import. A class
    typed into a notebook has no file, and the hash of nothing.
    """
    names = {
        cls.__module__
        for module in model.modules()
        for cls in type(module).__mro__
        if cls.__module__.partition(".")[0] not in ("builtins", "torch", "abc", "typing")
    }
    return {name: _hash(name) for name in sorted(names)}


def _hash(name: str) -> str:
    try:
        text = inspect.getsource(sys.modules[name])
    except (KeyError, OSError, TypeError):
        text = ""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@lru_cache(maxsize=1)
def version_hash() -> str:
    """sha256 (16 digits) of what a run computes with: torch's version and all sources of asrkit and of its norms, as
    they were when this was first asked.

    Other sources need not mean other figures, but rounding is enough for a model on the edge of learning.
    """
    digest = hashlib.sha256(torch.__version__.encode())
    for name in ("asrkit", "asrkit_norms"):
        spec = importlib.util.find_spec(name)
        for folder in map(Path, (spec.submodule_search_locations or []) if spec is not None else []):
            for path in sorted(folder.rglob("*.py")):
                place = path.relative_to(folder)
                if place.parts[0] not in NO_PART:
                    digest.update(
                        f"{name}/{place.as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode()
                    )
    return digest.hexdigest()[:16]
