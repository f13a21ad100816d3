"""Which source code a model is made of: a run that goes on with other code is no longer the run that was begun."""

from __future__ import annotations

import hashlib
import inspect
import sys

from torch import nn


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
