"""`none`: no normalization. y = x, no parameters; the baseline of every comparison."""

from __future__ import annotations

from torch import Tensor, nn

from asrkit import StackEncoder


class NoNorm(nn.Module):
    """The identity: returns the very tensor it was given."""

    scope = "none"
    identity = per_feature = order_free = True

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x

    def step(self, x: Tensor, t: int, mask: Tensor) -> Tensor:
        return x


class NoneEncoder(StackEncoder):
    """The recipe's layers with nothing in the `norm` slot."""

    def make_norm(self, size: int) -> nn.Module:
        return NoNorm()
