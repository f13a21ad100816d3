"""The checks of batches, models and runs: each fault by its code, plain PyTorch code that never heard of asrkit, and
silence on what is healthy."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor, nn
from toy import make_corpus, toy_recipe

from asrkit.bundle import Bundle, load_bundle
from asrkit.cli import main
from asrkit.diagnostics import (
    CATALOG,
    Finding,
    check_ctc_batch,
    check_features,
    check_loss,
    check_model,
    input_blind_floor,
    phase,
)
from asrkit.diagnostics.findings import finding, gather, sort
from asrkit.diagnostics.progress import judge_epochs
from asrkit.diagnostics.run import Diagnosis, diagnose_run
from asrkit.errors import DataError
from asrkit.experiment import train
from asrkit.recipe import load_recipe
from asrkit.recipe.schema import SCHEMA
from asrkit.runs import MetricsLog

ROOT = Path(__file__).resolve().parents[1]


def codes(findings: list[Finding]) -> set[str]:
    return {one.code for one in findings}


# --- one batch


def healthy_batch() -> dict[str, Any]:
    """Four utterances, seven labels, stride 2."""
    return {
        "log_probs": torch.randn(4, 30, 7).log_softmax(-1),
        "lengths": torch.tensor([30, 25, 20, 12]),
        "targets": torch.tensor([[1, 2, 3], [4, 4, 0], [5, 0, 0], [6, 1, 2]]),
        "target_lengths": torch.tensor([3, 2, 1, 3]),
        "input_lengths": torch.tensor([60, 50, 40, 24]),
    }


def softmax_twice() -> Tensor:
    return (3 * torch.randn(4, 30, 7)).softmax(-1).log_softmax(-1)


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "mel axis": ({"lengths": torch.full((4,), 8)}, "lengths_wrong_axis"),
    "another order": ({"lengths": torch.tensor([30, 12, 20, 25])}, "lengths_wrong_axis"),
    "all padded": ({"lengths": torch.full((4,), 30)}, "lengths_wrong_axis"),
    "stride taken twice": ({"lengths": torch.tensor([15, 12, 10, 6])}, "lengths_off_by_factor"),
    "stride forgotten": ({"lengths": torch.tensor([60, 50, 40, 24])}, "lengths_off_by_factor"),
    "one too many": ({"lengths": torch.tensor([31, 25, 20, 12])}, "lengths_off_by_factor"),
    "too short": (
        {"lengths": torch.tensor([30, 25, 20, 2]), "input_lengths": torch.tensor([60, 50, 40, 4])},
        "impossible_targets",
    ),
    "repeat without a frame": (
        {"targets": torch.full((4, 12), 3), "target_lengths": torch.tensor([3, 3, 3, 7])},
        "impossible_targets",
    ),
    "label too large": (
        {"targets": torch.tensor([[1, 2, 3], [4, 7, 0], [5, 0, 0], [6, 1, 2]])},
        "targets_out_of_range",
    ),
    "negative label": (
        {"targets": torch.tensor([[1, 2, -1], [4, 4, 0], [5, 0, 0], [6, 1, 2]])},
        "targets_out_of_range",
    ),
    "blank in a target": (
        {"targets": torch.tensor([[1, 0, 3], [4, 4, 0], [5, 0, 0], [6, 1, 2]])},
        "targets_out_of_range",
    ),
    "target length": ({"target_lengths": [4, 2, 1, 3]}, "targets_out_of_range"),
    "logits": ({"log_probs": torch.randn(4, 30, 7)}, "log_softmax_missing"),
    "probabilities": ({"log_probs": torch.randn(4, 30, 7).softmax(-1)}, "log_softmax_missing"),
    "over time": ({"log_probs": torch.randn(4, 30, 7).log_softmax(1)}, "log_softmax_missing"),
    "twice": ({"log_probs": softmax_twice()}, "log_softmax_twice"),
    "nan": ({"log_probs": torch.full((4, 30, 7), float("nan"))}, "nan"),
    "no labels": ({"target_lengths": torch.zeros(4, dtype=torch.long)}, "empty_targets"),
    "all lengths 0": (
        {"lengths": torch.zeros(4), "targets": torch.ones(4, 1), "target_lengths": torch.tensor([1, 1, 1, 1])},
        "lengths_off_by_factor",
    ),
    "a length that is no number": ({"lengths": torch.tensor([30, 25, float("nan"), 12])}, "lengths_off_by_factor"),
    "stride taken twice, inputs of one length": (
        {"lengths": torch.full((4,), 15), "input_lengths": torch.full((4,), 30)},
        "lengths_off_by_factor",
    ),
    "half a label": ({"targets": torch.tensor([[1.5, 2, 3], [4, 4, 0], [5, 0, 0], [6, 1, 2]])}, "targets_out_of_range"),
}
CONSEQUENCES_OF_LENGTHS = {"all lengths 0": {"impossible_targets"}}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_of_a_batch_is_named_and_nothing_else(name: str) -> None:
    change, code = FAULTS[name]
    batch = healthy_batch() | {k: torch.as_tensor(v) for k, v in change.items()}
    found = check_ctc_batch(**batch)
    expected = {code} | CONSEQUENCES_OF_LENGTHS.get(name, set())
    assert codes(found) == expected
    assert all(one.measured and one.why and one.fix for one in found)
    # As torch's own loss takes them: time first, targets one after the other.
    if name != "target length":
        flat = torch.cat([row[:n] for row, n in zip(batch["targets"], batch["target_lengths"], strict=True)])
        other = batch | {"log_probs": batch["log_probs"].transpose(0, 1), "targets": flat}
        assert codes(check_ctc_batch(**other, batch_first=False)) == expected


def test_arguments_that_are_not_tensors_or_no_batch() -> None:
    """Numpy's arrays do; what cannot be read is refused in words."""
    batch = healthy_batch()
    assert check_ctc_batch(**{key: value.numpy() for key, value in batch.items()}) == []
    assert check_ctc_batch(**batch | {"blank": 0}) == []
    for change, words in (
        ({"log_probs": "text"}, "log_probs: a str that torch cannot read"),
        ({"log_probs": torch.randn(30, 7), "lengths": torch.tensor(30)}, r"lengths \(\).*a batch of one: x.None."),
        ({"target_lengths": 3}, r"target lengths \(\)"),
        ({"lengths": ["a"] * 4}, "lengths: a list that torch cannot read"),
        ({"targets": ["hola", "a", "b", "c"]}, "targets: a str that torch cannot read"),
        ({"blank": 7}, "blank 7 of 7 labels; possible: 0 to 6"),
        ({"blank": -1}, "blank -1 of 7 labels.*blank=6"),
    ):
        with pytest.raises(DataError, match=words) as error:
            check_ctc_batch(**batch | change)
        assert error.value.reason == "shapes"
    x = torch.randn(2, 30, 5)
    assert check_features(x, [30, 20]) == []
    with pytest.raises(DataError, match="lengths"):
        check_features(x, [30, 20, 10])
    for loss in (nn.CTCLoss(blank=28), nn.CTCLoss(blank=28, zero_infinity=True)):
        assert codes(check_loss(loss)) == ({"zero_infinity"} if loss.zero_infinity else set())
    with pytest.raises(DataError, match="blank -1"):
        check_loss(nn.CTCLoss(blank=-1))


