"""check_model on small models as people write them with torch: what packs, masks, pads and remembers in its own way.

Each fault beside its healthy twin, of which nothing may be said.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from asrkit.diagnostics import Finding, check_model
from asrkit.errors import DataError

SIZE, LABELS = 6, 9


def speech(frames: int = 60, lengths: tuple[int, ...] = (60, 52, 44, 40, 31)) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features (5, T, 6), lengths, targets, target lengths."""
    torch.manual_seed(0)
    x = torch.randn(len(lengths), frames, SIZE).cumsum(1) / 4
    for row, n in zip(x, lengths, strict=True):
        row[n:] = 0
    return x, torch.tensor(lengths), torch.randint(1, LABELS, (len(lengths), 6)), torch.tensor([6, 5, 4, 3, 2])


def codes(findings: list[Finding]) -> set[str]:
    return {one.code for one in findings}


def packed(layer: nn.RNNBase, x: Tensor, lengths: Tensor, in_order: bool = False) -> Tensor:
    y = layer(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=in_order))[0]
    return pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])[0]


def gru(inputs: int = SIZE, **options: Any) -> nn.GRU:
    return nn.GRU(inputs, 16, batch_first=True, **options)


class Model(nn.Module):
    """Layers by name, and the way through them; every model here begins with the same random numbers."""

    def __init__(self, way: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.way = way
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        return self.way(self, x, lengths)


def two_layers(way: Callable[..., Any], between: nn.Module | None = None, **more: nn.Module) -> Model:
    torch.manual_seed(0)
    layers = {"a": gru(), "b": gru(16), "out": nn.Linear(16, LABELS)}
    return Model(way, **layers, **({} if between is None else {"between": between}), **more)


def plain(m: Model, x: Tensor, n: Tensor) -> Tensor:
    y = packed(m.a, x, n)
    y = m.between(y) if hasattr(m, "between") else y
    return m.out(packed(m.b, y, n)).log_softmax(-1)


def over_time(m: Model, x: Tensor, n: Tensor) -> Tensor:
    """`between` takes (B, C, T)."""
    y = m.between(packed(m.a, x, n).transpose(1, 2)).transpose(1, 2)
    return m.out(packed(m.b, y, n)).log_softmax(-1)


def real(x: Tensor, n: Tensor) -> Tensor:
    return torch.arange(x.shape[1]) < n[:, None]


# --- what the batch, padding and chance do to it


class OwnNorm(nn.Module):
    """Mean and deviation of the real frames of the batch, in evaluation too, or running ones."""

    def __init__(self, always: bool) -> None:
        super().__init__()
        self.always, self.lengths = always, torch.zeros(0)
        self.register_buffer("mean", torch.zeros(SIZE))

    def forward(self, x: Tensor) -> Tensor:
        frames = x[real(x, self.lengths)]
        return (x - frames.mean(0)) / frames.std(0) if self.always else x - self.mean


@pytest.mark.parametrize("always", [True, False])
def test_own_statistics_of_the_batch_in_evaluation(always: bool) -> None:
    """Masked ones, which do not change when utterances are only turned."""

    def way(m: Model, x: Tensor, n: Tensor) -> Tensor:
        m.own.lengths = n
        return plain(m, m.own(x), n)

    found = codes(check_model(two_layers(way, own=OwnNorm(always)), *speech()))
    assert found == ({"train_eval_mismatch"} if always else set())


@pytest.mark.parametrize("in_order", [True, False])
def test_batch_statistics_and_packing_in_order(in_order: bool) -> None:
    def way(m: Model, x: Tensor, n: Tensor) -> Tensor:
        y = m.between(packed(m.a, x, n, in_order).transpose(1, 2)).transpose(1, 2)
        return m.out(packed(m.b, y, n, in_order)).log_softmax(-1)

    found = check_model(two_layers(way, nn.BatchNorm1d(16, track_running_stats=False)), *speech())
    assert {one.code: one.layer for one in found} == {
        "train_eval_mismatch": "between", "padding_in_statistics": "between",
    }  # fmt: skip


@pytest.mark.parametrize("in_order", [True, False])
def test_recurrence_over_the_batch_behind_a_layer_that_packs(in_order: bool) -> None:
    def way(m: Model, x: Tensor, n: Tensor) -> Tensor:
        return m.out(m.over(packed(m.a, x, n, in_order))[0]).log_softmax(-1)

    model = two_layers(way, over=nn.GRU(16, 16))
    assert [(one.code, one.layer) for one in check_model(model, *speech())] == [("recurrence_over_batch", "over")]


def image(frames_last: bool, wrong: str) -> Model:
    """Two convolutions over time and frequency with masks behind them, a norm that is wrong or not, and a GRU."""

    def way(m: Model, x: Tensor, n: Tensor) -> Tensor:
        y = x[:, None].transpose(2, 3) if frames_last else x[:, None]
        keep = real(x, n)[:, None, None] if frames_last else real(x, n)[:, None, :, None]
        y = m.one(y) * keep
        y = m.two(y if wrong != "mates" else y + y.mean((0, 2, 3), keepdim=True)) * keep
        y = m.norm(y) * keep if wrong == "norm" else y
        y = y.permute(0, 3, 1, 2) if frames_last else y.permute(0, 2, 1, 3)
        return m.out(packed(m.rnn, y.flatten(2), n)).log_softmax(-1)

    torch.manual_seed(0)
    convs = {"one": nn.Conv2d(1, 3, 3, padding=1), "two": nn.Conv2d(3, 3, 5, padding=2)}
    return Model(way, **convs, norm=nn.BatchNorm2d(3), rnn=gru(3 * SIZE), out=nn.Linear(16, LABELS))


@pytest.mark.parametrize("frames_last", [True, False])
def test_layers_over_time_and_frequency_are_looked_at(frames_last: bool) -> None:
    assert check_model(image(frames_last, ""), *speech()) == []
    (found,) = check_model(image(frames_last, "norm"), *speech())
    assert (found.code, found.layer) == ("padding_in_statistics", "norm")
    found = check_model(image(frames_last, "mates"), *speech())
    assert ("train_eval_mismatch", "two") in {(one.code, one.layer) for one in found}


@pytest.mark.parametrize("bad", [True, False])
def test_layers_with_time_first_are_looked_at(bad: bool) -> None:
    def way(m: Model, x: Tensor, n: Tensor) -> Tensor:
        y = m.a(x.transpose(0, 1))[0]
        y = m.b(y + y.mean(1, keepdim=True) if bad else y)[0]
        return m.out(y.transpose(0, 1)).log_softmax(-1)

    torch.manual_seed(0)
    model = Model(way, a=nn.GRU(SIZE, 16), b=nn.GRU(16, 16), out=nn.Linear(16, LABELS))
    found = check_model(model, *speech())
    assert [(one.code, one.layer) for one in found] == ([("train_eval_mismatch", "b")] if bad else [])


def test_layers_that_cannot_be_looked_at_are_named_with_the_one_behind_them() -> None:
    def way(m: Model, x: Tensor, n: Tensor) -> Tensor:
        y = m.two(m.one(x + x[:, :1].mean(0)).flatten(0, 1)).unflatten(0, x.shape[:2])
        return m.out(packed(m.rnn, y, n)).log_softmax(-1)

    torch.manual_seed(0)
    model = Model(way, one=nn.Linear(SIZE, 16), two=nn.Linear(16, 16), rnn=gru(16), out=nn.Linear(16, LABELS))
    (found,) = check_model(model, *speech())
    assert (found.layer, "not looked at" in found.measured) == ("one", False)
    model.one = nn.Sequential(nn.Flatten(0, 1), nn.Linear(SIZE, 16), nn.Unflatten(0, (5, -1)))
    model.way = lambda m, x, n: m.out(packed(m.rnn, m.one(x + x[:, :1].mean(0)), n)).log_softmax(-1)
    (found,) = check_model(model, *speech())
    assert (found.layer, found.measured.partition(" (")[2]) == ("one.2", "not looked at: one.0 to one.1 before it)")


def test_as_many_frames_as_channels() -> None:
    """A layer norm behind a convolution has the convolution's shape then, and not its layout."""

    def way(m: Model, x: Tensor, n: Tensor) -> Tensor:
        y = m.norm((m.conv(x.transpose(1, 2)).transpose(1, 2) + 0.1) * real(x, n)[..., None])
        return m.out(packed(m.rnn, y, n)).log_softmax(-1)

    frames = 60 + 16 * (1 + 60 // 32)  # with more padding
    torch.manual_seed(0)
    conv, norm = nn.Conv1d(SIZE, frames, 3, padding=1), nn.LayerNorm(frames)
    assert check_model(Model(way, conv=conv, norm=norm, rnn=gru(frames), out=nn.Linear(16, LABELS)), *speech()) == []


@pytest.mark.parametrize("restored", [True, False])
def test_outputs_in_the_order_of_a_sort(restored: bool) -> None:
    def way(m: Model, x: Tensor, n: Tensor) -> Tensor:
        lengths, order = n.sort(descending=True)
        y = m.out(packed(m.a, x[order], lengths, in_order=True)).log_softmax(-1)
        return y[order.argsort()] if restored else y

    found = check_model(two_layers(way), *speech(lengths=(31, 60, 44, 52, 40)))
    assert codes(found) == (set() if restored else {"outputs_out_of_order"})


def test_a_batch_in_another_order_that_the_model_refuses() -> None:
    def way(m: Model, x: Tensor, n: Tensor) -> Tensor:
        if int(n[0]) == int(n[-1]):
            raise ValueError("lengths that are all equal")
        return plain(m, x + x[:, :1].mean(0), n)

    (found,) = check_model(two_layers(way), *speech())
    assert found.code == "train_eval_mismatch"
    assert "whether their order does was not seen: ValueError: lengths that are all equal" in found.measured


@pytest.mark.parametrize("norm", [nn.GroupNorm(1, 16), nn.InstanceNorm1d(16), nn.BatchNorm1d(16)])
def test_norms_over_padded_time(norm: nn.Module) -> None:
    (found,) = check_model(two_layers(over_time, norm), *speech())
    assert (found.code, found.layer) == ("padding_in_statistics", "between")


class MaskedNorm(nn.BatchNorm1d):
    """(B, C, T) with statistics of real frames, by the arguments of torch's own."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        assert mask is not None
        y = x.transpose(1, 2).clone()
        y[mask] = super().forward(y[mask])
        return y.transpose(1, 2)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    ("how", "right"),
    [("rows", False), ("time", False), ("image", False), ("group", False), ("packed", True), ("masked", True)],
)
def test_norms_between_layers_that_pack(how: str, right: bool, trained: bool) -> None:
    """What is unpacked has zeros in its padding, however much the features have."""

    def way(m: Model, x: Tensor, n: Tensor) -> Tensor:
        y = m.a(pack_padded_sequence(x, n, batch_first=True, enforce_sorted=False))[0]
        if how == "packed":
            y = y._replace(data=m.between(y.data))
        else:
            y = pad_packed_sequence(y, batch_first=True)[0]
            if how == "rows":
                y = m.between(y.transpose(0, 1).flatten(0, 1)).unflatten(0, (-1, len(n))).transpose(0, 1)
            elif how == "image":
                y = m.between(y.transpose(1, 2).unflatten(1, (4, 4))).flatten(1, 2).transpose(1, 2)
            elif how == "masked":
                y = m.between(y.transpose(1, 2), real(y, n)).transpose(1, 2)
            else:
                y = m.between(y.transpose(1, 2)).transpose(1, 2)
            y = pack_padded_sequence(y, n, batch_first=True, enforce_sorted=False)
        return m.out(pad_packed_sequence(m.b(y)[0], batch_first=True)[0]).log_softmax(-1)

    norms = {"image": nn.BatchNorm2d(4), "masked": MaskedNorm(16), "group": nn.GroupNorm(1, 16)}
    model = two_layers(way, norms.get(how, nn.BatchNorm1d(16)))
    x, *rest = speech(lengths=(60, 52, 24, 20, 18))
    if trained:
        model.train()
        for _ in range(60):
            model(x, rest[0])
    found = check_model(model, x, *rest, trained=trained)
    assert [(one.code, one.layer) for one in found] == ([] if right else [("padding_in_statistics", "between")])


def attention(mask: bool, layers: int = 2, **options: Any) -> Model:
    def way(m: Model, x: Tensor, n: Tensor) -> Tensor:
        return m.out(m.encoder(m.into(x), src_key_padding_mask=~real(x, n) if mask else None)).log_softmax(-1)

    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    layers = {"into": nn.Linear(SIZE, 16), "encoder": nn.TransformerEncoder(layer, layers, **options)}
    return Model(way, **layers, out=nn.Linear(16, LABELS))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_attention_with_torchs_defaults_and_without_a_mask() -> None:
    """By default torch's encoder makes nested tensors of masked batches."""
    assert check_model(attention(True), *speech()) == []
    (found,) = check_model(attention(False), *speech())
    assert (found.code, found.layer) == ("padding_first", "encoder.layers.0.self_attn")
    assert "attention" in found.why
    assert "mask" in found.fix


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "autocast"])
@pytest.mark.parametrize("layers", [2, 8])
def test_attention_in_types_that_round_coarsely(layers: int, kind: str) -> None:
    """Rounding alone is no padding, however many layers it goes through; padding is found all the same."""
    for mask in (True, False):
        model, (x, *rest) = attention(mask, layers, enable_nested_tensor=False), speech()
        x += torch.randn(x.shape) * real(x, rest[0])[..., None]
        if kind == "autocast":

            def forward(a: Tensor, n: Tensor, model: Model = model) -> Tensor:
                with torch.autocast("cpu", torch.bfloat16):
                    return model(a, n)

            model.eval()  # for the check that does not know it
            found = [check_model(forward, x, *rest, model=model), check_model(forward, x, *rest)]
        else:
            dtype = getattr(torch, kind)
            found = [check_model(model.to(dtype), x.to(dtype), *rest)]
        for one in found:
            assert codes(one) == (set() if mask else {"padding_first"})


