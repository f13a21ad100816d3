"""Learning-rate curves against torch's own, one clip over all groups, decay that spares vectors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from asrkit.errors import RecipeError
from asrkit.recipe.schema import SCHEMA
from asrkit.training.schedules import clip_gradients, learning_rate, make_optimizer

OPTIONS = SCHEMA["training"]


@pytest.mark.parametrize("anneal", ["cosine", "linear"])
def test_onecycle_equals_torch(anneal: str) -> None:
    steps = 101
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=2e-3,
        total_steps=steps,
        anneal_strategy="cos" if anneal == "cosine" else "linear",
        pct_start=0.31,
    )
    options = OPTIONS | {"schedule": "onecycle", "lr": 2e-3, "anneal": anneal, "warmup_share": 0.3}
    for step in range(steps):
        # torch's peak lies at pct_start * steps - 1 of steps - 1 updates: here at 0.303 of the way, ours at 0.3
        assert learning_rate(step / (steps - 1), options) == pytest.approx(optimizer.param_groups[0]["lr"], abs=3e-5)
        optimizer.step()
        if step < steps - 1:
            reference.step()


def test_warmup_and_constant() -> None:
    options = OPTIONS | {"schedule": "warmup", "lr": 1.0, "warmup_share": 0.1, "hold_share": 0.4, "final_share": 0.01}
    assert learning_rate(0.05, options) == pytest.approx(0.5)
    assert learning_rate(0.3, options) == 1.0
    assert learning_rate(0.75, options) == pytest.approx((1 + 0.01) / 2)
    assert learning_rate(1.0, options) == pytest.approx(0.01)
    assert learning_rate(0.7, OPTIONS | {"schedule": "constant", "lr": 0.3}) == 0.3


def test_unknown_names_say_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'onecycle'"):
        learning_rate(0.1, OPTIONS | {"schedule": "one_cycle"})
    with pytest.raises(RecipeError, match="did you mean 'adamw'"):
        make_optimizer(nn.Linear(2, 2), OPTIONS | {"optimizer": "adamW"})


def test_one_clip_over_all_groups() -> None:
    """Gradients of matrices and of vectors are scaled by the same factor, from their joint norm."""
    model = nn.Linear(3, 2)
    optimizer = make_optimizer(model, OPTIONS)
    assert len(optimizer.param_groups) == 2
    model.weight.grad, model.bias.grad = torch.full((2, 3), 30.0), torch.full((2,), 40.0)
    norm, by_layer = clip_gradients(nn.ModuleDict({"head": model}), 1.0)
    assert by_layer == {"ctc": pytest.approx(norm)}
    assert norm == pytest.approx((6 * 900 + 2 * 1600) ** 0.5)
    joint = torch.cat([model.weight.grad.flatten(), model.bias.grad])
    assert joint.norm() == pytest.approx(1.0, abs=1e-5)
    assert (model.bias.grad[0] / model.weight.grad[0, 0]).item() == pytest.approx(4 / 3)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_decay_spares_biases_and_gains(name: str) -> None:
    optimizer = make_optimizer(nn.Linear(3, 2), OPTIONS | {"optimizer": name, "weight_decay": 0.1})
    decays = {p.dim(): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays == {2: 0.1, 1: 0.0}