def test_healthy_batches_raise_nothing() -> None:
    for seed in range(50):
        torch.manual_seed(seed)
        size = int(torch.randint(1, 9, ()))
        inputs = torch.randint(40, 400, (size,))
        lengths = (inputs + 1) // 2 - 1  # a convolution without padding
        labels = torch.randint(1, 30, (size, 5))
        log_probs = (torch.randn(size, int(lengths.max()), 30) * 10 ** (seed / 25 - 1)).log_softmax(-1)
        sizes = torch.randint(1, 6, (size,))
        for kind in (torch.float32, torch.bfloat16):
            assert check_ctc_batch(log_probs.to(kind), lengths, labels, sizes, input_lengths=inputs) == []
        assert check_ctc_batch(log_probs, lengths, labels, sizes) == []
    # An untrained head that is flat is no softmax of a softmax.
    flat = torch.zeros(2, 9, 30).log_softmax(-1)
    assert check_ctc_batch(flat, torch.tensor([9, 7]), torch.ones(2, 1, dtype=torch.long), torch.tensor([1, 1])) == []


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("labels", [29, 400])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_a_softmax_taken_twice_is_seen_in_every_precision_and_scale(
    scale: float, labels: int, kind: torch.dtype
) -> None:
    """0.1: an untrained recurrent model's scores. What is left of them is less than bfloat16's steps of 400 labels."""
    torch.manual_seed(0)
    scores = (scale * torch.randn(4, 30, labels)).to(kind)
    targets = torch.tensor([[1, 2, 3]] * 4)
    once, twice = scores.log_softmax(-1), scores.softmax(-1).log_softmax(-1)
    arguments = (torch.tensor([30, 25, 20, 12]), targets, torch.full((4,), 3))
    assert check_ctc_batch(once, *arguments) == []
    if not bool((twice == twice[0, 0, 0]).all()):
        assert codes(check_ctc_batch(twice, *arguments)) == {"log_softmax_twice"}
    assert check_ctc_batch(torch.zeros(4, 30, labels, dtype=kind).log_softmax(-1), *arguments) == []


