"""Cures that change the loss: a label prior, losses on inner layers; against all alignments, against differences, and
in runs that are stopped."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_training import metrics, weights
from toy import RECIPE, make_corpus, sigterm_after

from asrkit.bundle import load_bundle
from asrkit.checkpoints import Checkpoints
from asrkit.ctc import CTCHead, ctc_loss, renormalized
from asrkit.diagnostics.run import diagnose_run
from asrkit.errors import RecipeError, StoppedError
from asrkit.experiment import check_recipe, train
from asrkit.model import build_model
from asrkit.objective import Objective, listening
from asrkit.recipe import load_recipe
from asrkit.recipe.schema import SCHEMA

TARGETS, TARGET_LENGTHS = torch.tensor([[1, 1, 2], [3, 0, 0], [2, 3, 1]]), torch.tensor([3, 1, 3])
LENGTHS = torch.tensor([6, 4, 5])
DEEP = RECIPE.replace("- bigru: !ref <width>", "- repeat: {times: 3, layers: [norm, {bigru: 8}]}")


def over_all_paths(scores: np.ndarray, target: tuple[int, ...]) -> float:
    """- log of the sum over all V^T paths that collapse to the target of exp(sum of their scores (T, V))."""
    total = 0.0
    for path in itertools.product(range(scores.shape[1]), repeat=scores.shape[0]):
        if tuple(label for label, _ in itertools.groupby(path) if label) == target:
            total += np.exp(sum(scores[t, label] for t, label in enumerate(path)))
    return float(-np.log(total))


def with_prior(alpha: float, log_prior: torch.Tensor, **options: Any) -> Objective:
    objective = Objective(len(log_prior), alpha, True, **{"weight": 0.0, "sizes": [], **options}).double()
    objective.log_prior.copy_(log_prior)
    objective.has_prior.fill_(True)
    return objective


def test_the_loss_with_a_label_prior_is_the_sum_over_alignments_of_its_scores() -> None:
    log_probs = torch.randn(3, 6, 4, dtype=torch.float64).log_softmax(-1)
    log_prior = torch.tensor([0.9, 0.05, 0.03, 0.02], dtype=torch.float64).log()
    total, plain = with_prior(0.6, log_prior)(ctc_loss, log_probs, LENGTHS, [], TARGETS, TARGET_LENGTHS)
    scores = (log_probs - 0.6 * log_prior).numpy()
    for i, length in enumerate(LENGTHS.tolist()):
        target = tuple(TARGETS[i, : TARGET_LENGTHS[i]].tolist())
        assert float(total[i]) == pytest.approx(over_all_paths(scores[i, :length], target), abs=1e-9)
        assert float(plain[i]) == pytest.approx(over_all_paths(log_probs[i, :length].numpy(), target), abs=1e-9)


def test_its_gradient_is_that_of_finite_differences_and_torchs_alone_is_not() -> None:
    """The scores do not sum to 1, and torch's CTC backward takes for granted that they do."""
    log_prior = torch.tensor([0.9, 0.05, 0.03, 0.02], dtype=torch.float64).log()
    objective = with_prior(0.6, log_prior)

    def ours(logits: torch.Tensor) -> torch.Tensor:
        return objective(ctc_loss, logits.log_softmax(-1), LENGTHS, [], TARGETS, TARGET_LENGTHS)[0]

    def naive(logits: torch.Tensor) -> torch.Tensor:
        return ctc_loss(logits.log_softmax(-1) - 0.6 * log_prior, LENGTHS, TARGETS, TARGET_LENGTHS)

    logits = torch.randn(3, 6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ours, (logits,))
    torch.testing.assert_close(ours(logits), naive(logits))
    assert not torch.autograd.gradcheck(naive, (logits,), raise_exception=False)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_model_that_says_blank_everywhere_is_pushed_away_from_it_by_the_prior(alpha: float) -> None:
    """The gradient of blank's logit is p - (how often the alignments use blank), summed over frames: here counted.

    The scores are p / q^alpha with q = p, so with alpha = 1 all alignments count alike, whatever p is; in the plain
    loss those through blank count most, and less is left that would lead away (Zeyer et al. 2021).
    """
    p, target, frames = np.array([0.97, 0.01, 0.01, 0.01]), (1, 2), 6
    weight = used = 0.0
    for path in itertools.product(range(4), repeat=frames):
        if tuple(label for label, _ in itertools.groupby(path) if label) == target:
            share = float(np.prod(p[list(path)] ** (1 - alpha)))
            weight, used = weight + share, used + share * path.count(0)
    expected = frames * 0.97 - used / weight
    logits = torch.tensor(p).log().expand(1, frames, 4).clone().requires_grad_()
    objective = with_prior(alpha, torch.tensor(p).log())
    batch = torch.tensor([frames]), [], torch.tensor([target]), torch.tensor([2])
    objective(ctc_loss, logits.log_softmax(-1), *batch)[0].sum().backward()
    assert logits.grad is not None
    assert float(logits.grad[0, :, 0].sum()) == pytest.approx(expected, rel=1e-6)
    assert expected == pytest.approx({0.0: 1.84, 0.5: 1.96, 1.0: 3.42}[alpha], abs=0.02)


