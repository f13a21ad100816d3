"""What is wrong with a CTC training run, in words: checks of a batch, of a model, of a run folder.

`check_ctc_batch`, `check_loss` and `check_model` take any PyTorch code's tensors; `diagnose_run` reads a run folder.
"""

from __future__ import annotations

from asrkit.diagnostics.batch import check_ctc_batch, check_loss
from asrkit.diagnostics.findings import CATALOG, Finding
from asrkit.diagnostics.floor import Floor, input_blind_floor
from asrkit.diagnostics.model import check_features, check_model
from asrkit.hearing import phase

__all__ = [
    "CATALOG",
    "Finding",
    "Floor",
    "check_ctc_batch",
    "check_features",
    "check_loss",
    "check_model",
    "input_blind_floor",
    "phase",
]
