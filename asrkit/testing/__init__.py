"""What every encoder plugin, asrkit's own included, must do: `check_encoder`, and the same as tests.

>>> from asrkit.testing import check_encoder
>>> [result.check for result in check_encoder("layer_norm") if result.status == "failed"]     # doctest: +SKIP
[]

Checks are plain functions (`CHECKS`, by name) that look at the encoder in small stacks of layers
(`asrkit.testing.case`) and say what they measured. An encoder that cannot meet one declares so, with a reason, in its
class attribute `deviations`; a declared deviation that passes after all is a failure.
"""

from __future__ import annotations

from asrkit.testing.kit import CHECKS, check_encoder, declared_deviations, iterate_checks, parametrize_with_checks
from asrkit.testing.result import CheckFailed, DeclaredDeviation, Deviation, Result

__all__ = [
    "CHECKS",
    "CheckFailed",
    "DeclaredDeviation",
    "Deviation",
    "Result",
    "check_encoder",
    "declared_deviations",
    "iterate_checks",
    "parametrize_with_checks",
]
