"""Rows N01 to N09 of the fault matrix: what spoils a normalization.

N01 and N03 to N05 are about the norms' own state, so "on disk" is there their buffers; the rest goes through runs.
"""

from __future__ import annotations

import copy
import signal
from pathlib import Path
from typing import Any

import pytest
import test_several_processes
import torch
from broken_encoders import BROKEN
from test_normalization import make, ragged
from torch import Tensor, nn
from toy import toy_recipe
from trials import Trial

from asrkit.checkpoints import Checkpoints
from asrkit.diagnostics.norms import mismatches
from asrkit.diagnostics.probes import Probe
from asrkit.model import build_model
from asrkit.preparation import prepare
from asrkit.recipe import load_recipe
from asrkit.registry import list_plugins
from asrkit.runs import MetricsLog
from asrkit.testing import CHECKS, check_encoder
from asrkit.testing.case import STACKS
from asrkit.testing.faults import kill_at_step
from asrkit.training import CTCBrain

pytestmark = [pytest.mark.fault, pytest.mark.usefixtures("quick")]

ENCODERS = [plugin.name for plugin in list_plugins("encoders") if plugin.package == "asrkit"]
ROWS = [f"n{number:02d}" for number in range(1, 10)]


def test_every_row_is_here() -> None:
    names = [name for name, value in globals().items() if name.startswith("test_n") and callable(value)]
    names.append(test_several_processes.test_n07_two_processes_equal_one.__name__)  # it starts two for all its tests
    assert sorted({name.split("_")[1] for name in names}) == ROWS


def _passes(norm: nn.Module, extra: int) -> list[Tensor]:
    """Real outputs in training and in evaluation, and the buffers between, with so many more frames of padding."""
    norm = copy.deepcopy(norm)
    results = []
    x, mask = ragged([12, 9, 7, 7], padding=5.0, extra=extra)
    results.append(norm(x, mask)[mask])
    results += list(norm.buffers())
    results.append(norm.eval()(x, mask)[mask])
    return results


@pytest.mark.parametrize("name", ENCODERS)
def test_n01_padding_is_in_no_statistic(name: str) -> None:
    """Once, twice, three and four times as many frames, all padding."""
    norm = make(name, 6, min_count=2)
    expected = _passes(norm, 0)
    for extra in (12, 24, 36):
        for one, another in zip(expected, _passes(norm, extra), strict=True):
            torch.testing.assert_close(another, one, atol=1e-5, rtol=0)


def test_n01_padding_is_in_those_of_torch() -> None:
    """What the test above finds where padding is counted: the same four batches through a plain batch norm."""
    outputs = []
    for extra in (0, 36):
        x, mask = ragged([12, 9, 7, 7], padding=5.0, extra=extra)
        outputs.append(nn.BatchNorm1d(6)(x.transpose(1, 2)).transpose(1, 2)[mask])
    assert (outputs[1] - outputs[0]).abs().mean() > 0.3


def test_n02_batches_of_one_and_of_few(trial: Trial) -> None:
    one = ("--encoder=frame_batch_norm", "--training.batch_size=1")
    ended = trial.train(*one)
    assert ended.end == (2, "batch_of_one")
    assert "norm.allow_batch_of_one=true" in ended.error
    assert not trial.run.exists()
    assert trial.train("--encoder=frame_batch_norm", "--training.batch_size=3").code == 0
    log = (trial.run / "log.txt").read_text(encoding="utf-8")
    assert "frame_batch_norm learns its statistics from 3 utterances at a time" in log
    assert trial.train(*one, "--norm.allow_batch_of_one=true", output="allowed").code == 0
    assert trial.train("--encoder=frame_batch_norm", "--training.batch_size=4", output="four").code == 0
    assert "learns its statistics" not in (trial.folder / "four" / "log.txt").read_text(encoding="utf-8")


