"""The conformance kit: right encoders pass, each broken one is caught by the check that is meant for its fault."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from broken_encoders import BROKEN, BatchNorm, Frames, Normed, ThirdParty, TrueRule
from torch import Tensor, nn

from asrkit import registry
from asrkit.cli import main
from asrkit.encoders import Encoder, NormOptions
from asrkit.errors import RecipeError
from asrkit.masking import frame_mask
from asrkit.testing import (
    CHECKS,
    CheckFailed,
    DeclaredDeviation,
    Deviation,
    check_encoder,
    parametrize_with_checks,
)
from asrkit.testing.case import STACKS
from asrkit.testing.kit import Call
from asrkit.testing.result import NotApplicable, Result
from asrkit.testing.scope import standardized

ROOT = Path(__file__).resolve().parents[1]


def failed(results: list[Result]) -> dict[str, str]:
    return {result.check: result.text for result in results if result.status == "failed"}


class TestRightOnes:
    def test_a_third_party_norm_passes(self) -> None:
        """In every stack, inside the recurrence too; without hints there is nothing to check about them."""
        results = check_encoder(ThirdParty)
        assert failed(results) == {}
        assert [result.check for result in results] == list(CHECKS)
        assert {result.check for result in results if result.status == "skipped"} == {"hints"}
        assert {result.stack for result in results} > {"layers", "recurrent"}

    def test_a_batch_norm_passes(self) -> None:
        assert failed(check_encoder(Normed)) == {}

    def test_a_norm_with_a_true_rule_passes(self) -> None:
        """In training and in eval; the gates take it instead of forward."""
        results = check_encoder(TrueRule)
        assert failed(results) == {}
        assert next(result.status for result in results if result.check == "hints") == "ok"

    def test_constant_parameters_are_no_faults(self) -> None:
        """Of asrkit's own and of the example package's: without `affine` neither has a gain."""
        path = ROOT / "plugins" / "asrkit-rmsnorm" / "simple_rms_norm.py"
        spec = importlib.util.spec_from_file_location("simple_rms_norm_of_a_test", path)
        assert spec is not None
        assert spec.loader is not None
        guest = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(guest)
        x, mask = torch.randn(2, 5, 6), torch.ones(2, 5, dtype=torch.bool)
        found = []
        for cls in (registry.load("encoders", "rms_norm"), guest.SimpleRMSNormEncoder):
            assert failed(check_encoder(cls, affine=False, gain=0.1)) == {}
            found.append(cls(6, ["norm"], NormOptions(affine=False, gain=0.1)).make_norm(6)(x, mask))
        torch.testing.assert_close(*found)

    def test_a_frozen_gain_is_no_fault(self) -> None:
        class Frozen(ThirdParty):
            def make_norm(self, size: int) -> nn.Module:
                return super().make_norm(size).requires_grad_(False)

        assert failed(check_encoder(Frozen, checks=["derivative", "norm_derivative", "gradients"])) == {}

    def test_dropout_between_recurrent_layers_is_switched_off(self) -> None:
        stacks = {"s": ["norm", {"bigru": {"size": 4, "layers": 2, "dropout": 0.5}}]}
        assert failed(check_encoder("layer_norm", checks=["padding_train", "batch_statistics"], stacks=stacks)) == {}

    def test_a_window_of_context_can_be_exported(self) -> None:
        """In a trace it is cut otherwise, since ONNX knows no unfold for an unknown number of frames."""
        layers = [{"context": {"left": 2, "right": 1, "stride": 3}}, {"linear": 8}, "norm", {"gru": 4}]
        result = check_encoder(ThirdParty, checks=["export"], stacks={"context": layers})[0]
        assert (result.status, result.measured is None) == ("ok", False)

    def test_an_encoder_of_its_own_passes(self) -> None:
        """No StackEncoder: what concerns norms is skipped, with the reason."""
        results = check_encoder(Frames)
        assert failed(results) == {}
        skipped = {result.check: result.text for result in results if result.status == "skipped"}
        assert set(skipped) == {"initial_weights", "norm_derivative", "scope", "hints"}
        assert all("make_norm" in text for text in skipped.values())

    def test_the_norm_of_the_readme_passes(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
        path = tmp_path / "readme_norm.py"
        path.write_text(next(body for body in blocks if "make_norm" in body), encoding="utf-8")
        monkeypatch.setattr(registry, "_registered", {})
        registry.load_plugin_file(path)
        results = check_encoder("my_rms_norm", stacks={"layers": STACKS["layers"]})
        assert failed(results) == {}
        scope = next(result for result in results if result.check == "scope")
        assert scope.status == "skipped"
        assert scope.text.endswith("by measurement it is 'frame_rms'")


class TestBrokenOnes:
    @pytest.mark.parametrize("cls", BROKEN, ids=lambda cls: cls.__name__)
    def test_is_caught_by_the_right_check(self, cls: Any) -> None:
        found = failed(check_encoder(cls, stacks={cls.where: STACKS[cls.where]}))
        assert set(found) == {cls.caught_by, *cls.also}
        assert found[cls.caught_by].startswith(f"{cls.where}: ")

    def test_all_checks_catch_something(self) -> None:
        """Forty faults, and no check without one: a check that nothing fails would prove nothing."""
        assert {cls.caught_by for cls in BROKEN} == set(CHECKS)
        assert len(BROKEN) >= 35

    def test_it_says_what_was_measured_and_allowed(self) -> None:
        cls = next(cls for cls in BROKEN if cls.__name__ == "ForgetsTheMask")
        result = check_encoder(cls, checks=["padding_train"], stacks={"layers": STACKS["layers"]})[0]
        assert result.measured is not None
        assert result.allowed is not None
        assert result.measured > 0.1 > 1e-4 > result.allowed
        assert re.search(r"7 more frames of it changes real frames by: 0\.\d+ \(allowed \d\.\de-05\)", result.text)
        assert result.stack in STACKS

    def test_no_deviation_in_the_first_frame_of_a_recurrence(self) -> None:
        """h_0 = 0: all of it NaN, which the first check says, before others compare with it."""

        class Deviation0(Normed):
            class Norm(nn.Module):
                def __init__(self, size: int, eps: float) -> None:
                    super().__init__()

                def forward(self, x: Tensor, mask: Tensor) -> Tensor:
                    return x / x.std(-1, keepdim=True)

            norm_class = Norm

        found = failed(check_encoder(Deviation0, checks=["shapes"]))
        assert found == {"shapes": "recurrent: the output for finite frames: NaN or infinity in it"}

    @pytest.mark.parametrize("momentum", [0.01, 0.1, 1.0])
    def test_averages_may_take_their_time(self, momentum: float) -> None:
        """And a variance may be biased or not, as torch's is."""

        class Torchs(nn.Module):
            def __init__(self, size: int, eps: float) -> None:
                super().__init__()
                self.norm = nn.BatchNorm1d(size, eps, momentum)

            def forward(self, x: Tensor, mask: Tensor) -> Tensor:
                y = torch.zeros_like(x)
                y[mask] = self.norm(x[mask])
                return y

        cls = type("OfTorch", (Normed,), {"norm_class": Torchs})
        result = check_encoder(cls, checks=["running_statistics"])[0]
        assert result.status == "ok"
        assert result.measured > 1e-4  # the unbiased variance

    def test_scopes_of_the_kit_are_those_of_the_definitions(self) -> None:
        """The kit's own oracle against NumPy's mean and variance, axis by axis, on a batch without padding."""
        import numpy as np

        x = np.random.default_rng(0).normal(size=(3, 4, 6))
        mask = np.ones((3, 4), dtype=bool)
        axes = {"frame": 2, "step": 0, "sequence": (0, 1), "utterance": 1}
        for scope, over in axes.items():
            expected = (x - x.mean(over, keepdims=True)) / np.sqrt(x.var(over, keepdims=True) + 0.1)
            np.testing.assert_allclose(standardized(scope, x, mask, 0.1, 1), expected, atol=1e-12)
        split = x.reshape(3, 4, 2, 3)
        expected = (split - split.mean((1, 3), keepdims=True)) / np.sqrt(split.var((1, 3), keepdims=True) + 0.1)
        np.testing.assert_allclose(standardized("group", x, mask, 0.1, 2), expected.reshape(x.shape), atol=1e-12)
        expected = x / np.sqrt((x**2).mean(2, keepdims=True) + 0.1)
        np.testing.assert_allclose(standardized("frame_rms", x, mask, 0.1, 1), expected, atol=1e-12)


