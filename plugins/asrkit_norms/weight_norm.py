"""`weight_norm`: not of data but of weights: every output's weight vector is a length times a direction.

    w = g v / ||v||

Salimans & Kingma 2016 (arXiv 1602.07868), equation 2. g starts at ||v||, so the first outputs are those of `none`. A
vector is what one output sees: a row of a linear layer's and of a recurrent layer's weights (one for W_x x and one for
W_h h), all of an output channel's kernel in a convolution. There are no statistics: padding, batch mates and the time
of test change nothing. Weights that a norm of data would follow are the ones that are normalized (`wrap`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from asrkit import StackEncoder


class Untouched(nn.Module):
    """What stands in the `norm` slot: the identity."""

    scope = "weights"
    identity = per_feature = order_free = True

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x

    def step(self, x: Tensor, t: int, mask: Tensor) -> Tensor:
        return x


class WeightNorm(nn.Module):
    """g (rows, 1 in the place of the others), v (the weight's own shape) -> w = g v / ||v||."""

    def __init__(self, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        return v * (g / torch.linalg.vector_norm(v, dim=self.dims, keepdim=True))

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """g and v of a given weight: ||w|| and w."""
        return torch.linalg.vector_norm(weight, dim=self.dims, keepdim=True), weight


class WeightNormEncoder(StackEncoder):
    """The recipe's layers, those after a `norm` with normalized weights; the `norm` slot itself does nothing."""

    def make_norm(self, size: int) -> nn.Module:
        return Untouched()

    def wrap(self, layer: nn.Module, weights: tuple[str, ...]) -> nn.Module:
        convolution = isinstance(layer, nn.Conv1d | nn.Conv2d)
        for name in weights:
            axes = getattr(layer, name).dim()
            dims = tuple(range(1, axes)) if convolution else (axes - 1,)
            parametrize.register_parametrization(layer, name, WeightNorm(dims))
        return layer
