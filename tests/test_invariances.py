"""What each normalization is invariant to: Table 1 of Ba, Kiros & Hinton 2016 (arXiv 1607.06450), in a recurrent net.

The columns transform a layer's weights W (rows w_k) or its input x, by factors > 0:

    scale    W -> a W                           weight matrix re-scaling
    centre   W -> W + 1 g^T                     weight matrix re-centring: the same vector g added to every row
    row      w_k -> a_k w_k                     single weight vector re-scaling
    data     x -> a x                           data set re-scaling
    shift    x -> x + s                         data set re-centring: the same vector s added to every frame
    case     x_b -> a_b x_b                     single training case re-scaling: every utterance by its own factor
    frame    x_bt -> a_bt x_bt                  the same for every frame; not in the paper, where a case has one frame

Yes: the layer's output stays the same; no: it does not. Statistics are those of the transformed net itself, that is, of
the batch, in training; at test time running averages are fixed, and batch normalization is invariant to nothing (rows
`... at test`). The variance has next to no eps (1e-12), gains and biases are kept.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from norm_product import build, norms_of, our_strategies, recurrent_layers, scatter_affine
from torch import Tensor, nn

COLUMNS = ("scale", "centre", "row", "data", "shift", "case", "frame")

# The norm on W_x x. The first three rows with a norm are those of the paper, in its first six columns.
GATES = {
    #                             scale   centre  row     data    shift   case    frame
    "sequence_batch_norm":       ("yes",  "no",   "yes",  "yes",  "yes",  "no",   "no"),
    "frame_batch_norm":          ("yes",  "no",   "yes",  "yes",  "yes",  "no",   "no"),
    "weight_norm":               ("yes",  "no",   "yes",  "no",   "no",   "no",   "no"),
    "layer_norm":                ("yes",  "yes",  "no",   "yes",  "no",   "yes",  "yes"),
    "rms_norm":                  ("yes",  "no",   "no",   "yes",  "no",   "yes",  "yes"),
    # Mean and variance of an utterance's frames together: g^T x_t differs from frame to frame, so `centre` fails.
    "group_norm":                ("yes",  "no",   "no",   "yes",  "no",   "yes",  "no"),
    "instance_norm":             ("yes",  "no",   "yes",  "yes",  "yes",  "yes",  "no"),
    "batch_renorm":              ("yes",  "no",   "yes",  "yes",  "yes",  "no",   "no"),  # first batch: r = 1, d = 0
    "batch_renorm, warm":        ("no",   "no",   "no",   "no",   "no",   "no",   "no"),  # r, d of the old weights
    "sequence_batch_norm at test": ("no", "no",   "no",   "no",   "no",   "no",   "no"),
    "frame_batch_norm at test":  ("no",   "no",   "no",   "no",   "no",   "no",   "no"),
    "none":                      ("no",   "no",   "no",   "no",   "no",   "no",   "no"),
}  # fmt: skip

# Norms on W_x x and on W_h h; the weights transformed are W_h, the data enter through N(W_x x) as above. The statistics
# of W_h h are those of one step, so that group norm, too, takes g^T h out of every frame: `centre` holds.
RECURRENT = {
    #                             scale   centre  row     data    shift   case    frame
    "sequence_batch_norm":       ("yes",  "no",   "yes",  "yes",  "yes",  "no",   "no"),
    "frame_batch_norm":          ("yes",  "no",   "yes",  "yes",  "yes",  "no",   "no"),
    "weight_norm":               ("yes",  "no",   "yes",  "no",   "no",   "no",   "no"),
    "layer_norm":                ("yes",  "yes",  "no",   "yes",  "no",   "yes",  "yes"),
    "rms_norm":                  ("yes",  "no",   "no",   "yes",  "no",   "yes",  "yes"),
    "group_norm":                ("yes",  "yes",  "no",   "yes",  "no",   "yes",  "no"),
    "batch_renorm":              ("yes",  "no",   "yes",  "yes",  "yes",  "no",   "no"),
    "batch_renorm, warm":        ("no",   "no",   "no",   "no",   "no",   "no",   "no"),
    "sequence_batch_norm at test": ("no", "no",   "no",   "no",   "no",   "no",   "no"),
    "frame_batch_norm at test":  ("no",   "no",   "no",   "no",   "no",   "no",   "no"),
    "none":                      ("no",   "no",   "no",   "no",   "no",   "no",   "no"),
}  # fmt: skip

# The norm before the weights, as in the question. Nothing undoes what happens to the weights; weight_norm does, but it
# is a norm of W_x here too.
INPUT = {
    #                             scale   centre  row     data    shift   case    frame
    "sequence_batch_norm":       ("no",   "no",   "no",   "yes",  "yes",  "no",   "no"),
    "frame_batch_norm":          ("no",   "no",   "no",   "yes",  "yes",  "no",   "no"),
    "weight_norm":               ("yes",  "no",   "yes",  "no",   "no",   "no",   "no"),
    "layer_norm":                ("no",   "no",   "no",   "yes",  "no",   "yes",  "yes"),
    "rms_norm":                  ("no",   "no",   "no",   "yes",  "no",   "yes",  "yes"),
    "group_norm":                ("no",   "no",   "no",   "yes",  "no",   "yes",  "no"),
    "instance_norm":             ("no",   "no",   "no",   "yes",  "yes",  "yes",  "no"),
    "batch_renorm":              ("no",   "no",   "no",   "yes",  "yes",  "no",   "no"),
    "batch_renorm, warm":        ("no",   "no",   "no",   "no",   "no",   "no",   "no"),
    "sequence_batch_norm at test": ("no", "no",   "no",   "no",   "no",   "no",   "no"),
    "frame_batch_norm at test":  ("no",   "no",   "no",   "no",   "no",   "no",   "no"),
    "none":                      ("no",   "no",   "no",   "no",   "no",   "no",   "no"),
}  # fmt: skip

TABLES = {"gates": GATES, "recurrent": RECURRENT, "input": INPUT}
CELLS = [
    (place, strategy, column, answer)
    for place, table in TABLES.items()
    for strategy, row in table.items()
    for column, answer in zip(COLUMNS, row, strict=True)
]
PAPER = {"batch": "sequence_batch_norm", "weight": "weight_norm", "layer": "layer_norm"}
LENGTHS = [6, 6, 4, 4, 2, 2]  # at least two utterances at every step: frame-wise BN needs no running statistics


def test_the_paper_is_a_part_of_the_tables() -> None:
    """The cells as printed in Table 1."""
    printed = {
        "batch": ("yes", "no", "yes", "yes", "yes", "no"),
        "weight": ("yes", "no", "yes", "no", "no", "no"),
        "layer": ("yes", "yes", "no", "yes", "no", "yes"),
    }
    for name, row in printed.items():
        assert GATES[PAPER[name]][:6] == RECURRENT[PAPER[name]][:6] == row


def test_no_strategy_is_left_out() -> None:
    for place, table in TABLES.items():
        missing = set(our_strategies()) - set(table)
        assert missing == ({"instance_norm"} if place == "recurrent" else set())


def data(shift: float = 0.5) -> tuple[Tensor, Tensor]:
    torch.manual_seed(11)
    x = torch.randn(len(LENGTHS), max(LENGTHS), 6, dtype=torch.float64) + shift
    return x, torch.tensor(LENGTHS)


def layer_for(strategy: str, place: str, cell: str) -> nn.Module:
    """An encoder of one layer, in the mode that the row's name asks for."""
    name = strategy.partition(",")[0].removesuffix(" at test")
    encoder = build(name, cell, place, size=4, inputs=6, eps=1e-12, renorm_warmup=0, renorm_r=1e3, renorm_d=1e3)
    encoder = encoder.double()
    scatter_affine(encoder)
    if strategy != name:
        encoder(*data())
        encoder(*data(shift=0.0))
    return encoder.train("at test" not in strategy)