def test_what_lies_beyond_the_lengths_is_nobodys_business() -> None:
    """A head on packed frames leaves zeros there, other code NaN; CTC reads neither."""
    batch = healthy_batch()
    for value in (0.0, float("nan")):
        for row, n in zip(batch["log_probs"], batch["lengths"].tolist(), strict=True):
            row[n:] = value
        assert check_ctc_batch(**batch) == []
    batch["log_probs"][1, 24, 3] = float("nan")
    (found,) = check_ctc_batch(**batch)
    assert found.code == "nan"
    assert "utterances [1]" in found.measured


def test_inputs_that_were_padded_beyond_the_longest() -> None:
    """60 frames of 200: with T known the lengths are right, a stride forgotten or taken twice is not."""
    batch = healthy_batch() | {"log_probs": torch.randn(4, 100, 7).log_softmax(-1)}
    assert check_ctc_batch(**batch, input_frames=200) == []
    assert codes(check_ctc_batch(**batch)) == {"lengths_off_by_factor"}
    for factor in (0.5, 2):
        lengths = (batch["lengths"] * factor).long()
        (found,) = check_ctc_batch(**{**batch, "lengths": lengths}, input_frames=200)
        assert found.code == "lengths_off_by_factor"
        assert "30 are of real input" in found.measured


def test_target_lengths_that_cannot_be() -> None:
    batch = healthy_batch()
    flat = torch.tensor([1, 2, 3, 4, 4, 5, 6, 1, 2, 2, 2])
    for change, words in (
        ({"target_lengths": torch.tensor([3, -1, 1, 3])}, "the target length of utterance 1 is -1"),
        ({"targets": flat}, "11 targets one after the other, and target lengths that add up to 9"),
    ):
        (found,) = check_ctc_batch(**{**batch, **change})
        assert (found.code, found.measured) == ("targets_out_of_range", words)
    assert check_ctc_batch(**{**batch, "targets": [[1, 2, 3], [4, 4], [5], [6, 1, 2]]}) == []


def test_outputs_time_first_are_refused_with_the_way_out() -> None:
    batch = healthy_batch()
    with pytest.raises(DataError, match=r"look like \(T', B, V\).*fix: pass batch_first=False"):
        check_ctc_batch(**{**batch, "log_probs": batch["log_probs"].transpose(0, 1)})
    with pytest.raises(DataError, match="fix: pass batch_first=True"):
        check_ctc_batch(**batch, batch_first=False)
    with pytest.raises(DataError, match=r"lengths \(4, 3\).*one number for each utterance"):  # torch's own order
        check_ctc_batch(batch["log_probs"], batch["targets"], batch["lengths"], batch["target_lengths"])


def test_a_last_softmax_is_one_or_two() -> None:
    """An oracle for the flat outputs: p is a distribution, and log_softmax(p) gives what was seen."""
    once = softmax_twice()
    p = once.double() + (1 - once.double().sum(-1, keepdim=True)) / 7
    assert torch.allclose(p.log_softmax(-1), once.double(), atol=1e-5)
    assert float(p.min()) > -1e-6


def test_the_loss_is_asked() -> None:
    def loss(log_probs: Tensor, lengths: Tensor, targets: Tensor, sizes: Tensor) -> Tensor:
        return nn.functional.ctc_loss(log_probs.transpose(0, 1), targets, lengths, sizes, zero_infinity=True)

    def honest(log_probs: Tensor, lengths: Tensor, targets: Tensor, sizes: Tensor) -> Tensor:
        return nn.functional.ctc_loss(log_probs.transpose(0, 1), targets, lengths, sizes)

    assert codes(check_loss(loss)) == {"zero_infinity"}
    assert check_loss(honest) == []
    for blank in (0, 1, 3):  # torch's module wants targets before lengths
        assert codes(check_loss(nn.CTCLoss(blank=blank, zero_infinity=True))) == {"zero_infinity"}
        assert check_loss(nn.CTCLoss(blank=blank)) == []
    with pytest.raises((TypeError, RuntimeError, ValueError)):  # a call that can give no loss at all is no answer
        check_loss(F.ctc_loss)