def test_n03_utterances_longer_than_all_that_were_trained_on() -> None:
    """Trained to 60 frames, used for 600: finite, no jump where the stored steps end, and the share is known."""
    norm = make("frame_batch_norm", 6, min_count=4)
    for _ in range(10):
        x, mask = ragged([60, 60, 60, 50, 50, 40, 40, 40], size=6)
        norm(x + torch.randn_like(x), mask)
    kept = [buffer.clone() for buffer in norm.buffers()]
    norm.eval()
    frame = torch.randn(1, 1, 6)
    y = norm(frame.expand(1, 600, 6), torch.ones(1, 600, dtype=torch.bool))[0]
    assert torch.isfinite(y).all()
    assert norm.fallback_share == pytest.approx(540 / 600)
    within = (y[1:60] - y[:59]).abs().max()
    assert (y[60] - y[59]).abs().max() <= 2 * within, "from the last step of its own to the common tail"
    assert torch.equal(y[60:], y[60:61].expand(540, 6))
    assert all(torch.equal(a, b) for a, b in zip(norm.buffers(), kept, strict=True))


def test_n03_a_run_reports_the_share(trial: Trial) -> None:
    assert trial.train("--encoder=frame_batch_norm", "--norm.min_count=5").code == 0
    epochs = [line for line in MetricsLog.read(trial.run / "metrics.jsonl") if line["type"] == "epoch"]
    assert all(0 < line["norms"]["fallback_share"] <= 1 for line in epochs)


def test_n04_evaluation_that_is_not_what_was_trained(trial: Trial) -> None:
    """Every epoch says how far apart they are, by norm; statistics that are off by two deviations show as two."""
    assert trial.train("--training.epochs=8", "--training.lr=0.003").code == 0
    epochs = [line["diagnosis"] for line in MetricsLog.read(trial.run / "metrics.jsonl") if line["type"] == "epoch"]
    assert [list(one["train_eval_mismatch"]) for one in epochs] == [["layers.2.norm"]] * 8
    assert 0 < epochs[-1]["train_eval_mismatch"]["layers.2.norm"] < 0.5
    norm = make("sequence_batch_norm", 6)
    x, mask = ragged([12, 9, 7, 7], size=6)
    for _ in range(3):
        norm(x, mask)
    holder = _Holder(norm)

    def measured() -> float:
        probe = Probe(lambda features, lengths: norm(features, mask), holder, x, torch.tensor([12, 9, 7, 7]))
        [value] = mismatches(probe, holder).values()
        return value

    assert measured() < 0.1
    norm.running.mean += 2 * norm.running.var.sqrt()
    assert measured() == pytest.approx(2, abs=0.2)


class _Holder(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm


@pytest.mark.parametrize("encoder", ["sequence_batch_norm", "frame_batch_norm", "batch_renorm"])
def test_n05_running_statistics_that_are_wrecked_are_not_saved(trial: Trial, encoder: str) -> None:
    """C07 keeps NaN out of them; what gets there all the same ends the run before it is on disk."""
    option = f"--encoder={encoder}"
    assert trial.train(option, output="whole").code == 0
    with kill_at_step(2, signal.SIGTERM):
        assert trial.train(option).code == 75
    real = CTCBrain.measure

    def spoil(brain: CTCBrain, *args: Any) -> Any:
        figures = real(brain, *args)
        next(b for b in brain.modules.buffers() if b.is_floating_point() and b.numel()).view(-1)[0] = float("inf")
        return figures

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CTCBrain, "measure", spoil)
        ended = trial.train(option)
    assert ended.end == (4, "non_finite_checkpoint")
    assert "tensor 'encoder." in ended.error
    found = Checkpoints(trial.run / "checkpoints").latest()
    assert found is not None
    assert found.step == 2
    assert trial.train(option).code == 0
    assert trial.outcome() == trial.outcome("whole")


@pytest.mark.parametrize("encoder", ["sequence_batch_norm", "frame_batch_norm", "batch_renorm"])
def test_n06_accumulation_under_a_batch_norm_must_be_meant(trial: Trial, encoder: str) -> None:
    options = (f"--encoder={encoder}", "--training.accumulation=2")
    ended = trial.train(*options)
    assert ended.end == (2, "accumulation_with_batch_norm")
    assert "norm.batch=micro" in ended.error
    assert not trial.run.exists()
    assert trial.train(*options, "--norm.batch=micro").code == 0
    resolved = load_recipe(trial.run / "resolved.yaml")
    assert (resolved["norm"]["batch"], resolved["training"]["accumulation"]) == ("micro", 2)