class Declares(Normed):
    """Its norm forgets the mask, and says so."""

    class Norm(BatchNorm):
        masked = False

    norm_class = Norm
    deviations: ClassVar[dict[str, Any]] = {
        "padding_train": "it is there to study the mistake",
        "scope": Deviation("padding is among what it averages over", stacks=("layers",)),
    }


class TestDeviations:
    @parametrize_with_checks([Declares], stacks={"layers": STACKS["layers"]})
    def test_they_are_strict_xfails(self, encoder: type[Encoder], check: Call) -> None:
        """Two of these tests fail as declared; pytest would report a pass as an error."""
        check(encoder)

    def test_results_give_the_reason_and_the_measurement(self) -> None:
        results = check_encoder(Declares, stacks={"layers": STACKS["layers"]})
        found = {result.check: result for result in results if result.status == "deviation"}
        assert set(found) == {"padding_train", "scope"}
        assert found["padding_train"].reason == "it is there to study the mistake"
        assert "changes real frames" in found["padding_train"].text
        assert failed(results) == {}

    def test_one_that_passes_is_an_error(self) -> None:
        class Stale(Frames):
            deviations: ClassVar[dict[str, Any]] = {"double": "once it did not work"}

        found = failed(check_encoder(Stale))
        assert set(found) == {"double"}
        assert "remove the declaration" in found["double"]
        with pytest.raises(CheckFailed, match="remove the declaration") as caught:
            Call("double")(Stale)
        assert not isinstance(caught.value, DeclaredDeviation)  # so that the xfail does not swallow it

    def test_elsewhere_than_declared_is_a_failure(self) -> None:
        class Elsewhere(Declares):
            deviations: ClassVar[dict[str, Any]] = {"padding_train": Deviation("only there", stacks=("layers",))}

        result = check_encoder(Elsewhere, checks=["padding_train"])[0]
        assert result.status == "failed"
        assert result.stack != "layers"

    def test_marks(self) -> None:
        marked = parametrize_with_checks([Declares]).mark
        names = [parameter.id for parameter in marked.args[1]]
        assert names == [f"Declares-{name}" for name in CHECKS]
        xfails = {parameter.id: mark.kwargs for parameter in marked.args[1] for mark in parameter.marks}
        assert set(xfails) == {"Declares-padding_train", "Declares-scope"}
        assert all(kwargs["strict"] and kwargs["raises"] is DeclaredDeviation for kwargs in xfails.values())

    @pytest.mark.parametrize(
        "deviations",
        [{"paddingtrain": "because"}, {"padding_train": " "}, {"scope": None},
         {"padding_train": Deviation("there", stacks=("layer",))}],
    )  # fmt: skip
    def test_an_unknown_check_or_no_reason(self, deviations: dict[str, Any]) -> None:
        cls = type("Vague", (Frames,), {"deviations": deviations})
        with pytest.raises(RecipeError) as caught:
            check_encoder(cls)
        assert caught.value.reason == "deviations"