@torch.no_grad()
def transform_weights(encoder: nn.Module, name: str, column: str) -> None:
    (layer,) = recurrent_layers(encoder)
    given = getattr(layer, "parametrizations", {})
    weight = given[name].original1 if name in given else getattr(layer, name)  # v of weight norm: g stays
    directions, rows, columns = weight.shape
    if column == "scale":
        weight.mul_(3.0)
    elif column == "centre":
        weight.add_(torch.randn(directions, 1, columns, dtype=weight.dtype))
    else:
        weight.mul_(torch.rand(directions, rows, 1, dtype=weight.dtype) * 3 + 0.3)


def transform_data(x: Tensor, column: str) -> Tensor:
    batch, frames, features = x.shape
    if column == "shift":
        return x + torch.randn(features, dtype=x.dtype)
    shape = {"data": (1, 1, 1), "case": (batch, 1, 1), "frame": (batch, frames, 1)}[column]
    return x * (torch.rand(shape, dtype=x.dtype) * 3 + 1.5)


def change(encoder: nn.Module, weight: str, column: str) -> float:
    """The largest difference that a column's transformation makes to the output of real frames."""
    x, lengths = data()
    other, moved = copy.deepcopy(encoder), x
    if column in ("scale", "centre", "row"):
        transform_weights(other, weight, column)
    else:
        moved = transform_data(x, column)
    with torch.no_grad():
        y, z = encoder(x, lengths)[0], other(moved, lengths)[0]
    assert torch.isfinite(y).all()
    return float((y - z).abs().max())


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize(("place", "strategy", "column", "answer"), CELLS, ids=str)
def test_invariances(place: str, strategy: str, column: str, answer: str, cell: str) -> None:
    """Yes: equal to 1e-4. No: different by more than 1e-2, so that no cell is a matter of rounding."""
    difference = change(
        layer_for(strategy, place, cell), "weight_recurrent" if place == "recurrent" else "weight_input", column
    )
    assert difference < 1e-4 if answer == "yes" else difference > 1e-2