def test_lengths_as_torch_takes_them_and_arguments_that_are_no_batch() -> None:
    batch = healthy_batch()
    lists = {key: value.tolist() for key, value in batch.items() if "lengths" in key}
    assert check_ctc_batch(**{**batch, **lists}) == []
    relative = batch["lengths"] / 30
    found = check_ctc_batch(**{**batch, "lengths": relative, "input_lengths": None})
    assert "as relative lengths have it" in next(one for one in found if one.code == "lengths_off_by_factor").measured
    for key, value in (
        ("log_probs", batch["log_probs"][0]), ("lengths", batch["lengths"][:3]), ("targets", batch["targets"][:3]),
        ("target_lengths", [3, 2, 1]), ("input_lengths", [60]),
    ):  # fmt: skip
        with pytest.raises(DataError, match="not one batch: log_probs") as error:
            check_ctc_batch(**{**batch, key: value})
        assert error.value.reason == "shapes"
    batch = healthy_batch() | FAULTS["too short"][0]
    hidden = check_ctc_batch(**batch, losses=torch.tensor([9.0, 8.0, 7.0, 0.0]))
    assert codes(hidden) == {"impossible_targets", "zero_infinity"}


def test_linear_features() -> None:
    power = torch.randn(2, 50, 16).mul(3).exp()
    lengths = torch.tensor([50, 30])
    assert codes(check_features(power, lengths)) == {"linear_features"}
    assert check_features(power.log(), lengths) == []
    assert check_features(power.log1p(), lengths) == []
    power[1, 30:] = float("nan")  # padding is nobody's business
    assert codes(check_features(power.log(), lengths)) == set()
    power[1, 3] = float("nan")
    assert codes(check_features(power.log(), lengths)) == {"nan"}


# --- models that never heard of asrkit


class Plain(nn.Module):
    """Somebody's model: two packed GRUs, a norm of every frame, a linear layer; faults by keyword."""

    def __init__(
        self, *, norm: str = "layer", packed: bool = True, time_first: bool = False, carry: bool = False
    ) -> None:
        super().__init__()
        self.first = nn.GRU(6, 16, bidirectional=True, batch_first=not time_first)
        self.norm = nn.LayerNorm(32) if norm == "layer" else nn.BatchNorm1d(32)
        self.relu = nn.ReLU()
        self.second = nn.GRU(32, 16, bidirectional=True, batch_first=True)
        self.out = nn.Linear(32, 9)
        self.packed, self.time_first, self.carry = packed, time_first, carry
        self.state: Tensor | None = None

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        h = self.first(x, self.state)[0] if self.time_first else self.recur(self.first, x, lengths)
        h = self.norm(h) if isinstance(self.norm, nn.LayerNorm) else self.norm(h.transpose(1, 2)).transpose(1, 2)
        return self.out(self.recur(self.second, self.relu(h), lengths)).log_softmax(-1)

    def recur(self, layer: nn.GRU, x: Tensor, lengths: Tensor) -> Tensor:
        if not self.packed:
            y, state = layer(x, self.state if layer is self.first else None)
            if self.carry and layer is self.first:
                self.state = state.detach()
            return y
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return nn.utils.rnn.pad_packed_sequence(layer(packed)[0], batch_first=True, total_length=x.shape[1])[0]