def test_state_and_mates_in_bfloat16() -> None:
    """What is known of rounding hides no other fault."""

    def way(m: Model, x: Tensor, n: Tensor) -> Tensor:
        y, h = m.a(x, getattr(m, "last", None))
        m.last = h if m.leaks else None
        return m.out(y + (0 if m.leaks else y.mean(0))).log_softmax(-1)

    for leaks in (True, False):
        model, (x, *rest) = two_layers(way), speech()
        model.leaks = leaks
        found = check_model(model.to(torch.bfloat16), x.to(torch.bfloat16), *rest)
        expected = "leaked_state" if leaks else "train_eval_mismatch"
        assert [one.code for one in found if one.severity == "error"] == [expected]


def test_dropout_that_evaluation_does_not_switch_off() -> None:
    def way(m: Model, x: Tensor, n: Tensor) -> Tensor:
        return m.out(F.dropout(packed(m.a, x, n), 0.2)).log_softmax(-1)

    (found,) = check_model(two_layers(way), *speech())
    assert (found.code, found.layer) == ("random_in_evaluation", "out")


@pytest.mark.parametrize("kind", ["numpy", "python"])
def test_random_numbers_that_are_not_torchs(kind: str) -> None:
    """Named for what they are, not as a state; their generators go on as if nothing had been."""

    def way(m: Model, x: Tensor, n: Tensor) -> Tensor:
        if kind == "numpy" and (m.training or m.bad):
            x = x + torch.as_tensor(np.random.randn(*x.shape)).to(x)
        if kind == "python" and (m.training or m.bad) and random.random() < 0.5:
            x = x.flip(2)
        return plain(m, x, n)

    for bad in (True, False):
        model = two_layers(way)
        model.bad = bad
        random.seed(5)
        np.random.seed(5)
        expected = random.random(), np.random.rand()
        random.seed(5)
        np.random.seed(5)
        assert codes(check_model(model, *speech())) == ({"random_in_evaluation"} if bad else set())
        assert (random.random(), np.random.rand()) == expected


