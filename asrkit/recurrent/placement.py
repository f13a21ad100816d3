"""Where a norm sits in a recurrent layer, and on which of its sums: the options `norm`, `per_gate` and `cell_norm`.

With X = W_x x_t and U = W_h h_{t-1} (no biases; they are added after the norms):

* `input`: N(x_t) before the weights.
* `gates`: N(X) + U (Laurent et al. 2015, arXiv 1510.01378; Amodei et al. 2015, arXiv 1512.02595).
* `recurrent`: N(X) + N'(U) (Ba et al. 2016, arXiv 1607.06450; Cooijmans et al. 2016, arXiv 1603.09025).
* `hidden`: X + N(U), which Laurent et al. tried and rejected.
* `joined`: N(X + U) (Zeineldeen et al. 2020, "global joined"); also rejected by Laurent et al., with batch norm.

`cell_norm` of an LSTM: `output` normalizes the cell on its way to the output only (Ba, Cooijmans), `stored` the cell
itself (Zeineldeen).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from asrkit.errors import RecipeError, nearest
from asrkit.normalization.contract import check_forward, check_output

PLACES = ("none", "input", "gates", "recurrent", "hidden", "joined")
CELL_NORMS = ("none", "output", "stored")
GATES = {"gru": 3, "lstm": 4}
MakeNorm = Callable[[int], nn.Module]


@dataclass(frozen=True)
class Placement:
    """The three options, checked. `cell_norm` is `output` for an LSTM with `recurrent` unless it is given."""

    place: str = "none"
    per_gate: bool = False
    cell_norm: str = "none"

    @classmethod
    def of(cls, cell: str, place: str, per_gate: bool, cell_norm: str | None) -> Placement:
        """Raises RecipeError (`placement`) for what does not exist or does not fit the cell."""
        if place not in PLACES:
            raise RecipeError(f"norm: {place!r}", possible=nearest(str(place), PLACES), reason="placement")
        if not isinstance(per_gate, bool):
            raise RecipeError(f"per_gate: {per_gate!r}", possible="true or false", reason="placement")
        if cell_norm is None:
            cell_norm = "output" if (cell, place) == ("lstm", "recurrent") else "none"
        if cell_norm not in CELL_NORMS:
            raise RecipeError(
                f"cell_norm: {cell_norm!r}", possible=nearest(str(cell_norm), CELL_NORMS), reason="placement"
            )
        if cell == "gru" and cell_norm != "none":
            raise RecipeError(
                f"cell_norm: {cell_norm!r} for a GRU, which has no cell", possible="none", reason="placement"
            )
        return cls(place, per_gate, cell_norm)

    @property
    def in_recurrence(self) -> bool:
        """Whether a norm acts inside the loop over time."""
        return self.place in ("recurrent", "hidden", "joined") or self.cell_norm != "none"

    def groups(self, cell: str, size: int) -> list[int]:
        """Sizes of the parts of the G gate sums that have a norm of their own.

        A GRU's candidate never shares one with its gates: the reset gate stands between its two sums, so Ba et al.
        normalize it alone.
        """
        if self.per_gate:
            return [size] * GATES[cell]
        return [2 * size, size] if cell == "gru" else [4 * size]


class GroupedNorm(nn.Module):
    """One norm per group of features: x (B, T, sum of the groups), mask (B, T) -> the same shape."""

    def __init__(self, make_norm: MakeNorm, groups: list[int], merge: bool = True) -> None:
        super().__init__()
        first = make_norm(groups[0])
        if merge and has(first, "per_feature") and len(groups) > 1:  # grouping changes nothing, and one call is faster
            groups, first = [sum(groups)], make_norm(sum(groups))
        self.groups = groups
        self.norms = nn.ModuleList([first, *(make_norm(size) for size in groups[1:])])

    @property
    def identity(self) -> bool:
        """Whether all of it may be left out."""
        return all(has(norm, "identity") for norm in self.norms)

    @property
    def order_free(self) -> bool:
        """Whether the order of an utterance's real frames does not matter to any frame."""
        return all(has(norm, "order_free") for norm in self.norms)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if len(self.groups) == 1:
            return self.norms[0](x, mask)  # type: ignore[no-any-return]
        return torch.cat([n(part, mask) for n, part in zip(self.norms, x.split(self.groups, -1), strict=True)], -1)

    def step(self, x: Tensor, t: int, mask: Tensor) -> Tensor:
        """x (B, sum of the groups), mask (B,) -> the same shape, at step t of a recurrence."""
        return _steps(list(self.norms), self.groups, x, t, mask)

    def gates_step(self, x: Tensor, t: int, mask: Tensor) -> Tensor:
        """`step` for all groups but the last: a GRU's gates."""
        return _steps(list(self.norms)[:-1], self.groups[:-1], x, t, mask)

    def candidate_step(self, x: Tensor, t: int, mask: Tensor) -> Tensor:
        """`step` for the last group: a GRU's candidate."""
        return norm_step(self.norms[-1], x, t, mask)


def _steps(norms: list[nn.Module], groups: list[int], x: Tensor, t: int, mask: Tensor) -> Tensor:
    if len(groups) == 1:
        return norm_step(norms[0], x, t, mask)
    parts = x.split(groups, -1)
    return torch.cat([norm_step(norm, part, t, mask) for norm, part in zip(norms, parts, strict=True)], -1)


def has(norm: nn.Module, hint: str) -> bool:
    """Whether a norm declares `identity`, `per_feature` or `order_free` of itself."""
    return getattr(norm, hint, False) is True


def offers(norm: nn.Module, method: str, *called: str) -> bool:
    """Whether a norm says by a method (`row_norm`, `rule`) what its `forward` does, so that it need not be called.

    Not where a class, or the norm itself, has put another `forward` over the one that the method is about, nor another
    of the methods that are `called` beside it.
    """
    order = (norm, *type(norm).__mro__)

    def place(name: str) -> int:
        return next((i for i, owner in enumerate(order) if name in vars(owner)), len(order))

    return place(method) < len(order) and all(place(method) <= place(name) for name in ("forward", *called))


def heard(norm: nn.Module) -> bool:
    """Whether a hook waits for a call of the norm or of a part of it, beside asrkit's own look at what comes out.

    Torch's hooks of all modules at once (`register_module_forward_hook`) are not asked: they miss norms that are fused.
    """
    return any(
        m._forward_pre_hooks
        or m._backward_hooks
        or m._backward_pre_hooks
        or any(hook is not check_forward for hook in m._forward_hooks.values())
        for m in norm.modules()
    )


def norm_step(norm: nn.Module, x: Tensor, t: int, mask: Tensor) -> Tensor:
    """The norm of one frame x (B, C), mask (B,): its own `step`, or the frame as a sequence of one."""
    step = getattr(norm, "step", None)
    if step is not None:
        y: Tensor = step(x, t, mask)
        check_output(norm, x, y)
        return y
    return norm(x.unsqueeze(1), mask.unsqueeze(1)).squeeze(1)  # type: ignore[no-any-return]