def speech(batch: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features (B, 60, 6), lengths, targets, target lengths."""
    lengths = torch.tensor([60, 52, 44, 40, 31][:batch])
    x = torch.randn(batch, 60, 6).cumsum(1) / 4
    for row, n in zip(x, lengths.tolist(), strict=True):
        row[n:] = 0
    return x, lengths, torch.randint(1, 9, (batch, 6)), torch.tensor([6, 5, 4, 3, 2][:batch])


def test_a_plain_model_is_healthy_and_stays_untouched() -> None:
    model, batch = Plain(), speech()
    model.train()
    model.second.eval()
    model.out.weight.grad = torch.ones_like(model.out.weight)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state, modes = torch.get_rng_state(), [m.training for m in model.modules()]
    assert check_model(model, *batch) == []
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(model.out.weight.grad, torch.ones_like(model.out.weight))
    assert model.first.weight_ih_l0.grad is None
    # A function, its model named, time first.
    assert check_model(lambda x, n: model(x, n).transpose(0, 1), *batch, model=model, batch_first=False) == []


def broken(name: str) -> tuple[nn.Module, bool]:
    """A model with one fault, and whether it counts as trained."""
    model = Plain(
        norm="batch" if name in ("padding_in_statistics", "train_eval_mismatch", "batch_too_small_for_bn") else "layer",
        packed=name not in ("padding_first", "leaked_state"),
        time_first=name == "recurrence_over_batch",
        carry=name == "leaked_state",
    )
    with torch.no_grad():
        if name == "wild_bias_scale":
            nn.init.normal_(model.second.bias_ih_l0)
            nn.init.normal_(model.second.bias_hh_l0)
        elif name == "wild_weight_scale":
            nn.init.normal_(model.out.weight)
        elif name == "input_independent_layer":
            model.norm.weight.zero_()
        elif name == "dead_relus":
            model.norm.bias.fill_(-9.0)
        elif name == "nan":
            model.second.weight_hh_l0[0, 0] = float("nan")
        elif name == "exploding_gradients":
            model.first.weight_ih_l0.mul_(1e-9)
            model.norm = nn.LayerNorm(32, eps=1e-30)
            for p in model.first.parameters():
                p.mul_(1e-9)
    return model, name in ("train_eval_mismatch", "dead_relus", "input_independent_layer")


# What else is true of a model with this fault.
CONSEQUENCES = {
    "leaked_state": {"padding_first"},  # it does not pack
    "train_eval_mismatch": {"padding_in_statistics"},  # torch's batch norm sees the padding, too
    "batch_too_small_for_bn": {"padding_in_statistics"},
    "padding_in_statistics": set(),
    "dead_relus": {"input_independent_layer", "vanishing_gradients"},
    "input_independent_layer": {"dead_relus", "vanishing_gradients"},
    "exploding_gradients": {"wild_weight_scale"},
}


@pytest.mark.parametrize(
    "name",
    [
        "padding_first", "padding_in_statistics", "recurrence_over_batch", "leaked_state", "wild_bias_scale",
        "wild_weight_scale", "input_independent_layer", "dead_relus", "nan", "exploding_gradients",
        "train_eval_mismatch", "batch_too_small_for_bn",
    ],
)  # fmt: skip
def test_each_fault_of_a_plain_model_is_named(name: str) -> None:
    model, trained = broken(name)
    found = codes(check_model(model, *speech(3 if name == "batch_too_small_for_bn" else 5), trained=trained))
    assert name in found
    assert found <= {name} | CONSEQUENCES.get(name, set())


def test_statistics_of_the_batch_in_evaluation() -> None:
    """A batch norm without running averages: another utterance's content changes what this one gets."""
    model = Plain(norm="batch")
    model.norm = nn.BatchNorm1d(32, track_running_stats=False)
    assert "train_eval_mismatch" in codes(check_model(model, *speech()))


def test_a_batch_norm_that_has_learned_its_statistics_is_no_mismatch() -> None:
    model = Plain(norm="batch")
    for _ in range(60):
        model.train()(*speech()[:2])
    assert "train_eval_mismatch" not in codes(check_model(model, *speech(), trained=True))


def test_vanishing_gradients() -> None:
    """Eleven layers with ReLU, no norm and large biases, as the notebooks had them; with residuals it is gone."""

    class Deep(nn.Module):
        def __init__(self, residual: bool) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.GRU(16, 16, batch_first=True) for _ in range(11))
            self.into, self.out, self.residual = nn.Linear(6, 16), nn.Linear(16, 9), residual

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            h = self.into(x)
            for layer in self.layers:
                y = layer(h.relu())[0]
                h = h + y if self.residual else y
            return self.out(h).log_softmax(-1)

    found = codes(check_model(Deep(False), *speech()))
    assert "vanishing_gradients" in found
    assert codes(check_model(Deep(True), *speech())) == set()


# --- the floor and the phases


