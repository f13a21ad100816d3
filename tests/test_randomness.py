"""Building a model leaves generators as they were and GPUs that nobody uses asleep; a seed is what it is to torch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import asrkit
from asrkit.randomness import kept_generators, seed_generators


def test_the_generator_goes_on_as_if_nothing_had_been() -> None:
    before = torch.get_rng_state()
    with kept_generators():
        torch.default_generator.manual_seed(1)
        torch.rand(3)
        assert not torch.equal(before, torch.get_rng_state())
    assert torch.equal(before, torch.get_rng_state())


class Draws(asrkit.StackEncoder):
    def make_norm(self, size: int) -> nn.Module:
        class Norm(nn.Module):
            def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
                return x

        torch.rand(size)
        return Norm()


def test_gpus_that_nobody_uses_are_left_asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a machine with two of them: torch's own `fork_rng` would wake both, with a warning."""

    def woken(*_: object) -> None:
        raise AssertionError("a GPU is woken")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_rng_state", woken)
    before = torch.get_rng_state()
    Draws(4, ["norm"])
    assert torch.equal(before, torch.get_rng_state())
    with pytest.warns(UserWarning, match="2 available devices"), pytest.raises(AssertionError, match="woken"):  # noqa: SIM117
        with torch.random.fork_rng():
            pass


def test_a_seed_means_what_it_means_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers, and GPUs that are in use are seeded too."""
    torch.manual_seed(2**55 - 3)
    expected = torch.rand(5)
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    with kept_generators():
        seed_generators(2**55 - 3)
        assert torch.equal(torch.rand(5), expected)
        assert not seeded
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    seed_generators(7)
    assert seeded == [7]
