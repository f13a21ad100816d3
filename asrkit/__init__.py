"""asrkit: honest, fast, practical normalization for recurrent CTC speech recognition.

>>> import asrkit
>>> model = asrkit.load("runs/model2/sequence_batch_norm/seed1/model")   # doctest: +SKIP
>>> model.transcribe("clip.mp3").text                                    # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asrkit.registry import register_encoder

__version__ = "0.1.0"
__all__ = ["Encoder", "StackEncoder", "__version__", "load", "register_encoder"]

if TYPE_CHECKING:
    from asrkit.encoders import Encoder, StackEncoder
    from asrkit.transcribe import load

# `import asrkit` stays cheap: torch is loaded when one of these is first used (PEP 562).
_LAZY = {"Encoder": "asrkit.encoders", "StackEncoder": "asrkit.encoders", "load": "asrkit.transcribe"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'asrkit' has no attribute {name!r}")
