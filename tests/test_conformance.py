"""Every encoder that is installed keeps the promises of the conformance kit."""

from __future__ import annotations

import pytest

from asrkit import registry
from asrkit.encoders import Encoder
from asrkit.testing import CHECKS, check_encoder, declared_deviations, parametrize_with_checks
from asrkit.testing.case import STACKS
from asrkit.testing.export import onnx_installed
from asrkit.testing.kit import Call

OURS = {plugin.name for plugin in registry.list_plugins("encoders") if plugin.package == "asrkit"}
EXPECTED = {
    "none": "none", "layer_norm": "frame", "rms_norm": "frame_rms", "frame_batch_norm": "step",
    "sequence_batch_norm": "sequence", "batch_renorm": "sequence", "instance_norm": "utterance", "group_norm": "group",
    "weight_norm": "weights",
}  # fmt: skip


def test_none_is_forgotten() -> None:
    """A new strategy gets here by itself; what it averages over is said once more, by hand."""
    assert set(EXPECTED) == OURS
    assert len(CHECKS) >= 20


@parametrize_with_checks(sorted(OURS))
def test_encoder(encoder: str, check: Call) -> None:
    check(encoder)


@pytest.mark.parametrize("name", sorted(OURS))
def test_nothing_is_skipped_and_little_is_declared(name: str) -> None:
    """Each of ours declares what it averages over, and the kit has confirmed it."""
    scope = check_encoder(name, checks=["scope"])[0]
    assert scope.status == "ok"
    cls = registry.load("encoders", name)
    assert issubclass(cls, Encoder)
    assert declared_deviations(cls) == {}
    encoder = cls(input_size=8, layers=["norm"])
    assert (getattr(encoder.make_norm(8), "scope", None) or cls.scope) == EXPECTED[name]


@pytest.mark.parametrize("name", ["sequence_batch_norm", "frame_batch_norm", "group_norm", "instance_norm"])
def test_unmasked_statistics_are_found_out(name: str) -> None:
    """norm.masked=false is the usual mistake on purpose: the kit sees it, in training or in eval, and nowhere else."""
    results = check_encoder(name, checks=["padding_train", "scope", "shapes", "gradients", "derivative"], masked=False)
    failed = {result.check for result in results if result.status == "failed"}
    assert failed == {"padding_train", "scope"}


@pytest.mark.parametrize("stack", ["conv", "gates"])
def test_the_export_is_of_onnx_where_it_can_be(stack: str) -> None:
    """And the result says which it was: a trace is less than a file that onnxruntime reads."""
    result = check_encoder("sequence_batch_norm", checks=["export"], stacks={stack: STACKS[stack]})[0]
    assert result.status == "ok"
    assert result.measured is not None
    assert ("as ONNX" if onnx_installed() else "as a trace") in result.text.split("; ")[1]