def test_a_batch_of_one_utterance_says_what_it_cannot_show() -> None:
    def way(m: Model, x: Tensor, n: Tensor) -> Tensor:
        return m.out(m.over(x)[0]).log_softmax(-1)

    x, n, y, sizes = (one[:1] for one in speech())
    (found,) = check_model(Model(way, over=nn.GRU(SIZE, 16), out=nn.Linear(16, LABELS)), x, n, y, sizes)
    assert (found.code, found.severity) == ("not_checked", "note")
    assert found.measured.startswith("recurrence over the batch")


def test_positions_from_a_table_that_is_just_long_enough() -> None:
    """Less padding is asked for, where more cannot be; the table itself hears nothing, and need not."""

    def way(m: Model, x: Tensor, n: Tensor) -> Tensor:
        y = m.into(x) + m.table(torch.arange(x.shape[1]))
        if m.bad:
            return m.out(m.both(y)[0]).log_softmax(-1)
        return m.out(packed(m.both, y, n)).log_softmax(-1)

    for bad in (False, True):
        torch.manual_seed(0)
        model = Model(
            way, table=nn.Embedding(60, 16), into=nn.Linear(SIZE, 16), both=gru(16, bidirectional=True),
            out=nn.Linear(32, LABELS),
        )  # fmt: skip
        model.bad = bad
        found = check_model(model, *speech())
        assert codes(found) == ({"padding_first"} if bad else set())
        assert all("less padding moves" in one.measured for one in found)