def test_the_floor_against_every_path_by_numpy() -> None:
    """All alignments of short utterances enumerated, the best constant distribution found by scipy."""
    labels, frames, size = [[1, 2], [2, 2], [1]], [4, 4, 3], 3

    def collapse(path: tuple[int, ...]) -> list[int]:
        return [label for label, _ in itertools.groupby(path) if label]

    paths = [
        [p for p in itertools.product(range(size), repeat=n) if collapse(p) == row]
        for row, n in zip(labels, frames, strict=True)
    ]
    counts = [np.array([[p.count(v) for v in range(size)] for p in some]) for some in paths]

    def nll(logits: np.ndarray) -> float:
        log_p = logits - np.log(np.exp(logits).sum())
        return -sum(np.log(np.exp(c @ log_p).sum()) for c in counts) / sum(map(len, labels))

    best = minimize(nll, np.zeros(size)).fun
    floor = input_blind_floor(labels, frames, size)
    assert floor is not None
    assert floor.loss == pytest.approx(best, rel=2e-3)
    assert floor.loss >= best - 1e-9
    assert float(floor.probabilities.sum()) == pytest.approx(1.0)


def test_the_floor_of_nothing_and_of_the_impossible() -> None:
    assert input_blind_floor([], [], 4) is None
    assert input_blind_floor([[1, 1]], [2], 4) is None
    possible = input_blind_floor([[1, 2]], [9], 4)
    both = input_blind_floor([[1, 2], [3, 3]], [9, 2], 4)
    assert possible is not None
    assert both is not None
    assert both.loss == pytest.approx(possible.loss / 2, rel=1e-2)  # labels that bring no loss, as in a mean with zeros


def test_a_sampled_floor_is_the_floor() -> None:
    """Of labels that are as unequal as those of a language: against all texts, and the p that gradients find."""
    rng = np.random.default_rng(0)
    shares = 1.0 / np.arange(1, 31) ** 1.2
    labels = [(1 + rng.choice(30, rng.integers(3, 60), p=shares / shares.sum())).tolist() for _ in range(260)]
    frames = [int(2 * len(row) * rng.uniform(0.9, 2.0)) for row in labels]
    sampled = input_blind_floor(labels, frames, 31)
    assert sampled is not None
    targets, sizes = torch.tensor([label for row in labels for label in row]), torch.tensor([len(r) for r in labels])
    logits = torch.bincount(targets, minlength=31).double()
    logits[0] = 2 * len(targets)
    logits = (logits + 1).log().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=5, line_search_fn="strong_wolfe")

    def nll() -> torch.Tensor:
        optimizer.zero_grad()
        log_probs = logits.log_softmax(0).expand(max(frames), len(frames), -1)
        loss = F.ctc_loss(log_probs, targets, torch.tensor(frames), sizes, reduction="sum") / sizes.sum()
        loss.backward()
        return loss

    optimizer.step(nll)
    assert sampled.loss == pytest.approx(nll().item(), rel=5e-3)


def test_phases() -> None:
    assert [phase(loss, 3.0) for loss in (4.36, 3.1, 3.0, 2.95, 2.9, 0.1)] == [
        "above_floor", "on_floor", "on_floor", "on_floor", "below_floor", "below_floor",
    ]  # fmt: skip


FADING = {"0.0": 3e-6, "0.2": 2e-5, "1.2": 1e-3, "2": 0.5, "ctc": 1.0}


def epoch(step: int, loss: float, empty: float = 1.0, **train: Any) -> dict[str, Any]:
    figures = {"loss": loss, "empty": empty, "utterances": 80, "updates": 10, **train}
    return {"step": step, "train": figures, "dev": {"empty": empty}}


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        ([epoch(50, 3.0)], {"on_blank_plateau": "note"}),
        ([epoch(200, 3.0), epoch(400, 2.99)], {"collapse": "error"}),
        ([epoch(400, 3.0, empty=0.98)], {}),
        ([epoch(400, 2.9)], {}),  # empty, but it reads something
        ([epoch(160, 5.0), epoch(200, 4.4)], {"lr_too_low": "warning"}),
        ([epoch(50, 9.0), epoch(100, 5.0)], {}),  # too early to say
        ([epoch(100, 3.0), epoch(200, 4.0)], {"lr_too_high": "error"}),
        ([epoch(100, 3.9), epoch(200, 3.5), epoch(290, 3.7)], {"lr_too_high": "warning"}),
        ([epoch(200, 3.5), epoch(400, 3.7)], {"lr_too_high": "warning", "collapse": "error"}),
        ([epoch(100, 1.0, 0.0), epoch(200, 0.5, 0.0)], {}),
        ([epoch(100, 0.5, 0.0), epoch(200, 0.7, 0.0)], {}),  # worse, but it still reads
        ([epoch(100, 1.0, 0.0, refused_batches=2)], {"nan": "error"}),
        ([epoch(100, 1.0, 0.0, utterances=20)], {"batch_too_small_for_bn": "warning"}),
        ([epoch(100, 1.0, 0.0, grad_norm=7e4)], {"exploding_gradients": "warning"}),
        ([epoch(100, 1.0, 0.0, grad_norm=2e4)], {}),  # frame-wise BN in deep stacks, which learn
        ([epoch(100, 1.0, 0.0, grad_norm_by_layer=FADING)], {"vanishing_gradients": "warning"}),
        ([epoch(100, 1.0, 0.0, grad_norm_by_layer=FADING | {"0.2": 4e-4})], {}),  # the first one is a norm
        ([epoch(100, 1.0, 0.0, grad_norm_by_layer={"0": 1e-9, "1": 1e-9, "ctc": 1.0})], {}),  # no depth
        ([epoch(100, 1.0, 0.0, grad_norm=None, grad_norm_by_layer={})], {}),  # all batches refused
        ([], {}),
    ],
)
def test_where_a_run_stands(epochs: list[dict[str, Any]], expected: dict[str, str]) -> None:
    assert {one.code: one.severity for one in judge_epochs(epochs, 3.0, batch_statistics=True)} == expected