class TestUse:
    def test_skips_are_skips_in_pytest(self) -> None:
        with pytest.raises(pytest.skip.Exception, match="make_norm"):
            Call("scope")(Frames)
        assert not issubclass(NotApplicable, AssertionError)

    def test_what_does_not_exist(self) -> None:
        for arguments, reason in (
            ({"encoder": "layer_nrm"}, "unknown_encoder"),
            ({"encoder": Frames, "checks": ["paddings"]}, "unknown_check"),
            ({"encoder": Frames, "epsilon": 1.0}, "plugin_option"),
            ({"encoder": Frames, "batch": "micro"}, "plugin_option"),
            ({"encoder": Frames, "eps": -1.0}, "value"),
            ({"encoder": Frames, "masked": 1}, "value"),
            ({"encoder": nn.Linear}, "encoder_contract"),
        ):
            with pytest.raises(RecipeError) as caught:
                check_encoder(**arguments)  # type: ignore[arg-type]
            assert caught.value.reason == reason

    def test_a_stack_that_is_refused_is_left_out_and_named(self) -> None:
        class NotThere(Normed):
            class Norm(BatchNorm):
                def step(self, x: Tensor, t: int, mask: Tensor) -> Tensor:
                    raise RecipeError("not inside a recurrence", reason="placement")

            norm_class = Norm

        results = check_encoder(NotThere, checks=["shapes", "padding_train"])
        assert failed(results) == {}
        assert "left out: recurrent (not inside a recurrence)" in results[0].text
        only = check_encoder(NotThere, checks=["shapes"], stacks={"recurrent": STACKS["recurrent"]})
        assert set(failed(only)) == {"shapes"}

    def test_a_constructor_that_fails(self) -> None:
        class Unbuildable(Frames):
            def __init__(self, input_size: int) -> None:
                super().__init__(input_size, [])

        results = check_encoder(Unbuildable)
        assert len(failed(results)) == len(CHECKS)
        assert "unexpected keyword argument 'layers'" in results[0].text

    def test_the_generator_is_left_alone(self) -> None:
        before = torch.get_rng_state()
        check_encoder(Frames)
        assert torch.equal(before, torch.get_rng_state())