def test_padding_that_cannot_be_changed_at_all_is_said() -> None:
    def way(m: Model, x: Tensor, n: Tensor) -> Tensor:
        return plain(m, x + torch.zeros(60, SIZE), n)

    (found,) = check_model(two_layers(way), *speech())
    assert (found.code, found.severity) == ("not_checked", "note")
    assert found.measured.startswith("padding: with more frames than 60 the model raises RuntimeError")


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_softmax_before_the_log_softmax_of_an_untrained_model(kind: torch.dtype) -> None:
    """What it leaves is no more than small scores have; whether there is one is seen."""

    def way(m: Model, x: Tensor, n: Tensor) -> Tensor:
        scores = m.out(packed(m.a, x, n))
        return (m.last(scores) if m.twice else scores * 0.1).log_softmax(-1)

    x, *rest = speech()
    for twice in (True, False):
        model = two_layers(way, last=nn.Softmax(-1))
        model.twice = twice
        found = check_model(model.to(kind), x.to(kind), *rest)
        assert [(one.code, one.severity) for one in found] == ([("log_softmax_twice", "error")] if twice else [])


# --- state


@pytest.mark.parametrize("how", ["copy", "rebind", "in place", "none"])
def test_a_state_kept_in_a_buffer(how: str) -> None:
    def way(m: Model, x: Tensor, n: Tensor) -> Tensor:
        y, h = m.a(x, m.state if how == "in place" else m.state.clone())
        if how == "rebind":
            m.state = h.detach()
        elif how != "none":
            m.state.copy_(h.detach())
        return m.out(y).log_softmax(-1)

    model = two_layers(way)
    model.register_buffer("state", torch.zeros(1, 5, 16))
    buffer = model.state
    found = check_model(model, *speech())
    assert codes([one for one in found if one.severity != "note"]) == ({"leaked_state"} if how != "none" else set())
    assert model.state is buffer
    assert not buffer.any()
    if how == "in place":  # torch itself refuses to train this
        assert found[-1].code == "not_checked"
        assert "gradients: RuntimeError: one of the variables" in found[-1].measured