@pytest.mark.parametrize(
    ("loss", "weakest", "updates", "empty", "expected"),
    [  # what the 48 runs of docs/results.md came to, floor 3.108
        (2.872, 3e-6, 616, 0.0, {"hears_nothing"}),  # model 3 behind convolutions without a norm: one text for all
        (2.892, 0.047, 616, 0.0, {"hears_nothing"}),  # model 2 with layer norm: two
        (2.857, 0.4, 484, 0.0, set()),  # model 2 without a norm, when it begins to read
        (2.930, 4e-6, 264, 0.0, set()),  # too early to say
        (2.609, 0.05, 616, 0.0, set()),  # no model gets there without hearing
        (2.979, 7e-5, 308, 1.0, {"collapse"}),
        (2.843, 0.53, 308, 1.0, set()),
    ],
)
def test_below_the_floor_and_deaf(loss: float, weakest: float, updates: int, empty: float, expected: set[str]) -> None:
    heard = {"layers.0": 0.9, "layers.4": weakest}
    found = judge_epochs([epoch(updates, loss, empty)], 3.108, dependence=heard)
    assert codes(found) == expected
    assert all("other audio changes layers.4 by" in one.measured for one in found)


def test_findings_are_sorted_and_gathered() -> None:
    some = [finding("nan", "note", "a"), finding("collapse", "error", "b", "x"), finding("collapse", "error", "c", "y")]
    assert [one.measured for one in sort([*some, *some])] == ["b", "c", "a"]
    assert [one.measured for one in gather(gather([*some, *some]))] == ["b (and 1 more layer)", "a"]
    assert str(some[1]).startswith("error[collapse] in x: b; ")


def test_every_code_is_met_by_a_test() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_diagnostics*.py"))
    assert [code for code in CATALOG if f'"{code}"' not in text] == []


# --- runs


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"), train=16, dev=4, test=0)