def test_the_prior_is_the_mean_posterior_of_real_frames_of_the_epoch_before() -> None:
    objective, head = Objective(4, 0.5, True, 0.0, []), CTCHead(3, 4, decode_prior=0.3)
    kept: list[np.ndarray] = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        log_probs = torch.randn(3, 6, 4).log_softmax(-1)
        total, plain = objective(ctc_loss, log_probs, LENGTHS, [], TARGETS, TARGET_LENGTHS)
        assert torch.equal(total, plain)  # no prior in the first epoch
        kept += [log_probs[i, :n].double().exp().numpy() for i, n in enumerate(LENGTHS.tolist())]
    objective.end_epoch(head)
    expected = np.log(np.concatenate(kept).mean(0))
    np.testing.assert_allclose(objective.log_prior.numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(head.log_prior.numpy(), expected, rtol=1e-5)
    assert float(objective.frames) == 0.0
    objective.end_epoch(head)  # an epoch whose batches were all refused leaves the prior as it is
    np.testing.assert_allclose(objective.log_prior.numpy(), expected, rtol=1e-5)


def test_decoding_with_the_prior_gives_probabilities_and_only_in_evaluation() -> None:
    head = CTCHead(3, 4, decode_prior=0.5)
    head.log_prior.copy_(torch.tensor([0.97, 0.01, 0.01, 0.01]).log())
    x = torch.randn(2, 5, 3)
    p = head.train()(x).detach().double().exp().numpy()
    expected = p / np.array([0.97, 0.01, 0.01, 0.01]) ** 0.5
    got = head.eval()(x).detach().exp().numpy()
    np.testing.assert_allclose(got, expected / expected.sum(-1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_renormalized_adds_a_constant_a_frame(scale: float) -> None:
    log_probs, log_prior = torch.randn(2, 5, 4).log_softmax(-1), torch.randn(4)
    scores, constants = renormalized(log_probs, log_prior, scale)
    torch.testing.assert_close(scores + constants.unsqueeze(-1), log_probs - scale * log_prior)
    torch.testing.assert_close(scores.logsumexp(-1), torch.zeros(2, 5))


# --- inner layers


def deep(folder: Path, *overrides: tuple[str, Any], text: str = DEEP) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "deep.yaml").write_text(text, encoding="utf-8")
    options = [("data.cache", str(folder / "cache")), *((key, str(value)) for key, value in overrides)]
    return load_recipe(folder / "deep.yaml", options, known=SCHEMA)


def test_the_loss_is_the_weighted_mean_with_the_losses_of_the_inner_layers(tmp_path: Path) -> None:
    """Written out from the formula of the paper, on what the layers themselves give."""
    recipe = deep(tmp_path, ("ctc.intermediate", "{weight: 0.3, after: [1, 2]}"))
    acoustic = build_model(recipe, 9).acoustic.train()
    for module in acoustic.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    acoustic.spec_augment = torch.nn.Identity()
    objective = acoustic.objective
    assert isinstance(objective, Objective)
    features, lengths = torch.randn(3, 30, 16), torch.tensor([30, 22, 27])
    with listening(objective) as inner:
        log_probs, out = acoustic(features, lengths)
    total, plain = objective(ctc_loss, log_probs, out, inner, TARGETS, TARGET_LENGTHS)

    x, n = acoustic.cmvn(features, lengths), lengths
    losses, recurrent = [], 0
    stack = [inside for layer in acoustic.encoder.stack.layers for inside in getattr(layer, "layers", [layer])]
    for layer in stack:
        x, n = layer(x, n)
        if hasattr(layer, "recurrent") and recurrent < 2:
            scores = x @ objective.heads[recurrent].linear.weight.T + objective.heads[recurrent].linear.bias
            losses.append(ctc_loss(scores.log_softmax(-1), n, TARGETS, TARGET_LENGTHS))
            recurrent += 1
    final = ctc_loss(acoustic.head(x), n, TARGETS, TARGET_LENGTHS)
    torch.testing.assert_close(plain, final)
    torch.testing.assert_close(total, 0.7 * final + 0.15 * (losses[0] + losses[1]))
    total.sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in objective.heads.parameters())


def test_the_middle_layer_is_the_default_and_a_residual_block_gives_its_sum(tmp_path: Path) -> None:
    recipe = deep(tmp_path, ("ctc.intermediate.weight", 0.5))
    acoustic = build_model(recipe, 9).acoustic
    assert acoustic.objective is not None
    assert acoustic.objective.watched == [acoustic.encoder.stack.layers[4].layers[1]]  # the first of three
    residual = deep(
        tmp_path, ("ctc.intermediate.weight", 0.5), text=DEEP.replace("times: 3", "times: 4, residual: true")
    )
    acoustic = build_model(residual, 9).acoustic
    assert acoustic.objective is not None
    assert acoustic.objective.watched == [acoustic.encoder.stack.layers[4].layers[1]]  # the second of four


def test_inner_layers_that_are_not_there_are_refused(tmp_path: Path) -> None:
    for after in ("[3]", "[1, 7]"):
        with pytest.raises(RecipeError, match=r"possible: 1 to 2, an inner layer"):
            build_model(deep(tmp_path, ("ctc.intermediate", f"{{weight: 0.3, after: {after}}}")), 9)
    with pytest.raises(RecipeError, match="with 1 recurrent entries"):
        build_model(deep(tmp_path, ("ctc.intermediate.weight", 0.3), text=RECIPE), 9)
    faulty = deep(tmp_path, ("ctc.label_prior", 0.3), ("defects", "[zero_infinity]"))
    with pytest.raises(RecipeError, match="with the defect zero_infinity"):
        check_recipe(faulty)


def test_cures_of_the_loss_leave_the_first_weights_as_they_are(tmp_path: Path) -> None:
    plain = build_model(deep(tmp_path), 9).acoustic
    assert plain.objective is None
    cured = build_model(
        deep(tmp_path, ("ctc", "{label_prior: 0.5, decode_prior: 0.2, intermediate: {weight: 0.3}, blank_bias: -1.5}")),
        9,
    ).acoustic
    mine, theirs = dict(cured.named_parameters()), dict(plain.named_parameters())
    assert all(torch.equal(mine[name], value) for name, value in theirs.items() if name != "head.linear.bias")
    difference = (mine["head.linear.bias"] - theirs["head.linear.bias"]).tolist()
    assert difference == pytest.approx([-1.5] + [0.0] * 8)


# --- whole runs

CURES = {
    "prior": [("ctc.label_prior", 0.5), ("ctc.decode_prior", 0.3)],
    "intermediate": [("ctc.intermediate.weight", 0.3)],
    "sorted": [("training.first_epoch", "ascending")],
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def trained(folder: Path, corpus: Path, *overrides: tuple[str, Any], output: str = "run") -> Any:
    recipe = deep(folder, ("data.root", corpus), *overrides)
    return train(recipe, "", folder / output, say=lambda _: None)


@pytest.mark.parametrize("name", CURES)
def test_a_stopped_run_goes_on_bit_by_bit(tmp_path: Path, corpus: Path, name: str) -> None:
    """Stopped in the second epoch, half-way through the sums of its prior."""
    whole = trained(tmp_path, corpus, *CURES[name], output="whole")
    steps = whole.last["step"] // 3
    with pytest.raises(StoppedError), sigterm_after(steps + max(steps // 2, 1)):
        trained(tmp_path, corpus, *CURES[name], output="cut")
    again = trained(tmp_path, corpus, *CURES[name], output="cut")
    assert weights(again.folder) == weights(whole.folder)
    assert metrics(again.folder) == metrics(whole.folder)
    base = trained(tmp_path, corpus, output="base")
    assert weights(base.folder) != weights(whole.folder)
    assert "objective" not in base.last["train"]
    if name != "sorted":
        assert whole.last["train"]["objective"] != whole.last["train"]["loss"]


def test_a_model_keeps_nothing_of_the_loss_but_its_prior(tmp_path: Path, corpus: Path) -> None:
    result = trained(tmp_path, corpus, *CURES["prior"], *CURES["intermediate"])
    bundle = load_bundle(result.bundle)
    names = set(bundle.model.acoustic.state_dict())
    assert not [name for name in names if name.startswith("objective")]
    assert bundle.config["recipe"]["ctc"] == {"decode_prior": 0.3}
    newest = Checkpoints(result.folder / "checkpoints").latest()
    assert newest is not None
    prior = newest.model()["objective.log_prior"]
    assert torch.allclose(prior.double().exp().sum(), torch.tensor(1.0, dtype=torch.float64), atol=1e-4)
    assert bundle.model.acoustic.head.log_prior.shape == prior.shape
    assert bundle.config["parameters"] == sum(p.numel() for p in bundle.model.acoustic.parameters())
    plain = load_bundle(trained(tmp_path, corpus, output="plain").bundle)
    assert "ctc" not in plain.config["recipe"]
    assert names - set(plain.model.acoustic.state_dict()) == {"head.log_prior"}


def test_a_refused_batch_is_not_in_the_prior(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from asrkit.training import CTCBrain

    fit_batch = CTCBrain.fit_batch
    seen: list[float] = []

    def poisoned(brain: CTCBrain, batch: Any) -> torch.Tensor:
        objective = brain.model.acoustic.objective
        assert objective is not None
        before = objective.posteriors.clone()
        if brain.position.batch == 1:
            with torch.no_grad():
                brain.model.acoustic.head.linear.bias[1] = float("nan")
        result = fit_batch(brain, batch)
        if brain.position.batch == 1:
            assert torch.equal(objective.posteriors, before)
            with torch.no_grad():
                brain.model.acoustic.head.linear.bias[1] = 0.0
        seen.append(float(objective.frames))
        return result

    monkeypatch.setattr(CTCBrain, "fit_batch", poisoned)
    result = trained(tmp_path, corpus, ("ctc.label_prior", 0.5), ("training.epochs", 1))
    assert result.last["train"]["refused_batches"] == 1
    assert seen[0] == seen[1] < seen[2]


def test_inner_losses_with_half_precision(tmp_path: Path, corpus: Path) -> None:
    """The layers give bfloat16, their output layers count in float32."""
    options = [*CURES["intermediate"], ("training.precision", "bf16"), ("training.epochs", 1)]
    figures = trained(tmp_path, corpus, *options).last["train"]
    assert 0 < figures["objective"] < 100
    assert "refused_batches" not in figures


def test_the_diagnosis_does_not_take_layers_of_training_for_findings(tmp_path: Path, corpus: Path) -> None:
    """Output layers of inner layers give no output; after 30 updates the trained weights are looked at too."""
    options = [("training.epochs", 10), ("training.evaluate_every", 10)]
    result = trained(tmp_path, corpus, *CURES["prior"], *CURES["intermediate"], *options)
    assert result.last["step"] >= 30
    found = diagnose_run(result.folder)
    assert found.without_data is None
    assert [one for one in found.findings if "objective" in f"{one.layer} {one.measured}"] == []
    plain = diagnose_run(trained(tmp_path, corpus, *options, output="plain").folder)
    assert {one.code for one in found.findings if one.severity == "error"} <= {one.code for one in plain.findings}