PLUGIN = """
import sys

sys.path.insert(0, {folder!r})
import asrkit
import broken_encoders

asrkit.register_encoder("right")(broken_encoders.Frames)
asrkit.register_encoder("wrong")(broken_encoders.Poisoned)
"""


WITHOUT_MASK = """
import asrkit
import torch

@asrkit.register_encoder("without_mask")
class WithoutMask(asrkit.StackEncoder):
    def make_norm(self, size):
        return torch.nn.LayerNorm(size)
"""


class TestCommand:
    @pytest.fixture
    def plugin(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.setattr(registry, "_registered", {})
        path = tmp_path / "two.py"
        path.write_text(PLUGIN.format(folder=str(ROOT / "tests")), encoding="utf-8")
        return str(path)

    def test_a_right_one(self, plugin: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["plugins", "check", "right", "--plugin", plugin]) == 0
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert lines[0] == ["check", "result", "measured"]
        assert [line[0] for line in lines[1:-1]] == list(CHECKS)
        assert {line[1] for line in lines[1:-1]} == {"ok", "skipped"}

    def test_a_wrong_one(self, plugin: str, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["plugins", "check", "wrong", "--plugin", plugin, "--only", "nan", "--only", "shapes"]
        assert main(words) == 2
        out = capsys.readouterr().out
        assert re.search(r"^nan +FAILED +layers: after a NaN in training, the buffer .*mean: NaN", out, re.MULTILINE)
        assert out.splitlines()[-1] == "wrong: 1 failed, 1 ok"
        assert main([*words, "--json"]) == 2
        data = json.loads(capsys.readouterr().out)
        assert data["ok"] is False
        assert {result["check"]: result["status"] for result in data["results"]} == {"nan": "failed", "shapes": "ok"}

    def test_one_reason_for_all_is_said_once(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "without_mask.py"
        path.write_text(WITHOUT_MASK, encoding="utf-8")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(registry, "_registered", {})
            assert main(["plugins", "check", "without_mask", "--plugin", str(path)]) == 2
        out = capsys.readouterr().out
        assert out.count("whose forward does not take x, mask") == 1
        assert re.search(r"^nan +FAILED +as shapes$", out, re.MULTILINE)
        assert out.splitlines()[-1] == f"without_mask: {len(CHECKS)} failed"

    def test_options_of_the_norm(self, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["plugins", "check", "sequence_batch_norm", "--only", "padding_train"]
        assert main(words) == 0
        assert main([*words, "--norm.masked=false"]) == 2
        assert "FAILED" in capsys.readouterr().out
        assert main([*words, "--norm.maskd=false"]) == 2
        assert "error[plugin_option]" in capsys.readouterr().err
        assert main(["plugins", "check", "group_norm", "--norm.groups=3"]) == 2  # of 8 features: said once
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("norm.groups=3") == 1
        assert "error[groups]" in err
        assert main([*words, "--norm.eps=-1"]) == 2
        assert "error[value]: norm.eps = -1; possible: a number above 0" in capsys.readouterr().err
        assert main([*words, "--training.lr=1"]) == 2
        assert "error[unknown_option]: unknown option --training.lr" in capsys.readouterr().err

    def test_what_does_not_exist(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["plugins", "check", "layer_nrm"]) == 2
        assert "did you mean 'layer_norm'?" in capsys.readouterr().err
        assert main(["plugins", "check", "none", "--only", "padding"]) == 2
        assert "error[unknown_check]" in capsys.readouterr().err


class TestSpeechBrain:
    """What the kit finds in two layers of speechbrain 1.1.2, made to fit the contract and not changed otherwise."""

    def test_batch_norm_counts_the_padding(self) -> None:
        from speechbrain.nnet.normalization import BatchNorm1d

        class Norm(nn.Module):
            scope = "sequence"

            def __init__(self, size: int, eps: float) -> None:
                super().__init__()
                self.norm = BatchNorm1d(input_size=size, eps=eps)

            def forward(self, x: Tensor, mask: Tensor) -> Tensor:
                return self.norm(x)

        class SpeechBrainBatchNorm(Normed):
            norm_class = Norm

        found = failed(check_encoder(SpeechBrainBatchNorm, stacks={"layers": STACKS["layers"]}))
        assert set(found) == {"padding_train", "padding_output", "scope", "nan"}
        assert "a gradient reaches the padding" in found["padding_output"]
        assert "7 more frames of it changes real frames by" in found["padding_train"]
        assert "after a NaN in training, the buffer" in found["nan"]

    @staticmethod
    def ligru(normalization: str) -> type[Encoder]:
        from speechbrain.nnet.RNN import LiGRU

        class SpeechBrainLiGRU(Encoder):
            """Its output past each end is set to 0 here, as its users do before the loss."""

            batch_statistics = normalization == "batchnorm"

            def __init__(self, input_size: int, layers: Any, norm: Any) -> None:
                super().__init__()
                self.rnn = LiGRU(4, (4, 13, input_size), normalization=normalization, bidirectional=True)
                self.output_size = 8

            def num_frames(self, frames: Any) -> Any:
                return frames

            def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
                mask = frame_mask(lengths, x.shape[1]).unsqueeze(-1)
                return self.rnn(x.masked_fill(~mask, 0.0))[0].masked_fill(~mask, 0.0), lengths

        return SpeechBrainLiGRU

    def test_ligru_starts_backwards_in_the_padding(self) -> None:
        stack = {"any": STACKS["layers"]}
        found = failed(check_encoder(self.ligru("batchnorm"), stacks=stack))
        assert set(found) == {"padding_eval", "padding_train", "shortest", "nan", "export"}
        assert "7 more frames of it changes real frames by" in found["padding_eval"]
        assert "after a NaN in training, the buffer" in found["nan"]
        assert "utterances of [0, 0] frames raises RuntimeError" in found["shortest"]
        assert "a trace made at 12 frames does not work" in found["export"] or "ONNX" in found["export"]
        # With layer norm no statistics count the padding: what is left is the direction that begins in it.
        without_statistics = failed(check_encoder(self.ligru("layernorm"), stacks=stack))
        assert set(without_statistics) == set(found) - {"nan"}

    def test_ligru_without_normalization_is_layer_norm(self) -> None:
        x, lengths = torch.randn(2, 7, 8), torch.tensor([7, 7])
        outputs = []
        for normalization in ("none", "layernorm", "batchnorm"):
            torch.manual_seed(1)
            encoder = self.ligru(normalization)(8, None, None)  # type: ignore[call-arg]
            outputs.append(encoder(x, lengths)[0])
        assert torch.equal(outputs[0], outputs[1])
        assert not torch.equal(outputs[0], outputs[2])
