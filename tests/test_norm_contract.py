"""What a guest's norm and `wrap` must be: each way to break it is refused in words, when it is built or at its call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asrkit.encoders import StackEncoder
from asrkit.errors import RecipeError
from asrkit.normalization import Rule, Standard
from asrkit.normalization.moments import Moments

INSIDE = [{"gru": {"size": 4, "norm": "recurrent"}}]


class Norm(nn.Module):
    """y = f(x, mask)."""

    def __init__(self, f: Callable[..., Any]) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor, mask: Tensor) -> Any:
        return self.f(x, mask)


class Stepped(Norm):
    def step(self, x: Tensor, t: int, mask: Tensor) -> Any:
        return self.f(x, mask)


class OldStep(Norm):
    def step(self, x: Tensor, mask: Tensor) -> Tensor:
        return x


class Counter(Norm):
    step = 3


def encoder(norm: Any, layers: list[Any] | None = None, wrap: Any = None) -> StackEncoder:
    class Guest(StackEncoder):
        def make_norm(self, size: int) -> nn.Module:
            return norm  # type: ignore[no-any-return]

        def wrap(self, layer: nn.Module, weights: tuple[str, ...]) -> nn.Module:
            return layer if wrap is None else wrap(layer, weights)  # type: ignore[no-any-return]

    return Guest(4, ["norm", {"linear": 4}] if layers is None else layers)


BATCH = torch.randn(2, 5, 4), torch.tensor([5, 3])


@pytest.mark.parametrize(
    ("norm", "text"),
    [
        (nn.LayerNorm(4), "whose forward does not take x, mask (too many positional arguments)"),
        (OldStep(lambda x, mask: x), "whose step does not take x, t, mask (too many positional arguments)"),
        (Counter(lambda x, mask: x), "whose step does not take x, t, mask (3 is not a callable object)"),
        (None, "make_norm(4) returns None"),
        (lambda x, mask: x, "make_norm(4) returns a function"),
        (Norm, "make_norm(4) returns a type"),
    ],
    ids=str,
)
def test_it_is_refused_when_it_is_made(norm: Any, text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        encoder(norm)
    assert caught.value.reason == "encoder_contract"
    assert text in str(caught.value)
    assert "layers.0: " in str(caught.value)
    assert "norm(x (B, T, C), mask (B, T)) -> (B, T, C)" in str(caught.value)


@pytest.mark.parametrize("layers", [None, INSIDE, [{"bigru": {"size": 4, "norm": "gates"}}]], ids=str)
@pytest.mark.parametrize("kind", [Norm, Stepped])
@pytest.mark.parametrize(
    ("f", "text"),
    [
        (lambda x, mask: (x, mask), "returns a tuple for x"),
        (lambda x, mask: None, "returns a NoneType for x"),
        (lambda x, mask: x.mean(-1), "returns a tensor "),
        (lambda x, mask: x[..., :1], "returns a tensor "),
        (lambda x, mask: x.double(), "of torch.float64 for x "),
    ],
)
def test_it_is_refused_at_its_first_batch(f: Callable[..., Any], text: str, kind: type[Norm], layers: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        encoder(kind(f), layers)(*BATCH)
    assert caught.value.reason == "encoder_contract"
    assert f"the norm {kind.__name__} returns" in str(caught.value)
    assert text in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize("layers", [None, INSIDE])
def test_what_keeps_it_is_taken(layers: Any) -> None:
    """float32 under bfloat16 autocast too, as a gain of float32 makes of it; and float64 where x is."""
    for kind in (Norm, Stepped):
        y, _ = encoder(kind(lambda x, mask: x.float()), layers)(*BATCH)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            encoder(kind(lambda x, mask: x.float()), layers)(*BATCH)
        encoder(kind(lambda x, mask: x * 1.0), layers).double()(BATCH[0].double(), BATCH[1])
        assert torch.isfinite(y).all()


class Plain(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return 2.0 * x


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_norm_is_taken() -> None:
    """It takes no hooks; torch.compile's modules do."""
    layers = ["norm", *INSIDE]
    torch.manual_seed(2)
    expected = encoder(Plain(), layers)(*BATCH)[0]
    torch.manual_seed(2)
    torch.testing.assert_close(encoder(torch.jit.script(Plain()), layers)(*BATCH)[0], expected)


@pytest.mark.parametrize(
    ("wrap", "reason", "text"),
    [
        (lambda layer, weights: None, "encoder_contract", "Guest.wrap returns None; possible: the layer"),
        (lambda layer, weights: nn.Sequential(layer), "encoder_contract", "Guest.wrap returns another Sequential"),
        (lambda layer, weights: layer.no, "broken_plugin", "Guest.wrap fails: AttributeError"),
    ],
)
@pytest.mark.parametrize("layers", [None, INSIDE])
def test_a_wrap_that_would_do_nothing(wrap: Any, reason: str, text: str, layers: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        encoder(Norm(lambda x, mask: x), layers, wrap)
    assert caught.value.reason == reason
    assert text in str(caught.value)


def test_what_a_wrap_draws_is_no_number_of_other_layers() -> None:
    """Spectral norm draws the vectors that it begins its iteration with."""

    def spectral(layer: nn.Module, weights: tuple[str, ...]) -> nn.Module:
        for name in weights:
            if isinstance(layer, nn.Linear):
                nn.utils.parametrizations.spectral_norm(layer, name)
        return layer

    layers, last = ["norm", {"linear": 4}, "norm", {"linear": 3}, {"linear": 2}], []
    for wrap in (None, spectral):
        torch.manual_seed(3)
        built = encoder(Norm(lambda x, mask: x), [*layers, {"gru": {"size": 3, "norm": "gates"}}], wrap)
        last.append(list(built.stack.layers[-2:].parameters()))
    torch.testing.assert_close(*last, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["row_norm", "rule"])
def test_hints_that_return_something_else(name: str) -> None:
    """The layer asks for them instead of forward; what they return is looked at."""

    class Hinted(Norm):
        per_feature = True  # so that one norm is asked for all gates

    setattr(Hinted, name, lambda self, *frames: (1.0, 2.0))
    guest = encoder(Hinted(lambda x, mask: x), [{"gru": {"size": 4, "norm": "gates"}}])
    with pytest.raises(RecipeError, match=rf"{name}\(.*\) of the norm Hinted returns a tuple") as caught:
        guest(*BATCH)
    assert caught.value.reason == "encoder_contract"


def test_a_rule_with_moments_of_another_shape() -> None:
    class Ruled(Norm):
        per_feature = True

        def rule(self, frames: Any) -> Rule:
            moments = frames.moments("batch")
            return Rule(Moments(*(m[0, 0] for m in moments)), Standard("batch"), (None, None), None)

    guest = encoder(Ruled(lambda x, mask: x), [{"gru": {"size": 4, "norm": "gates"}}])
    with pytest.raises(RecipeError, match=r"norm Ruled returns a Rule with moments \(12,\), \(12,\), \(1,\); possible"):
        guest(*BATCH)


def test_no_step_is_no_step() -> None:
    class Without(Norm):
        step = None

    out, _ = encoder(Without(lambda x, mask: x), INSIDE)(*BATCH)
    assert out.shape == (2, 5, 4)