def test_n06_accumulation_without_batch_statistics_is_the_joint_batch(trial: Trial) -> None:
    """Gradients of two halves are those of the whole with layer norm, and are not with a batch norm."""
    common = ("--layers=[{linear: 8}, norm, {bigru: 8}]", "--spec_augment=null", "--training.order=file",
              "--training.batch_frames=100000", "--training.epochs=1", "--norm.batch=micro")  # fmt: skip
    off = {}
    for encoder in ("layer_norm", "sequence_batch_norm"):
        norms = []
        for name, options in {"joint": ("--training.batch_size=4",),
                              "halves": ("--training.batch_size=2", "--training.accumulation=2")}.items():  # fmt: skip
            output = f"{encoder}_{name}"
            assert trial.train(f"--encoder={encoder}", *common, *options, output=output).code == 0
            lines = MetricsLog.read(trial.folder / output / "metrics.jsonl")
            norms.append(next(line["grad_norm"] for line in lines if line["type"] == "update"))
        off[encoder] = abs(norms[1] / norms[0] - 1)
    assert off["layer_norm"] < 1e-5
    assert off["sequence_batch_norm"] > 100 * off["layer_norm"]


@pytest.mark.parametrize("name", ENCODERS)
def test_n08_company_changes_no_log_probability(name: str, trial: Trial) -> None:
    """Batches of one, four and twelve, in two orders."""
    recipe = toy_recipe(trial.folder, trial.corpus, ("encoder", name))
    split = prepare(recipe).splits["train"]
    model = build_model(recipe, 35).acoustic
    clips = [torch.from_numpy(split[i][2].astype("float32")) for i in range(len(split))]

    def through(rows: list[int]) -> dict[int, Tensor]:
        lengths = torch.tensor([len(clips[i]) for i in rows])
        log_probs, counts = model(nn.utils.rnn.pad_sequence([clips[i] for i in rows], batch_first=True), lengths)
        return {row: log_probs[place, : int(counts[place])] for place, row in enumerate(rows)}

    through(list(range(12)))  # statistics
    model.eval()
    with torch.inference_mode():
        alone = {i: through([i])[i] for i in range(12)}
        for rows in (list(range(12)), list(range(11, -1, -1)), [3, 0, 7, 5], [8, 2, 11, 1]):
            for row, log_probs in through(rows).items():
                torch.testing.assert_close(log_probs, alone[row], atol=1e-4, rtol=0)
                assert torch.equal(log_probs.argmax(-1), alone[row].argmax(-1))


MUTANTS = [cls for check in CHECKS for cls in [c for c in BROKEN if c.caught_by == check][:1]]


@pytest.mark.parametrize("cls", MUTANTS, ids=lambda cls: f"{cls.caught_by}-{cls.__name__}")
def test_n09_a_plugin_that_breaks_a_rule_is_caught(cls: Any) -> None:
    """One fault for every check, by that check; test_testing_kit has all forty and their side effects."""
    [result] = check_encoder(cls, checks=[cls.caught_by], stacks={cls.where: STACKS[cls.where]})
    assert (result.status, result.check) == ("failed", cls.caught_by)
    assert result.text.startswith(f"{cls.where}: ")


def test_n09_the_command_says_so(trial: Trial, tmp_path: Path) -> None:
    from asrkit.cli import main

    file = tmp_path / "careless.py"
    file.write_text(
        "import asrkit, torch\n"
        "class Norm(torch.nn.BatchNorm1d):\n"
        "    def forward(self, x, mask):\n"
        "        return super().forward(x.transpose(1, 2)).transpose(1, 2)\n"
        "@asrkit.register_encoder('careless')\n"
        "class Careless(asrkit.StackEncoder):\n"
        "    batch_statistics = True\n"
        "    def make_norm(self, size):\n"
        "        return Norm(size)\n",
        encoding="utf-8",
    )
    try:
        code = main(["plugins", "check", "careless", "--plugin", str(file)])
    finally:
        from asrkit import registry

        registry._registered.pop(("encoders", "careless"), None)
    said = trial.capfd.readouterr()
    assert code == 2
    assert "padding_train" in said.out + said.err