# weight_norm has no N(x); the tests of whole layers cover it.
ALONE = [(place, name) for place in ("gates", "input") for name in TABLES[place] if name != "weight_norm"]


@pytest.mark.parametrize(("place", "strategy"), ALONE, ids=str)
def test_normalized_sums_alone_are_as_invariant(place: str, strategy: str) -> None:
    """The same table without a recurrence behind it: N(W x), or W N(x), itself."""
    encoder = layer_for(strategy, place, "lstm")
    (layer,) = recurrent_layers(encoder)
    weight = layer.weight_input[0]
    norm: Any = norms_of(layer, "input")
    if place == "gates" and norms_of(layer, "gates") is not None:
        with torch.no_grad():
            norm = fitted(encoder, weight.shape[0])
            if strategy != strategy.partition(",")[0].removesuffix(" at test"):
                for shift in (0.5, 0.0):
                    norm.train()(data(shift)[0] @ weight.T, mask_of())
            norm.train("at test" not in strategy)
    table = TABLES[place]
    for column, answer in zip(COLUMNS, table[strategy], strict=True):
        x, _ = data()
        other, moved = copy.deepcopy(encoder), x
        if column in ("scale", "centre", "row"):
            transform_weights(other, "weight_input", column)
        else:
            moved = transform_data(x, column)
        sums = []
        for w, values in ((weight, x), (recurrent_layers(other)[0].weight_input[0], moved)):
            fresh = copy.deepcopy(norm) if norm is not None else (lambda z, mask: z)
            with torch.no_grad():
                sums.append(fresh(values @ w.T, mask_of()) if place == "gates" else fresh(values, mask_of()) @ w.T)
        difference = float((sums[0] - sums[1])[mask_of()].abs().max())
        assert difference < 1e-4 if answer == "yes" else difference > 1e-2, column


def fitted(encoder: Any, size: int) -> nn.Module:
    norm = encoder.make_norm(size).double()
    scatter_affine(nn.ModuleDict({"norm": norm}))
    return norm


def mask_of() -> Tensor:
    return torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_joined_is_invariant_to_both_weights_scaled_alike_only(cell: str) -> None:
    """N(W_x x + W_h h): layer norm of the sum, so neither matrix can be scaled by itself."""
    for names, invariant in (
        (("weight_input", "weight_recurrent"), True),
        (("weight_input",), False),
        (("weight_recurrent",), False),
    ):
        encoder = layer_for("layer_norm", "joined", cell)
        other = copy.deepcopy(encoder)
        for name in names:
            transform_weights(other, name, "scale")
        x, lengths = data()
        difference = float((encoder(x, lengths)[0] - other(x, lengths)[0]).detach().abs().max())
        assert difference < 1e-4 if invariant else difference > 1e-2
