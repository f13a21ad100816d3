"""Averages of checkpoints against NumPy, and the commands that make and score them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from toy import make_corpus, toy_recipe

from asrkit import registry
from asrkit.bundle import load_bundle
from asrkit.checkpoints.averaging import average_into, recompute
from asrkit.cli import main
from asrkit.errors import StorageError
from asrkit.experiment import train
from asrkit.model import build_model
from asrkit.preparation import prepare

ENCODERS = sorted(plugin.name for plugin in registry.list_plugins("encoders") if plugin.package == "asrkit")
LAYERS = "[{linear: 16}, norm, {bigru: {size: 8, norm: gates}}]"
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(run folder with its last four checkpoints, corpus)."""
    folder = tmp_path_factory.mktemp("run")
    corpus = make_corpus(folder / "cv")
    recipe = toy_recipe(folder, corpus, ("training.epochs", 6), ("training.keep_last", 4), ("training.keep_best", 2))
    return train(recipe, "", folder / "run", say=lambda _: None).folder, corpus


def states_of(folder: Path, encoder: str) -> list[State]:
    """Three states of one model that differ in everything a checkpoint can differ in."""
    model = build_model(toy_recipe(folder, folder, ("encoder", encoder), ("layers", LAYERS)), 8).acoustic
    states = []
    for seed in range(3):
        draw = np.random.default_rng(seed)
        state = {}
        for name, tensor in model.state_dict().items():
            if name.endswith(".count"):
                values = draw.integers(0, 40, tuple(tensor.shape)).astype("f4")
            elif name.endswith(("var", "original0")):
                values = draw.uniform(0.5, 2.0, tuple(tensor.shape)).astype("f4")
            else:
                values = draw.standard_normal(tuple(tensor.shape))
            state[name] = torch.from_numpy(np.asarray(values)).to(tensor.dtype)
            if not tensor.is_floating_point():
                state[name] = torch.tensor(7 + seed, dtype=tensor.dtype)
        states.append(state)
    return states


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_average_is_numpys(encoder: str, tmp_path: Path) -> None:
    states = states_of(tmp_path, encoder)
    model = build_model(toy_recipe(tmp_path, tmp_path, ("encoder", encoder), ("layers", LAYERS)), 8).acoustic
    average_into(model, states)
    found = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    stacked = {name: np.stack([state[name].numpy().astype("f8") for state in states]) for name in states[0]}
    counts = {name.removesuffix("count"): stacked[name] for name in stacked if name.endswith(".count")}
    for name, values in stacked.items():
        owner = name[: name.rindex(".") + 1]
        if "parametrizations" in name:
            continue  # below
        if owner in counts and name.endswith(("mean", "var")):
            weights = counts[owner]
            expected = (values * weights).sum(0) / np.maximum(weights.sum(0), 1)
            expected = np.where(weights.sum(0) > 0, expected, values[-1])
        elif owner in counts:
            expected = values.max(0)
        elif not states[0][name].is_floating_point():
            expected = values[-1]
        else:
            expected = values.mean(0)
        np.testing.assert_allclose(found[name], expected, rtol=2e-6, atol=1e-7, err_msg=name)
    assert bool(counts) == (encoder in ("frame_batch_norm", "sequence_batch_norm", "batch_renorm"))
    for name in (name for name in stacked if name.endswith("original1")):
        g, v = stacked[name.replace("original1", "original0")], stacked[name]
        axes = tuple(i for i in range(1, v.ndim) if g.shape[i] == 1)
        whole = (g * v / np.sqrt((v**2).sum(axes, keepdims=True))).mean(0)
        path, _, weight = name.removesuffix(".original1").rpartition(".parametrizations.")
        now = getattr(model.get_submodule(path), weight).detach().numpy()
        np.testing.assert_allclose(now, whole, rtol=1e-5, atol=1e-6)
    assert any("original1" in name for name in stacked) == (encoder == "weight_norm")


def test_a_step_that_one_checkpoint_has_seen_is_that_ones(tmp_path: Path) -> None:
    states = states_of(tmp_path, "frame_batch_norm")
    name = next(key.removesuffix("count") for key in states[0] if key.endswith(".count"))
    for state in states:
        state[f"{name}count"][5] = 0
    states[1][f"{name}count"][5] = 20
    model = build_model(toy_recipe(tmp_path, tmp_path, ("encoder", "frame_batch_norm"), ("layers", LAYERS)), 8).acoustic
    average_into(model, states)
    for part in ("mean", "var", "count"):
        torch.testing.assert_close(model.state_dict()[name + part][5], states[1][name + part][5], rtol=1e-6, atol=1e-7)


def test_states_of_different_models_are_refused(tmp_path: Path) -> None:
    states = states_of(tmp_path, "none")
    states[1]["head.linear.bias"] = torch.zeros(9)
    model = build_model(toy_recipe(tmp_path, tmp_path, ("encoder", "none"), ("layers", LAYERS)), 8).acoustic
    with pytest.raises(StorageError, match="different tensors"):
        average_into(model, states)