class Box:
    """Where somebody keeps the last state."""

    def __init__(self) -> None:
        self.states: dict[str, Tensor | None] = {}


@pytest.mark.parametrize("where", ["attribute", "in place", "list", "object", "global"])
def test_a_state_of_noise_hides_no_other_fault(where: str) -> None:
    """The state is put back where it can be, and the other fault measured without it."""
    hidden = Box()

    def way(m: Model, x: Tensor, n: Tensor) -> Tensor:
        box = hidden if where == "global" else m.box
        last = m.last if where in ("attribute", "in place") else m.list[-1] if where == "list" else box.states.get("a")
        y, h = m.over(x, last)
        h = h if where == "global" else 9 * h  # what is carried stays as loud as what it is carried into
        if where == "in place":
            m.last.copy_(h.detach())
        else:
            m.last, box.states["a"] = h.detach(), h.detach()
            m.list.append(h.detach())
        return m.out(y).log_softmax(-1)

    torch.manual_seed(0)
    model = Model(way, over=nn.GRU(SIZE, 16), out=nn.Linear(16, LABELS))
    model.box, model.list, model.last = Box(), [None], torch.zeros(1, 48, 16) if where == "in place" else None
    found = check_model(model, *speech(48, (48, 48, 48, 48, 48)))
    assert codes([one for one in found if one.severity == "error"]) == {"leaked_state", "recurrence_over_batch"}
    if where != "global":  # and afterwards it is as it was
        assert model.list == [None]
        assert not model.box.states
        assert model.last is None or not model.last.any()