def test_a_run_writes_its_diagnosis_and_the_command_reads_it(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    recipe = toy_recipe(tmp_path, corpus, ("data.test", "null"), ("training.epochs", 14), ("training.lr", 0.02))
    folder = train(recipe, "", tmp_path / "run", say=said.append).folder
    records = MetricsLog.read(folder / "metrics.jsonl")
    assert [line["findings"] for line in records if line["type"] == "diagnosis"] == [[]]
    epochs = [line for line in records if line["type"] == "epoch"]
    floors = {line["diagnosis"]["floor"] for line in epochs}
    assert len(floors) == 1
    assert epochs[0]["diagnosis"]["phase"] == "above_floor"
    assert epochs[-1]["diagnosis"]["phase"] == "below_floor"
    assert all(0.01 < share < 1.5 for share in epochs[-1]["diagnosis"]["dependence"].values())
    assert set(epochs[-1]["diagnosis"]["dead"]) == {"layers.3.module"} or len(epochs[-1]["diagnosis"]["dead"]) == 1
    assert [line for line in said if line.startswith("diagnosis")] == []
    capsys.readouterr()
    assert main(["diagnose", str(folder), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["findings"] == []
    assert answer["figures"]["phase"] == "below_floor"
    # Without its data the logs are left.
    (corpus / "train.tsv").rename(corpus / "elsewhere.tsv")
    try:
        assert main(["diagnose", str(folder)]) == 0
        assert "only its logs were read" in capsys.readouterr().out
    finally:
        (corpus / "elsewhere.tsv").rename(corpus / "train.tsv")
    assert main(["diagnose", str(tmp_path)]) == 5
    assert "not a run folder" in capsys.readouterr().err


def test_a_diverging_run_is_named_while_it_runs(tmp_path: Path, corpus: Path) -> None:
    said: list[str] = []
    recipe = toy_recipe(
        tmp_path, corpus, ("data.test", "null"), ("training.epochs", 3), ("training.lr", 30.0), ("encoder", "none")
    )
    folder = train(recipe, "", tmp_path / "run", say=said.append).folder
    assert [line for line in said if "lr_too_high" in line]
    assert "lr_too_high" in codes(diagnose_run(folder).findings)


QUESTION = ("model1", "model2", "model3", "model3_conv")
ENCODERS = ("none", "layer_norm", "frame_batch_norm", "sequence_batch_norm")
# True of eleven recurrent layers with ReLU and no norm: they stay blank for ever (normalization-facts 1.8 and 1.9).
TRUE_WARNINGS = {("model3", "none"), ("model3_conv", "none")}


@pytest.mark.parametrize(("model", "encoder"), list(itertools.product(QUESTION, ENCODERS)))
def test_the_healthy_arms_raise_no_alarm(tmp_path: Path, corpus: Path, model: str, encoder: str) -> None:
    options = {
        "encoder": encoder, "width": 8, "data.root": corpus, "data.test": "null", "data.cache": corpus / "cache",
        "training.epochs": 2, "training.batch_frames": 600, "training.tensorboard": "false", "training.curves": "false",
    }  # fmt: skip
    path = ROOT / "recipes" / "common_voice_es" / f"{model}.yaml"
    recipe = load_recipe(path, [(key, str(value)) for key, value in options.items()], known=SCHEMA)
    said: list[str] = []
    folder = train(recipe, "", tmp_path / "run", say=said.append).folder
    found = [one for one in diagnose_run(folder).findings if one.severity != "note"]
    assert [line for line in said if line.startswith("diagnosis")] == []
    assert [one for one in found if one.severity == "error"] == []
    allowed = {"vanishing_gradients", "input_independent_layer"} if (model, encoder) in TRUE_WARNINGS else set()
    assert codes(found) <= allowed


def test_without_checkpoints_the_model_folder_is_looked_at(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cell of a study that is done has none. Running statistics that do not fit the data are found all the same."""
    options = (("data.test", "null"), ("training.epochs", 2), ("encoder", "sequence_batch_norm"))
    folder = train(toy_recipe(tmp_path, corpus, *options), "", tmp_path / "run", say=lambda _: None).folder
    shutil.rmtree(folder / "checkpoints")
    assert "train_eval_mismatch" not in codes(diagnose_run(folder).findings)  # too few updates to judge by
    monkeypatch.setattr("asrkit.diagnostics.run.SETTLED", 1)
    load = load_bundle

    def unfit(path: Path) -> Bundle:
        bundle = load(path)
        for name, buffer in bundle.model.acoustic.named_buffers():
            if name.endswith("running.mean"):
                buffer.fill_(9.0)
        return bundle

    monkeypatch.setattr("asrkit.diagnostics.run.load_bundle", unfit)
    assert "train_eval_mismatch" in codes(diagnose_run(folder).findings)
    assert not (folder / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_trained_model_raises_no_alarm(tmp_path: Path, corpus: Path, encoder: str) -> None:
    """Beyond 30 updates running statistics are judged, too."""
    recipe = toy_recipe(tmp_path, corpus, ("data.test", "null"), ("training.epochs", 16), ("encoder", encoder))
    diagnosis = diagnose_run(train(recipe, "", tmp_path / "run", say=lambda _: None).folder)
    assert diagnosis.figures["update"] > 30
    assert diagnosis.figures["phase"] == "below_floor"
    assert diagnosis.findings == []


@pytest.mark.parametrize(
    ("updates", "early"), [(1, " so far: 1 update tell"), (299, " so far: 299 updates tell"), (300, "")]
)
def test_nothing_found_is_not_said_of_a_run_that_has_hardly_begun(updates: int, early: str) -> None:
    figures = {"epoch": 1, "update": updates, "loss": 3.0, "floor": None, "phase": None, "blank": 0.9, "empty": 0.5}
    last = Diagnosis(Path("run"), [], figures).text().splitlines()[-1]
    assert last.startswith(f"nothing found{early}")
    assert (last == "nothing found") == (updates >= 300)