@pytest.mark.parametrize("encoder", ["sequence_batch_norm", "frame_batch_norm", "batch_renorm"])
def test_recomputed_statistics_are_those_of_all_frames(
    encoder: str, finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the first norm, whose input no other norm has touched, by NumPy over all train frames, padding left
    out; over several batches."""
    monkeypatch.setattr("asrkit.checkpoints.averaging.BATCH_FRAMES", 300)
    recipe = toy_recipe(tmp_path, finished[1], ("encoder", encoder))
    prepared = prepare(recipe, ("train",))
    acoustic, split = prepared.model.acoustic, prepared.splits["train"]
    draws = {name: value.clone() for name, value in acoustic.named_parameters()}
    norm = acoustic.encoder.stack.layers[2].norm  # type: ignore[index,union-attr]
    seen: list[list[np.ndarray]] = []
    norm.register_forward_hook(  # type: ignore[operator,union-attr]
        lambda _, given, __: seen.append([x[mask].numpy() for x, mask in zip(*given, strict=True)])
    )
    assert recompute(acoustic, split) == 1
    assert len(seen) > 1
    clips = [clip.astype("f8") for batch in seen for clip in batch]
    assert len(clips) == len(split)
    running = norm.running  # type: ignore[union-attr]
    if encoder == "frame_batch_norm":
        for t in (0, 3, max(map(len, clips)) - 1):
            alive = np.stack([clip[t] for clip in clips if len(clip) > t])
            np.testing.assert_allclose(running.mean[t], alive.mean(0), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(running.var[t], alive.var(0), rtol=1e-4, atol=1e-5)
            assert running.count[t] == len(alive)
    else:
        frames = np.concatenate(clips)
        np.testing.assert_allclose(running.mean, frames.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(running.var, frames.var(0), rtol=1e-4)
        assert running.count == len(frames)
    assert running.momentum == 0.1
    assert not norm.training  # type: ignore[union-attr]
    assert getattr(norm, "updates", 0) == 0
    assert all(torch.equal(value, draws[name]) for name, value in acoustic.named_parameters())


def test_the_command_and_its_evaluation(
    finished: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, corpus = finished
    folders = sorted((run / "checkpoints").glob("step-*"))
    assert len(folders) >= 4
    assert main(["average", str(run), "--last", "3", "--output", str(tmp_path / "three")]) == 0
    tensors = [load_file(folder / "model.safetensors") for folder in folders[-3:]]
    found = load_file(tmp_path / "three" / "model.safetensors")
    expected = np.mean([t["head.linear.weight"].astype("f8") for t in tensors], axis=0)
    np.testing.assert_allclose(found["head.linear.weight"], expected, rtol=1e-6, atol=1e-8)
    steps = [int(folder.name.removeprefix("step-")) for folder in folders[-3:]]
    assert load_bundle(tmp_path / "three").config["average"] == {"steps": steps, "recomputed": False}
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "three"), f"--data.root={corpus}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["utterances"] == 4
    assert main(["average", str(run), "--best", "2", "--recompute", "--output", str(run / "best")]) == 0
    states = [json.loads((folder / "state.json").read_text())["metrics"] for folder in folders]
    scores = sorted((state["selection"], int(f.name[5:])) for state, f in zip(states, folders, strict=True) if state)
    assert load_bundle(run / "best").config["average"]["steps"] == sorted(step for _, step in scores[:2])
    assert main(["evaluate", str(run / "best")]) == 0
    assert (run / "evaluation-test-best.json").is_file()
    assert not (run / "evaluation-test.json").exists()
    capsys.readouterr()
    assert main(["average", str(run), "--last", "9", "--output", str(tmp_path / "nine")]) == 2
    assert "training.keep_last=9" in capsys.readouterr().err
    assert main(["average", str(run), "--last", "2", "--output", str(tmp_path / "three")]) == 5
    assert main(["average", str(tmp_path / "three"), "--last", "2", "--output", str(tmp_path / "x")]) == 5


def test_what_only_training_needs_is_left_out(finished: tuple[Path, Path], tmp_path: Path) -> None:
    """A run with an inner loss has tensors in its checkpoints that no model has."""
    layers = "[{linear: 12}, norm, {bigru: 8}, {bigru: 8}]"
    options = ("training.epochs", 2), ("ctc.intermediate.weight", 0.3), ("layers", layers)
    recipe = toy_recipe(tmp_path, finished[1], *options)
    run = train(recipe, "", tmp_path / "run", say=lambda _: None).folder
    newest = max((run / "checkpoints").glob("step-*"))
    assert main(["average", str(run), "--last", "2", "--output", str(tmp_path / "two")]) == 0
    names = set(load_file(tmp_path / "two" / "model.safetensors"))
    assert names < set(load_file(newest / "model.safetensors"))
    assert names == set(load_file(run / "model" / "model.safetensors"))
    load_bundle(tmp_path / "two")