# --- what a model writes into


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("write", ["lengths", "features"])
def test_a_model_that_changes_what_it_is_given(write: str, right: bool) -> None:
    """Every call gets lengths and features of its own, and so the caller's stay as they are."""

    def way(m: Model, x: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        if write == "features":
            x -= 3
            x /= 2
        x = m.into(x).unflatten(1, (-1, 2)).mean(2)
        if write == "lengths":
            n //= 2
        else:
            n = n // 2
        return m.out(packed(m.both, x, n) if right else m.both(x)[0]).log_softmax(-1), n

    torch.manual_seed(0)
    both, out = gru(16, bidirectional=True), nn.Linear(32, LABELS)
    batch = speech()
    kept = [one.clone() for one in batch]
    found = check_model(Model(way, into=nn.Linear(SIZE, 16), both=both, out=out), *batch)
    assert codes(found) == (set() if right else {"padding_first"})
    assert all(torch.equal(one, two) for one, two in zip(batch, kept, strict=True))
    numbers = batch[1].numpy()
    check_model(Model(way, into=nn.Linear(SIZE, 16), both=both, out=out), batch[0], numbers, *batch[2:])
    assert numbers.tolist() == kept[1].tolist()


# --- layers


@pytest.mark.parametrize("which", ["a", "b"])
def test_a_packed_layer_that_hears_nothing(which: str) -> None:
    model = two_layers(plain)
    with torch.no_grad():
        getattr(model, which).weight_ih_l0.zero_()
    assert ("input_independent_layer", which) in {(one.code, one.layer) for one in check_model(model, *speech())}


def test_layers_that_no_audio_is_given_to() -> None:
    """A table of positions and weight norms get the same whatever is said, and hide no layer that is really deaf."""

    def way(m: Model, x: Tensor, n: Tensor) -> Tensor:
        y = m.into(x) + m.table(torch.arange(x.shape[1]))
        y = m.conv((y * real(y, n)[..., None]).transpose(1, 2)).transpose(1, 2)
        return m.out(packed(m.rnn, y, n)).log_softmax(-1)

    for deaf in (False, True):
        torch.manual_seed(0)
        conv = torch.nn.utils.parametrizations.weight_norm(nn.Conv1d(16, 16, 3, padding=1))
        model = Model(
            way,
            table=nn.Embedding(200, 16),
            into=nn.Linear(SIZE, 16),
            conv=conv,
            rnn=gru(16),
            out=nn.Linear(16, LABELS),
        )
        with torch.no_grad():
            model.rnn.weight_ih_l0.mul_(0.0 if deaf else 1.0)
        found = {one.code: one.layer for one in check_model(model, *speech())}
        assert found.get("input_independent_layer") == ("rnn" if deaf else None)
        assert deaf or not found


def activation(name: str, dead: bool) -> Model:
    """62 of 64 units that are always 0: after a linear layer or a convolution, a module or a function."""

    def way(m: Model, x: Tensor, n: Tensor) -> Tensor:
        relu = m.relu if "module" in name else F.relu
        y = relu(m.conv(x.transpose(1, 2))).transpose(1, 2) if "conv" in name else relu(m.linear(x))
        return m.out(packed(m.rnn, y, n)).log_softmax(-1)

    torch.manual_seed(0)
    model = Model(way, out=nn.Linear(16, LABELS), relu=nn.ReLU(), rnn=gru(64))
    layer = nn.Conv1d(SIZE, 64, 5, padding=2, bias=dead) if "conv" in name else nn.Linear(SIZE, 64)
    model.add_module("conv" if "conv" in name else "linear", layer)
    if dead:
        nn.init.constant_(layer.bias[:62], -99.0)
    return model


@pytest.mark.parametrize("name", ["conv module", "conv function", "linear module", "linear function"])
def test_dead_units_of_modules_and_functions_in_real_frames(name: str) -> None:
    layer = "relu" if "module" in name else f"relu after {name.split()[0]}"
    (found,) = check_model(activation(name, dead=True), *speech(), trained=True)
    assert (found.code, found.layer) == ("dead_relus", layer)
    assert found.measured.startswith("97%")
    # Sixteen frames of padding to each real one are no dead units.
    x, *rest = speech()
    assert check_model(activation(name, dead=False), F.pad(x, (0, 0, 0, 900)), *rest, trained=True) == []


def deep(first: str | None = None, residual: bool = False, cut: int | None = None, layers: int = 8) -> Model:
    """GRUs with ReLU between them, or with residual connections; `first`: what is registered before them."""

    def way(m: Model, x: Tensor, n: Tensor) -> Any:
        h = m.into(x)
        for i, layer in enumerate(m.layers):
            y = packed(layer, h if residual else h.relu(), n)
            h = (h + y if residual else y).detach() if i == cut else h + y if residual else y
        out = m.out(h).log_softmax(-1)
        return (out, n, m.called(h)) if hasattr(m, "called") else out

    torch.manual_seed(0)
    early = {} if first is None else {first: nn.Linear(16, LABELS)}
    rest = {"into": nn.Linear(SIZE, 16), "layers": nn.ModuleList(gru(16) for _ in range(layers))}
    return Model(way, **early, **rest, **({} if first == "out" else {"out": nn.Linear(16, LABELS)}))


@pytest.mark.parametrize("first", [None, "out", "unused", "called"])
def test_vanishing_gradients_in_the_order_of_calls(first: str | None) -> None:
    """A head that is registered first, one that is never called, one whose outputs are not those that are checked."""
    found = check_model(deep(first), *speech())
    assert [(one.code, one.layer) for one in found] == [("vanishing_gradients", "into")]
    assert check_model(deep(first, residual=True, layers=3), *speech()) == []


@pytest.mark.parametrize("layers", [2, 3])
def test_a_gradient_that_is_cut_off(layers: int) -> None:
    found = check_model(deep(residual=True, cut=1, layers=layers), *speech())
    (found,) = [one for one in found if one.code == "vanishing_gradients"]
    assert (found.severity, found.layer) == ("error", "layers.1")
    assert "no gradient at all" in found.measured
    # A last layer of zeros, as some begin, gives none to any layer for one update.
    model = deep(residual=True, layers=layers)
    nn.init.zeros_(model.out.weight)
    nn.init.normal_(model.out.bias, std=0.1)
    assert codes(check_model(model, *speech())) <= {"log_softmax_twice"}


@pytest.mark.parametrize("how", ["no_grad", "inference", "detach", "healthy", "frozen"])
def test_an_output_without_any_gradient(how: str) -> None:
    def way(m: Model, x: Tensor, n: Tensor) -> Tensor:
        modes = {"no_grad": torch.no_grad(), "inference": torch.inference_mode()}
        with modes.get(how, nullcontext()):
            y = plain(m, x, n)
        return y.detach() if how == "detach" else y

    found = check_model(two_layers(way).requires_grad_(how != "frozen"), *speech())
    expected = [] if how in ("healthy", "frozen") else [("vanishing_gradients", "error")]
    assert [(one.code, one.severity) for one in found] == expected
    assert all("no gradient at all: with this function nothing can be trained" in one.measured for one in found)


def test_gradients_of_utterances_with_hardly_more_frames_than_labels() -> None:
    x, n, _, _ = speech()
    labels = (torch.arange(60) % (LABELS - 1) + 1).expand(5, -1)
    found = check_model(deep(), x, n, labels, (n * 0.65).long())
    assert "vanishing_gradients" in codes(found)


def test_gradients_that_explode_beyond_all_numbers_name_their_layer() -> None:
    torch.manual_seed(0)
    rnn = nn.RNN(SIZE, 16, batch_first=True, nonlinearity="relu")
    nn.init.orthogonal_(rnn.weight_hh_l0, 3.0)
    model = Model(lambda m, x, n: m.out(packed(m.rnn, x, n)).log_softmax(-1), rnn=rnn, out=nn.Linear(16, LABELS))
    found = {one.code: one.layer for one in check_model(model, *speech())}
    assert found == {"nan": None, "exploding_gradients": "rnn.0"}


# --- initial scales


def weight_normed(new: bool) -> nn.Module:
    make = torch.nn.utils.parametrizations.weight_norm if new else torch.nn.utils.weight_norm
    return make(nn.Conv1d(64, 64, 31, padding=15, groups=4), dim=2)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("new", [True, False])
def test_usual_initial_scales_are_not_wild(new: bool) -> None:
    """Tables from N(0, 1), gains of norms with two axes, weight norm, an output bias of log frequencies."""

    def way(m: Model, x: Tensor, n: Tensor) -> Tensor:
        y = m.norm(m.into(x).unflatten(2, (4, 16))).flatten(2) + m.table(torch.arange(x.shape[1]))
        y = m.conv((y * real(y, n)[..., None]).transpose(1, 2)).transpose(1, 2)
        return m.out(packed(m.rnn, y, n)).log_softmax(-1)

    for wild in (False, True):
        torch.manual_seed(0)
        model = Model(
            way, table=nn.Embedding(200, 64), into=nn.Linear(SIZE, 64), norm=nn.LayerNorm([4, 16]), rnn=gru(64),
            conv=weight_normed(new), out=nn.Linear(16, LABELS),
        )  # fmt: skip
        with torch.no_grad():
            model.out.bias.copy_(torch.randn(LABELS).log_softmax(0))
            if wild:
                list(model.conv.parameters())[-2 if not new else 1].mul_(20)  # its g
        found = check_model(model, *speech())
        assert [(one.code, one.layer) for one in found] == ([("wild_weight_scale", "conv")] if wild else [])


def test_an_output_bias_of_noise_is_wild() -> None:
    model = two_layers(plain)
    nn.init.normal_(model.out.bias)
    assert [(one.code, one.layer) for one in check_model(model, *speech())] == [("wild_bias_scale", "out")]


# --- lengths and shapes


@pytest.mark.parametrize(
    ("give", "expected"),
    [
        (lambda n: n, None),
        (lambda n: n.float(), None),
        (lambda n: n.tolist(), None),
        (lambda n: n // 2, "lengths_off_by_factor"),
        (lambda n: n / 2, "lengths_off_by_factor"),
        (lambda n: n / n.max(), "lengths_off_by_factor"),
        (lambda n: [int(one) // 2 for one in n], "lengths_off_by_factor"),
        (lambda n: torch.randn(1, 5, 16), None),  # a last state
        (lambda n: None, None),
    ],
)
def test_lengths_that_a_model_returns_are_judged_whatever_their_type(
    give: Callable[[Tensor], Any], expected: str | None
) -> None:
    found = check_model(two_layers(lambda m, x, n: (plain(m, x, n), give(n))), *speech())
    assert codes(found) - {"impossible_targets"} == ({expected} if expected else set())


def test_features_padded_beyond_the_longest() -> None:
    """Lengths that a model gives are right; those of one that gives none are known from what more padding does."""
    batch = speech(frames=200)
    assert check_model(two_layers(lambda m, x, n: (plain(m, x, n), n)), *batch) == []

    def cropped(m: Model, x: Tensor, n: Tensor) -> Tensor:
        y = m.a(pack_padded_sequence(x, n, batch_first=True))[0]
        return m.out(pad_packed_sequence(y, batch_first=True)[0]).log_softmax(-1)

    assert check_model(two_layers(cropped), *batch) == []
    assert check_model(two_layers(lambda m, x, n: (cropped(m, x, n), n)), *batch) == []
    found = check_model(two_layers(lambda m, x, n: (plain(m, x, n), n // 2)), *batch)
    assert codes(found) == {"lengths_off_by_factor"}


def test_a_head_on_packed_frames_leaves_zeros_in_the_padding() -> None:
    def way(m: Model, x: Tensor, n: Tensor) -> Tensor:
        y = m.a(pack_padded_sequence(x, n, batch_first=True))[0]
        y = PackedSequence(m.out(y.data).log_softmax(-1), y.batch_sizes, y.sorted_indices, y.unsorted_indices)
        return pad_packed_sequence(y, batch_first=True)[0]

    assert check_model(two_layers(way), *speech()) == []


def test_waveforms_mappings_and_lists() -> None:
    def way(m: Model, x: Tensor, n: Tensor) -> dict[str, Tensor]:
        y = m.conv(x[:, None]).transpose(1, 2)
        n = (n - 40) // 20 + 1
        return {"log_probs": m.out(packed(m.a, y, n) if m.right else m.a(y)[0]).log_softmax(-1), "lengths": n}

    wave, lengths = torch.randn(5, 1200), torch.tensor([1200, 1000, 900, 800, 620])
    for row, n in zip(wave, lengths.tolist(), strict=True):
        row[n:] = 0
    for right in (True, False):
        torch.manual_seed(0)
        rnn = gru(16, bidirectional=True)
        model = Model(way, conv=nn.Conv1d(1, 16, 40, 20), a=rnn, out=nn.Linear(32, LABELS))
        model.right = right
        found = check_model(model, wave, lengths.tolist(), [[1, 2, 3], [4, 4], [5], [6, 1], [2]], [3, 2, 1, 2, 1])
        assert codes(found) == (set() if right else {"padding_first"})


def test_what_is_called_logits_gets_its_log_softmax() -> None:
    """Of a mapping or an object, as other libraries return them; log_softmax of log-probabilities changes nothing."""

    def way(m: Model, x: Tensor, n: Tensor) -> Any:
        y = m.out(packed(m.a, x, n))
        y = y.log_softmax(-1) if m.done else y.softmax(-1) if m.twice else y
        return {"loss": None, "logits": y, "lengths": n} if m.mapping else SimpleNamespace(logits=y, log_probs=None)

    for mapping, done, twice in (
        (True, False, False),
        (False, False, False),
        (True, True, False),
        (False, False, True),
    ):
        model = two_layers(way)
        model.mapping, model.done, model.twice = mapping, done, twice
        assert codes(check_model(model, *speech())) == ({"log_softmax_twice"} if twice else set())
    found = check_model(two_layers(lambda m, x, n: {"log_probs": m.out(packed(m.a, x, n))}), *speech())
    assert codes(found) == {"log_softmax_missing"}


def test_models_that_cannot_be_called() -> None:
    class NoLengths(nn.Module):
        def __init__(self, lazy: bool = False) -> None:
            super().__init__()
            self.a, self.out = gru(), nn.LazyLinear(LABELS) if lazy else nn.Linear(16, LABELS)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.a(x)[0]).log_softmax(-1)

    model = NoLengths()
    for forward, words in (
        (model, "cannot be called with features and lengths.*lambda x, n: net.x."),
        (lambda x, *, lengths: model(x), "cannot be called with features and lengths"),
        (two_layers(lambda m, x, n: plain(m, x, n), nn.LazyLinear(16)), "lazy layers have no weights yet.*call it on"),
    ):
        with pytest.raises(DataError, match=words) as error:
            check_model(forward, *speech())
        assert error.value.reason == "shapes"
    assert check_model(lambda x, n: model(x), *speech(), model=model) == []


def test_what_is_no_batch_or_no_output_is_refused() -> None:
    x, n, y, sizes = speech()
    model = two_layers(plain)
    for features, lengths, words in (
        (x.tolist(), n, r"features a list.*features \(B, T, F\) or waveforms"),
        (x[:, None], n, "features .5, 1, 60, 6. float32.*give a function around the model"),
        (x.transpose(1, 2), torch.tensor([60, 52, 44, 40, 31]), r"lengths 60, 52, .*features look like \(B, F, T\)"),
        (x.transpose(0, 1), n, r"features \(60, 5, 6\) and lengths \(5,\).*give features.transpose\(0, 1\)"),
        (x, n / 60, "lengths 1, 0.867, .*not relative"),
        (x, n[:, None], r"lengths \(5, 1\)"),
    ):
        with pytest.raises(DataError, match=words) as error:
            check_model(model, features, lengths, y, sizes)
        assert error.value.reason == "shapes"
    for give, words in (
        (lambda o: o.transpose(0, 1), r"returned outputs \(60, 5, 9\) for 5 utterances.*pass batch_first=False"),
        (lambda o: {"scores": o}, "returned a mapping with scores.*a mapping with log_probs"),
        (lambda o: o[0], r"returned outputs \(60, 9\)"),
        (lambda o: "text", "returned a str"),
    ):
        with pytest.raises(DataError, match=words):
            check_model(lambda a, b, give=give: give(model(a, b)), x, n, y, sizes, model=model)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
def test_scripted_models_and_inference_mode() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = gru(), nn.Linear(16, LABELS)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            return self.out(self.rnn(x)[0]).log_softmax(-1)

    model, batch = Plain(), speech()
    with pytest.raises(DataError, match=r"a scripted model hides its layers.*lambda x, n: scripted"):
        check_model(torch.jit.script(model), *batch)
    with torch.inference_mode():
        assert check_model(model, *speech()) == []
        with pytest.raises(DataError, match="build the model outside of it"):
            check_model(Plain(), *batch)
