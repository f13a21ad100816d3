"""Studies: the plan, which learning rate is chosen, the proof, and processes that are killed, crash or run out of
time."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from toy import RECIPE, make_corpus, sigterm_after

from asrkit import registry, source_code
from asrkit.cli import main
from asrkit.cli.study import _table
from asrkit.errors import AsrkitError, RecipeError, StoppedError, StorageError, TrustError
from asrkit.recipe import load_recipe, recipe_hash
from asrkit.recipe.schema import SCHEMA
from asrkit.runs import MetricsLog
from asrkit.study import cells, proof, record, runner, schedule, worker
from asrkit.study.plan import Study, common, load_study
from asrkit.training import CTCBrain

STUDY = """
name: toy_study
recipes: [toy.yaml]
encoders: [none, sequence_batch_norm]
overrides: {training.epochs: 2}
lr: [1.0e-2]
seeds: [1, 2]
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    return write_study(tmp_path)


def write_study(folder: Path, text: str = STUDY, recipes: tuple[str, ...] = ("toy",)) -> Path:
    for name in recipes:
        (folder / f"{name}.yaml").write_text(RECIPE, encoding="utf-8")
    (folder / "study.yaml").write_text(text, encoding="utf-8")
    return folder / "study.yaml"


def over(corpus: Path, tmp_path: Path) -> list[tuple[str, str]]:
    return [("data.root", f'"{corpus}"'), ("data.cache", f'"{tmp_path / "cache"}"')]


class TestPlan:
    def test_cells_are_the_product_and_carry_their_settings(self, tmp_path: Path) -> None:
        text = STUDY.replace("[1.0e-2]", "[1.0e-2, 3.0e-3]").replace("[toy.yaml]", "[toy.yaml, two.yaml]")
        text += (
            'axes: {depth: {"1": {layers.4.bigru: 8}, "2": {layers.4.bigru: 24}}, eps: {a: {}, b: {norm.eps: 0.1}}}\n'
        )
        study = load_study(write_study(tmp_path, text, ("toy", "two")))
        assert len(study.cells) == len({cell.id for cell in study.cells}) == 2 * 4 * 2 * 2 * 2
        cell = next(c for c in study.cells if c.id == "two--depth-2--eps-b--sequence_batch_norm--lr-0.003--seed-2")
        assert cell.settings["layers"][4]["bigru"] == 24
        assert cell.settings["norm"]["eps"] == 0.1
        assert cell.settings["training"]["lr"] == 0.003
        assert cell.settings["training"]["epochs"] == 2
        assert cell.settings["training"]["tensorboard"] is False
        assert (cell.settings["seed"], cell.settings["encoder"]) == (2, "sequence_batch_norm")
        assert cell.axes == {"depth": "2", "eps": "b"}
        assert len(study.arms) == 16

    def test_options_reach_the_study_or_its_recipes(self, study_file: Path) -> None:
        study = load_study(
            study_file, [("seeds", "[7]"), ("width", "8"), ("budget.minutes", "5"), ("training.epochs", "9")]
        )
        assert [cell.seed for cell in study.cells] == [7, 7]
        assert study.cells[0].settings["training"]["epochs"] == 9
        assert study.cells[0].settings["layers"][1]["linear"] == 8
        assert study.definition["budget"]["minutes"] == 5
        with pytest.raises(RecipeError, match="did you mean 'epochs'"):
            load_study(study_file, [("training.epoch", "3")])

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (("seeds: [1, 2]", "seeds: [1, 1]"), "value"),
            (("seeds: [1, 2]", "seeds: []"), "value"),
            (("lr: [1.0e-2]", "lr: 1.0e-2"), "value"),
            (("lr: [1.0e-2]", "lr: [0.01, 1.0e-2]"), "value"),
            (("lr: [1.0e-2]", "lr: [0]"), "value"),
            (("lr: [1.0e-2]", ""), "missing_value"),
            (("seeds:", "lr_seeds: 3\nseeds:"), "value"),
            (("[none, sequence", "[none, non, sequence"), "unknown_encoder"),
            (("recipes: [toy.yaml]", "recipes: [toy.yaml, ./toy.yaml]"), "recipe_name"),
            (("recipes: [toy.yaml]", "recipes: [other.yaml]"), "missing_recipe"),
            (("training.epochs: 2", "training.lr: 2"), "reserved"),
            (("training.epochs: 2", "seed: 2"), "reserved"),
            (("training.epochs: 2", "training.early_stopping: 2"), "study_recipe"),
            (("training.epochs: 2", "data.dev: null"), "study_recipe"),
            (("training.epochs: 2", "data.test: null"), "study_recipe"),
            (("training.epochs: 2", "training.epochs: 0"), "value"),
            (("name: toy_study", "name: ../up"), "folder_name"),
            (("name: toy_study", "name: toy_study\nbaseline: rms_norm"), "value"),
            (("name: toy_study", "nam: toy_study"), "unknown_key"),
            (("lr: ", "axes: {depth: {1: {}}}\nlr: "), "key"),
            (("lr: ", "axes: {a: {x: {training.clip: 1}}, b: {y: {training: {clip: 2}}}}\nlr: "), "axes_overlap"),
            (("lr: ", "axes: {a: {x: {training.epochs: 3}, y: {training.epochs: 4}}}\nlr: "), "axes_overlap"),
            (("lr: ", "axes: {a: {x: {encoder: none}}}\nlr: "), "reserved"),
            (("lr: ", "axes: {a: {}}\nlr: "), "value"),
            (("lr: ", 'axes: {size: {"8": {width: 8}, "16": {width: 8}}}\nlr: '), "axes_same"),
        ],
    )  # fmt: skip
    def test_what_cannot_work_is_refused(self, tmp_path: Path, change: tuple[str, str], reason: str) -> None:
        assert change[0] in STUDY
        with pytest.raises(AsrkitError) as error:
            load_study(write_study(tmp_path, STUDY.replace(*change)))
        assert error.value.reason == reason, str(error.value)

    @pytest.mark.parametrize(
        ("change", "options", "message"),
        [
            (('axes: {w: {"8": {width: 8}, "9": {widht: 9}}}\n'), [], r"^axes\.w\.9: widht: .*did you mean 'width'"),
            ("overrides: {trainin.epochs: 3}\n", [], r"^overrides: trainin\.epochs: .*did you mean 'training'"),
            ("", [("seedz", "[1]")], r"^--seedz: .*keys of a study: .*did you mean 'seeds'"),
        ],
    )
    def test_a_misspelled_key_is_found_where_it_was_written(
        self, tmp_path: Path, change: str, options: list[tuple[str, str]], message: str
    ) -> None:
        text = STUDY.replace("overrides: {training.epochs: 2}\n", "") + change
        with pytest.raises(RecipeError, match=message) as error:
            load_study(write_study(tmp_path, text), options)
        assert error.value.reason == "unknown_key"

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (("lr: ", 'axes: {"my depth": {"1": {}}}\nlr: '), r"axes: 'my depth' cannot be part of a folder.*letters"),
            (("lr: ", 'axes: {depth: {"a/b": {}}}\nlr: '), r"axes\.depth: 'a/b' cannot be part of a folder"),
            (
                ("lr: ", 'axes: {depth: {"1": 3}}\nlr: '),
                r"axes\.depth\.1 = 3; possible: a mapping from keys of a recipe",
            ),
            (("lr: ", "axes: {depth: 3}\nlr: "), r"axes\.depth = 3; possible: a mapping from names of values"),
            (("seeds:", "lr_seeds: 3\nseeds:"), r"lr_seeds = 3, and the number of seeds is 2; possible: 1 to 2"),
            (("name: toy_study", "axis: toy_study"), r"'axis' is not a key of a study; .*did you mean 'axes'"),
        ],
    )
    def test_a_mistake_is_named_by_its_part(self, tmp_path: Path, change: tuple[str, str], message: str) -> None:
        with pytest.raises(RecipeError, match=message):
            load_study(write_study(tmp_path, STUDY.replace(*change)))

    def test_of_two_recipes_the_one_without_the_key_is_named(self, tmp_path: Path) -> None:
        text = STUDY.replace("[toy.yaml]", "[toy.yaml, two.yaml]") + "axes: {a: {b: {layers.4.bigrus: 8}}}\n"
        with pytest.raises(RecipeError, match=r"axes\.a\.b: .*'bigrus' is not a key of layers\.4 \(in toy\.yaml\)"):
            load_study(write_study(tmp_path, text, ("toy", "two")))

    def test_what_is_no_study_is_told_apart(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        study = write_study(tmp_path, STUDY)
        assert main(["train", str(study)]) == 2  # the other way round
        assert f"with `recipes:` it is a study: asrkit study {study}" in capsys.readouterr().err
        with pytest.raises(
            RecipeError, match=r"toy.yaml is no whole study: recipes, encoders, lr have no value.*train"
        ):
            load_study(tmp_path / "toy.yaml")
        with pytest.raises(RecipeError, match=r"is a folder; fix: give the study's file"):
            load_study(study.parent)

    def test_a_study_runs_no_code(self, tmp_path: Path) -> None:
        with pytest.raises(TrustError):
            load_study(write_study(tmp_path, STUDY + "axes: !apply:os.getcwd []\n"))


def grid(folder: Path, encoders: int = 2, rates: int = 3, seeds: int = 3, lr_seeds: int = 1) -> Study:
    names = ["none", "layer_norm", "sequence_batch_norm", "rms_norm"][:encoders]
    values = [1e-3 * 2**i for i in range(rates)]
    numbers = list(range(1, seeds + 1))
    text = f"recipes: [toy.yaml]\nencoders: {names}\nlr: {values}\nseeds: {numbers}\nlr_seeds: {lr_seeds}\n"
    return load_study(write_study(folder, text))


def outcome(cer: float | None, test: bool = False) -> dict[str, Any]:
    found = {"cer": cer, "wer": cer}
    status = "failed" if cer is None else "done"
    return {
        "status": status,
        "dev": None if cer is None else found,
        "test": found if test else None,
        "wall_seconds": 2.0,
    }


class TestSchedule:
    def test_stage_one_then_the_chosen_rate_with_all_seeds(self, tmp_path: Path) -> None:
        study = grid(tmp_path)
        first = schedule.next_jobs(study, {})
        assert [(job.cell.seed, job.test) for job in first] == [(1, False)] * 6
        none = [cell for cell in study.cells if cell.encoder == "none" and cell.seed == 1]
        done = {cell.id: outcome(cer) for cell, cer in zip(none, (0.5, 0.2, 0.3), strict=True)}
        assert schedule.chosen_rates(study, done) == {"toy--none": 0.002, "toy--layer_norm": None}
        jobs = schedule.next_jobs(study, done)
        # The other arm's stage 1 comes first; of the chosen rate, the first seed lacks its test only.
        assert [(j.cell.encoder, j.cell.lr, j.cell.seed, j.test) for j in jobs] == [
            *(("layer_norm", lr, 1, False) for lr in (0.001, 0.002, 0.004)),
            *(("none", 0.002, seed, True) for seed in (1, 2, 3)),
        ]

    @pytest.mark.parametrize(
        ("cers", "best"),
        [((0.5, 0.5, 0.7), 0.001), ((1.0, None, 1.0), 0.001), ((None, 0.99, None), 0.002), ((1.2, None, 1.3), 0.002)],
    )
    def test_ties_take_the_smaller_rate_and_a_crash_counts_as_all_wrong(
        self, tmp_path: Path, cers: tuple[float | None, ...], best: float
    ) -> None:
        grid(tmp_path, encoders=1)
        study = load_study(tmp_path / "study.yaml", [("lr", "[4.0e-3, 2.0e-3, 1.0e-3]")])
        tuned = sorted((cell for cell in study.cells if cell.seed == 1), key=lambda cell: cell.lr)
        done = {cell.id: outcome(cer) for cell, cer in zip(tuned, cers, strict=True)}
        assert schedule.chosen_rates(study, done) == {"toy--none": best}

    def test_a_model_that_could_not_be_scored_has_no_rate(self, tmp_path: Path) -> None:
        """It is not as bad as no model: the arm's choice waits, and --retry-failed scores it."""
        study = grid(tmp_path, encoders=1)
        tuned = sorted((cell for cell in study.cells if cell.seed == 1), key=lambda cell: cell.lr)
        done: dict[str, Any] = {cell.id: outcome(0.5) for cell in tuned}
        done[tuned[1].id] = {**outcome(None), "status": "failed", "dev_error": {"code": "OSError"}}
        assert schedule.counted_cer(done[tuned[1].id]) is None
        assert schedule.chosen_rates(study, done) == {"toy--none": None}
        row = next(r for r in record.summary(study, done, {"toy--none": None})["cells"] if r["id"] == tuned[1].id)
        assert (row["status"], row["counted_cer"]) == ("failed", None)
        assert not cells.without_model(done[tuned[1].id])
        assert cells.without_model({"status": "failed", "dev": None})

    @pytest.mark.parametrize(
        ("cers", "hears", "best"),
        [
            ((0.9, 0.7, 0.6), (True, False, False), 0.001),  # what hears nothing comes after what does
            ((0.9, 0.7, 0.6), (False, False, False), 0.004),  # where none does, the smallest CER as it is
            ((0.9, 0.7, 0.6), (None, None, False), 0.002),  # not recorded: as if it did
            ((0.9, 0.9, 0.9), (False, True, True), 0.002),
        ],
    )
    def test_a_model_that_hears_nothing_counts_as_all_wrong_in_the_choice(
        self, tmp_path: Path, cers: tuple[float, ...], hears: tuple[bool | None, ...], best: float
    ) -> None:
        study = grid(tmp_path, encoders=1)
        tuned = sorted((cell for cell in study.cells if cell.seed == 1), key=lambda cell: cell.lr)
        done = {cell.id: {**outcome(cer), "hears": heard} for cell, cer, heard in zip(tuned, cers, hears, strict=True)}
        assert schedule.chosen_rates(study, done) == {"toy--none": best}
        tried = record.summary(study, done, {"toy--none": best})["arms"][0]["tuning"]
        assert [(one["dev_cer"], one["deaf"]) for one in tried] == [
            (cer, int(heard is False)) for cer, heard in zip(cers, hears, strict=True)
        ]

    @pytest.mark.parametrize(
        ("status", "phases", "best", "expected"),
        [("done", ["on_floor", "below_floor"], 2, True), ("done", ["below_floor", "on_floor"], 2, False),
         ("done", ["on_floor", "below_floor"], None, True), ("collapsed", ["below_floor"], 1, False),
         ("failed", [], None, False), ("done", [], None, None), ("done", [None], 1, None)],
    )  # fmt: skip
    def test_whether_a_cell_hears_is_known_of_cells_of_before(
        self, tmp_path: Path, status: str, phases: list[str | None], best: int | None, expected: bool | None
    ) -> None:
        log = MetricsLog(tmp_path / "metrics.jsonl")
        for number, phase in enumerate(phases, 1):
            log.append({"type": "epoch", "step": number, "epoch": number, "diagnosis": {"phase": phase}})
        cells.write_outcome(tmp_path, {"status": status, "best_epoch": best})
        found = cells.read_outcome(tmp_path)
        assert found is not None
        assert found["hears"] is expected

    @pytest.mark.parametrize(("rates", "seeds", "lr_seeds"), [(1, 3, 1), (2, 3, 1), (3, 3, 2), (2, 2, 2)])
    def test_a_whole_study(self, tmp_path: Path, rates: int, seeds: int, lr_seeds: int) -> None:
        """Carried out job by job: as many cells as announced, the best mean is chosen, test once per seed and arm."""
        study = grid(tmp_path, 3, rates, seeds, lr_seeds)
        draw = random.Random(rates)
        cers = {cell.id: draw.random() for cell in study.cells}
        done: dict[str, dict[str, Any]] = {}
        decoded: list[str] = []
        for _ in range(1000):
            jobs = schedule.next_jobs(study, done)
            if not jobs:
                break
            job = jobs[0]
            decoded += [job.cell.id] if job.test else []
            done[job.cell.id] = outcome(cers[job.cell.id], job.test)
        assert len(done) == schedule.total_cells(study)
        assert len(decoded) == len(set(decoded)) == 3 * seeds
        for arm, members in study.arms.items():
            means = {
                lr: np.mean([cers[c.id] for c in members if c.lr == lr and c.seed <= lr_seeds])
                for lr in {c.lr for c in members}
            }
            best = min(means, key=lambda lr: means[lr])
            assert schedule.chosen_rates(study, done)[arm] == best
            assert {name for name in decoded if name.startswith(f"{arm}--")} == {c.id for c in members if c.lr == best}
        assert record.summary(study, done, schedule.chosen_rates(study, done))["complete"]

    def test_the_time_left_is_that_of_the_cells_that_are_open(self, tmp_path: Path) -> None:
        study = grid(tmp_path)  # 6 cells to tune, 4 more
        assert schedule.seconds_left(study, {}, 2) is None
        assert schedule.seconds_left(study, {study.cells[0].id: outcome(0.5)}, 2) == pytest.approx(9 * 2.0 / 2)


class TestProof:
    @pytest.mark.parametrize("place", ["gates", "input", "hidden"])
    def test_all_strategies_share_the_weights_outside_their_norms(self, tmp_path: Path, place: str) -> None:
        from asrkit.model import build_model, parameter_count

        (tmp_path / "toy.yaml").write_text(RECIPE, encoding="utf-8")
        found = {}
        for name in ("none", "layer_norm", "frame_batch_norm", "sequence_batch_norm", "weight_norm", "group_norm"):
            options = [("encoder", name), ("layers.4.bigru", f"{{size: 16, norm: {place}}}")]
            if name == "none":  # counted by hand: what is left when no layer knows a norm
                options = [
                    ("encoder", name),
                    ("layers", "[{context: {left: 1, right: 1, stride: 2}}, {linear: 16}, relu, {bigru: 16}]"),
                ]
            if name == "frame_batch_norm" and place == "hidden":
                continue
            acoustic = build_model(load_recipe(tmp_path / "toy.yaml", options, known=SCHEMA), 10).acoustic
            weights = proof.shared_weights(acoustic)
            found[name] = sum(value.numel() for value in weights.values())
            if name == "none":
                assert found[name] == parameter_count(acoustic)
        assert len(set(found.values())) == 1, found

    def test_weight_norm_starts_from_the_same_values(self, tmp_path: Path) -> None:
        from asrkit.model import build_model

        (tmp_path / "toy.yaml").write_text(RECIPE, encoding="utf-8")
        one, other = (
            proof.shared_weights(
                build_model(load_recipe(tmp_path / "toy.yaml", [("encoder", name)], known=SCHEMA), 10).acoustic
            )
            for name in ("none", "weight_norm")
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)

    def test_what_was_planned_is_what_a_stopped_and_resumed_run_has_seen(
        self, tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from asrkit.preparation import prepare

        study = load_study(
            write_study(tmp_path), [*over(corpus, tmp_path), ("training.accumulation", "2"), ("norm.batch", "micro")]
        )
        settings = study.cells[1].settings
        update = CTCBrain._update

        def stopping(brain: CTCBrain, batch: Any) -> bool:
            done = update(brain, batch)
            if brain.position.update == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return done

        from asrkit.experiment import train

        with monkeypatch.context() as patch:
            patch.setattr(CTCBrain, "_update", stopping)
            with pytest.raises(StoppedError):
                train(settings, "", tmp_path / "run", say=lambda _: None)
        train(settings, "", tmp_path / "run", say=lambda _: None)
        metrics = MetricsLog.read(tmp_path / "run" / "metrics.jsonl")
        split = prepare(settings, ("train",)).splits["train"]
        expected = proof.planned(settings, split)
        assert proof.recorded(metrics, 2) == expected
        assert expected["updates"] == metrics[-1]["step"]
        assert proof.recorded(metrics, 3) == {}
        assert proof.planned({**settings, "seed": 9}, split)["order"] != expected["order"]

    def test_every_difference_is_named(self, tmp_path: Path) -> None:
        study = load_study(write_study(tmp_path, STUDY.replace("seeds: [1, 2]", "seeds: [1]")))
        one, two = study.cells
        same = {"settings": "s", "order": "o", "updates": 6, "weights": "w", "train": "t", "dev": "d"}
        prints: dict[str, dict[str, Any]] = {one.id: dict(same), two.id: dict(same)}
        proof.check(study, prints)
        prints[two.id]["order"] = None  # a crashed cell proves nothing
        proof.check(study, prints)
        two.settings["training"]["clip"] = 1.0
        prints[one.id]["weights_by_name"], prints[two.id]["weights_by_name"] = (
            {"a": "1", "b": "2"},
            {"a": "1", "b": "3"},
        )
        prints[two.id] |= {"settings": "other", "weights": "v", "updates": 7}
        with pytest.raises(RecipeError) as error:
            proof.check(study, prints)
        assert error.value.exit_code == 2
        for part in (
            "none and sequence_batch_norm",
            "training.clip: 5.0 -> 1.0",
            "initial weights: b",
            "updates: 6 and 7",
        ):
            assert part in str(error.value)

    def test_an_encoder_that_draws_is_refused_before_anything_is_trained(
        self, tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from asrkit import StackEncoder

        monkeypatch.setattr(registry, "_registered", dict(registry._registered))

        @registry.register_encoder("drawing")
        class Drawing(StackEncoder):
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **options)
                for weight in self.parameters():
                    torch.nn.init.uniform_(weight)

            def make_norm(self, size: int) -> torch.nn.Module:
                return Identity()

        study = load_study(write_study(tmp_path), [*over(corpus, tmp_path), ("encoders", "[none, drawing]")])
        with pytest.raises(RecipeError, match=r"none and drawing: initial weights: .*weight") as error:
            runner.run_study(study, tmp_path / "study", say=lambda _: None)
        assert error.value.reason == "not_only_the_axis"
        assert not (tmp_path / "study" / "cells").exists()

    def test_the_sources_that_a_run_computes_with(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for place in ("asrkit/recurrent/scan.py", "asrkit/cli/study.py", "asrkit_norms/layer_norm.py"):
            (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / place).write_text("a = 1\n")

        def spec(name: str) -> SimpleNamespace:
            return SimpleNamespace(submodule_search_locations=[str(tmp_path / name)])

        def hashed() -> str:
            source_code.version_hash.cache_clear()
            return source_code.version_hash()

        installed = source_code.version_hash()
        assert re.fullmatch("[0-9a-f]{16}", installed)
        monkeypatch.setattr(source_code.importlib.util, "find_spec", spec)
        first = hashed()
        (tmp_path / "asrkit/cli/study.py").write_text("a = 2\n")
        assert hashed() == first  # no figure of a run comes from a command
        (tmp_path / "asrkit_norms/layer_norm.py").write_text("a = 2\n")
        second = hashed()
        assert second != first
        monkeypatch.setattr("torch.__version__", "0.0")
        assert hashed() not in (first, second)
        monkeypatch.undo()
        assert hashed() == installed


class Identity(torch.nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return x


class TestCell:
    def task(self, study: Study, folder: Path, place: int = 1) -> dict[str, Any]:
        folder.mkdir(parents=True)
        cells.write_task(folder, study.cells[place], study, [], 1)
        return cells.read_task(folder)

    def test_what_a_cell_leaves(self, tmp_path: Path, corpus: Path) -> None:
        """Dev and test, utterance by utterance, as `asrkit evaluate` scores them."""
        study = load_study(write_study(tmp_path), [*over(corpus, tmp_path), ("training.epochs", "12")])
        folder = tmp_path / "cell"
        found = worker.do_cell(folder, self.task(study, folder), test=False)
        assert (found["status"], found["test"], found["resumed"]) == ("done", None, False)
        before = (folder / "metrics.jsonl").read_bytes()
        found = worker.do_cell(folder, cells.read_task(folder), test=True)
        assert (folder / "metrics.jsonl").read_bytes() == before
        assert cells.read_outcome(folder) == {"format": 1, **found}
        assert found["epochs"] == 12
        assert found["updates"] == found["proof"]["updates"]
        assert not (folder / "checkpoints").exists()
        assert main(["evaluate", str(folder), "--device", "cpu"]) == 0
        scores = json.loads((folder / "evaluation-test.json").read_text())
        test = found["test"]
        assert (test["cer"], test["wer"]) == (scores["cer"], scores["wer"])
        assert sum(test["characters"]["errors"]) / sum(test["characters"]["lengths"]) == pytest.approx(test["cer"])
        assert found["proof"]["test"] == scores["split_hash"]
        assert len(test["ids"]) == len(set(test["ids"])) == 4
        arm = cells.arm_of("a", [found, {**found, "seed": 5}, {**found, "test": None}])
        assert arm.errors.shape == (2, 4)
        assert arm.seeds == (1, 5) or arm.seeds == (2, 5)
        assert arm.rates == pytest.approx([test["cer"]] * 2)
        assert set(arm.speakers) <= {"test0", "test1", "test2"}

    def test_a_crash_is_a_result_and_is_scored_by_what_it_left(
        self, tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        study = load_study(write_study(tmp_path), over(corpus, tmp_path))
        folder = tmp_path / "cell"
        objectives = CTCBrain.compute_objectives

        def poisoned(brain: CTCBrain, predictions: Any, batch: Any, stage: Any) -> torch.Tensor:
            nll = objectives(brain, predictions, batch, stage)
            return nll * float("nan") if brain.position.epoch == 2 else nll

        with monkeypatch.context() as patch:
            patch.setattr(CTCBrain, "compute_objectives", poisoned)
            found = worker.do_cell(folder, self.task(study, folder), test=True)
        assert found["status"] == "failed"
        assert found["error"]["code"] == "nonfinite"
        assert found["error"]["exit_code"] == 4
        assert "3 batches in a row" in found["error"]["message"]
        epochs = [line for line in MetricsLog.read(folder / "metrics.jsonl") if line["type"] == "epoch"]
        assert found["dev"]["cer"] == epochs[0]["dev"]["cer"]
        assert found["test"] is not None
        assert found["proof"]["order"] is None
        waiting = cells.failure(study.cells[1], "killed", "its process was ended by SIGKILL", -9)
        cells.write_outcome(folder, {**waiting, "unscored": True})
        scored = worker.do_cell(folder, cells.read_task(folder), test=True)
        assert scored["error"]["code"] == "killed"
        same = ("status", "dev", "test", "epochs", "hears", "proof", "best_epoch")
        assert {key: scored[key] for key in same} == {key: found[key] for key in same}
        assert "unscored" not in scored
        study.cells[:] = [cell for cell in study.cells if cell.id == found["id"]]
        home = tmp_path / "home"
        (home / "cells").mkdir(parents=True)
        folder.rename(home / "cells" / found["id"])
        assert cells.set_aside_failures(study, home) == [found["id"]]
        again = worker.do_cell(home / "cells" / found["id"], cells.read_task(home / "cells" / found["id"]), test=False)
        assert (again["status"], again["resumed"], again["epochs"]) == ("done", True, 2)

    def test_a_model_that_cannot_be_scored_is_kept_and_scored_later(
        self, tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        study = load_study(write_study(tmp_path), over(corpus, tmp_path))
        folder = tmp_path / "cell"
        with monkeypatch.context() as patch:
            patch.setattr("asrkit.evaluation.evaluate", lambda *_, **__: 1 / 0)
            found = worker.do_cell(folder, self.task(study, folder), test=True)
        assert (found["status"], found["dev"], found["epochs"]) == ("failed", None, 2)
        assert found["dev_error"]["code"] == "ZeroDivisionError"
        assert schedule.counted_cer(found) is None
        (folder / "cell.json").unlink()
        found = worker.do_cell(folder, cells.read_task(folder), test=True)
        assert (found["status"], found["dev_error"]) == ("done", None)
        assert found["test"] is not None

    def test_the_sources_of_all_processes_that_trained_are_recorded(
        self, tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And not those of one that has only scored the model."""
        study = load_study(write_study(tmp_path), over(corpus, tmp_path))
        folder = tmp_path / "cell"
        task = self.task(study, folder)
        for sources, step in (("1" * 16, 3), ("2" * 16, None), ("3" * 16, None)):
            monkeypatch.setattr(source_code, "version_hash", lambda sources=sources: sources)
            if step is not None:
                with sigterm_after(step), pytest.raises(StoppedError):
                    worker.do_cell(folder, task, test=False)
                continue
            (folder / "cell.json").unlink(missing_ok=True)
            found = worker.do_cell(folder, task, test=False)
            assert found["proof"]["code"] == "1" * 16 + "+" + "2" * 16
        assert proof.shortened(found["proof"]["code"]) == "11111111+22222222"

    def test_a_crash_without_a_model(self, tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        study = load_study(write_study(tmp_path), over(corpus, tmp_path))
        monkeypatch.setattr(CTCBrain, "compute_forward", lambda *_: 1 / 0)
        found = worker.do_cell(tmp_path / "cell", self.task(study, tmp_path / "cell"), test=True)
        assert (found["status"], found["dev"], found["test"]) == ("failed", None, None)
        assert found["error"] == {"code": "ZeroDivisionError", "message": "division by zero", "exit_code": 1}
        assert schedule.counted_cer(found) == 1.0

    @pytest.mark.parametrize(
        ("empty", "phase", "expected"),
        [(1.0, "on_floor", True), (0.99, "above_floor", True), (1.0, "below_floor", False), (0.98, "on_floor", False),
         (1.0, None, True)],
    )  # fmt: skip
    def test_collapse_is_empty_outputs_and_a_loss_that_hears_nothing(
        self, empty: float, phase: str | None, expected: bool
    ) -> None:
        epochs = [{"diagnosis": {"phase": "above_floor"}}, {"diagnosis": {"phase": phase}}] if phase else [{}]
        assert worker.collapsed(epochs, {"empty": empty}) is expected

    def test_other_settings_are_refused(self, tmp_path: Path) -> None:
        study = load_study(write_study(tmp_path))
        home = tmp_path / "home"
        self.task(study, home / "cells" / study.cells[0].id, 0)
        cells.refuse_other_cells(
            load_study(tmp_path / "study.yaml", [("seeds", "[1, 2, 3]"), ("data.root", "x")]), home
        )
        with pytest.raises(RecipeError, match=r"training\.epochs: 2 -> 3") as error:
            cells.refuse_other_cells(load_study(tmp_path / "study.yaml", [("training.epochs", "3")]), home)
        assert error.value.reason == "other_cell"

    def test_other_arms_under_the_same_name_are_refused(self, tmp_path: Path) -> None:
        home = tmp_path / "home"
        study = load_study(write_study(tmp_path))
        cell = study.cells[0]
        (home / "cells" / cell.id).mkdir(parents=True)
        cells.write_outcome(home / "cells" / cell.id, {**cells.about(cell), "status": "done", "dev": None})
        cells.refuse_other_cells(load_study(tmp_path / "study.yaml", [("seeds", "[8]"), ("lr", "[0.5]")]), home)
        with pytest.raises(RecipeError, match=r"of the same name and of other arms \(toy--none\); fix: give another"):
            cells.refuse_other_cells(load_study(tmp_path / "study.yaml", [("encoders", "[rms_norm]")]), home)

    def test_damage_is_named_with_a_way_out(self, tmp_path: Path) -> None:
        study = load_study(write_study(tmp_path))
        home, place = tmp_path / "home", tmp_path / "home" / "cells" / study.cells[0].id
        self.task(study, place, 0)
        (home / "study.json").write_text("{")
        cells.refuse_other_cells(study, home)  # it is written anew
        foreign = home / "cells" / "zzz"
        foreign.mkdir()
        (foreign / "cell.json").write_text('{"format": 1}')
        with pytest.raises(StorageError, match=r"zzz/cell\.json is not what a cell leaves \(no id, .*fix: remove its"):
            cells.other_outcomes(study, home)
        (place / "task.json").unlink()
        with pytest.raises(StorageError, match=r"has no task\.json.*fix: remove the folder: the cell is done anew"):
            cells.read_task(place)

    @pytest.mark.parametrize(("key", "fine"), [("workers", True), ("clip", False)])
    def test_a_key_that_came_after_a_cell_is_no_difference_where_it_may_change(
        self, tmp_path: Path, key: str, fine: bool
    ) -> None:
        study = load_study(write_study(tmp_path))
        folder = tmp_path / "home" / "cells" / study.cells[0].id
        self.task(study, folder, 0)
        task = json.loads((folder / "task.json").read_text(encoding="utf-8"))
        del task["settings"]["training"][key]
        (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")
        for hashed, compared in ((recipe_hash(common(task["settings"])), fine), ("of other settings", False)):
            cells.write_outcome(folder, {"dev": None, "proof": {"settings": hashed, "order": "o"}})
            (known,) = (found["proof"] for found in cells.read_outcomes(study, tmp_path / "home").values())
            expected = recipe_hash(common(study.cells[0].settings)) if compared else hashed
            assert known == {"settings": expected, "order": "o"}
        if fine:
            cells.refuse_other_cells(study, tmp_path / "home")
        else:
            with pytest.raises(RecipeError, match=rf"training\.{key}: \(absent\) -> "):
                cells.refuse_other_cells(study, tmp_path / "home")


# What a cell's process does in the tests of the runner: no torch, only files.
FAKE = """
import json, os, signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1]); test = "--test" in sys.argv
task = json.loads((folder / "task.json").read_text())
cell, seed, lr = task["cell"], task["cell"]["seed"], task["cell"]["lr"]
with (folder.parent / "journal").open("a") as file:
    file.write(f"+ {cell['id']}\\n")
{body}
score = {"cer": lr * 10 + seed / 1000, "wer": 1.0}
found = {"format": 1, **cell, "status": "done", "error": None, "dev": score, "test": score if test else None,
         "test_error": None, "wall_seconds": 1.0, "proof": None}
(folder / "new").write_text(json.dumps(found)); (folder / "new").rename(folder / "cell.json")
with (folder.parent / "journal").open("a") as file:
    file.write(f"- {cell['id']}\\n")
"""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Replaces the process of a cell by FAKE with a body of one line, and leaves out what is prepared before."""
    monkeypatch.setattr(record, "prove", lambda *_: {})

    def set_body(body: str = "pass") -> None:
        script = FAKE.replace("{body}", body)
        monkeypatch.setattr(
            runner.Runner,
            "command",
            lambda self, folder, test: [sys.executable, "-S", "-c", script, str(folder), *(["--test"] if test else [])],
        )

    set_body()
    return set_body


def journal(folder: Path) -> list[str]:
    path = folder / "cells" / "journal"
    return path.read_text().splitlines() if path.exists() else []


class TestRunner:
    def go(self, study: Study, folder: Path, **options: Any) -> dict[str, Any]:
        return runner.run_study(study, folder, say=lambda line: self.lines.append(line), **options)

    @pytest.fixture(autouse=True)
    def _lines(self) -> None:
        self.lines: list[str] = []

    def test_all_cells_once_and_not_more_than_allowed_at_a_time(self, tmp_path: Path, fake: Callable) -> None:
        fake("time.sleep(0.7)")  # longer than three processes take to start on a busy machine
        study = grid(tmp_path, encoders=2, rates=2, seeds=3)
        study.definition["budget"]["processes"] = 3
        summary = self.go(study, tmp_path / "s")
        assert summary["complete"]
        assert summary["counts"] == {"done": 8}
        assert [arm["lr"] for arm in summary["arms"]] == [0.001, 0.001]
        assert json.loads((tmp_path / "s" / "study.json").read_text()) == summary
        running, most = 0, 0
        for word in journal(tmp_path / "s"):
            running += 1 if word[0] == "+" else -1
            most = max(most, running)
        assert most == 3
        starts = [word for word in journal(tmp_path / "s") if word[0] == "+"]
        assert len(starts) == 8 + 2  # the two cells of stage 1 that were chosen are opened again for their test
        assert "[8/8]" in self.lines[-1]
        self.go(study, tmp_path / "s")
        assert [word for word in journal(tmp_path / "s") if word[0] == "+"] == starts

    def test_a_crashed_cell_is_shown_and_tried_again_only_when_asked(self, tmp_path: Path, fake: Callable) -> None:
        fake("if seed == 2: print('asrkit: error[oops]: no luck', flush=True); sys.exit(1)")
        study = grid(tmp_path, encoders=2, rates=1, seeds=3)
        summary = self.go(study, tmp_path / "s")
        assert summary["complete"]
        assert summary["counts"] == {"done": 4, "failed": 2}
        wrong = [cell for cell in summary["cells"] if cell["status"] == "failed"]
        assert {cell["seed"] for cell in wrong} == {2}
        assert wrong[0]["error"] == {"code": "crashed", "message": "asrkit: error[oops]: no luck", "exit_code": 1}
        assert wrong[0]["counted_cer"] == 1.0
        assert any("failed (crashed: asrkit: error[oops]: no luck)" in line for line in self.lines)
        fake()
        starts = len(journal(tmp_path / "s"))
        assert self.go(study, tmp_path / "s")["counts"] == {"done": 4, "failed": 2}
        assert len(journal(tmp_path / "s")) == starts
        assert self.go(study, tmp_path / "s", retry_failed=True)["counts"] == {"done": 6}
        assert len(list((tmp_path / "s").glob("cells/*/cell.failed-1.json"))) == 2

    def test_a_process_that_is_killed_is_named(self, tmp_path: Path, fake: Callable) -> None:
        fake("if seed == 2: os.kill(os.getpid(), signal.SIGKILL)")
        summary = self.go(grid(tmp_path, encoders=1, rates=1), tmp_path / "s")
        [wrong] = [cell for cell in summary["cells"] if cell["status"] == "failed"]
        assert wrong["error"]["code"] == "killed"
        assert "SIGKILL (out of memory?)" in wrong["error"]["message"]

    def test_a_killed_cell_is_scored_by_its_best_checkpoint(self, tmp_path: Path, fake: Callable) -> None:
        first = "(folder / 'checkpoints/step-00000001').mkdir(parents=True); os.kill(os.getpid(), signal.SIGKILL)"
        fake(
            "there = json.loads((folder / 'cell.json').read_text()) if (folder / 'cell.json').exists() else {}\n"
            f"if seed > 1 and not there: {first}\n"
            "if seed == 3: os.kill(os.getpid(), signal.SIGKILL)"
        )
        study = grid(tmp_path, encoders=1, rates=1)
        summary = self.go(study, tmp_path / "s")
        assert summary["complete"]
        starts = [word for word in journal(tmp_path / "s") if word.startswith("+")]
        assert len(starts) == 5  # a second process each, and no third
        scored, died = summary["cells"][1:]
        assert scored["dev_cer"] == pytest.approx(0.012)
        assert (died["status"], died["error"]["code"], died["dev_cer"]) == ("failed", "killed", None)
        assert "unscored" not in json.loads((tmp_path / "s" / died["path"] / "cell.json").read_text())

    def test_a_cell_that_somebody_else_stops_goes_on_once(self, tmp_path: Path, fake: Callable) -> None:
        fake(
            "seen = folder / 'seen'; before = seen.exists(); seen.touch()\n"
            "if seed == 2 and not before or seed == 3: print('stopped', flush=True); sys.exit(75)"
        )
        summary = self.go(grid(tmp_path, encoders=1, rates=1), tmp_path / "s")
        assert summary["counts"] == {"done": 2, "failed": 1}
        assert summary["cells"][2]["error"]["code"] == "stopped"
        assert sum("it goes on" in line for line in self.lines) == 2

    def test_what_is_left_out_is_still_shown(self, tmp_path: Path, fake: Callable) -> None:
        """A rate that is not chosen any more, an arm and a seed that the study has lost: trained, and on record."""
        study = grid(tmp_path, encoders=2, rates=2, seeds=2)
        assert self.go(study, tmp_path / "s")["left_out"] == []
        options = [("lr", "[5.0e-4, 1.0e-3, 2.0e-3]")]
        wider = self.go(load_study(tmp_path / "study.yaml", options), tmp_path / "s", test_again=True)
        assert [(one["id"], one["why"]) for one in wider["left_out"]] == [
            (f"toy--{encoder}--lr-0.001--seed-2", "rate not chosen now") for encoder in study.definition["encoders"]
        ]
        fewer = self.go(
            load_study(tmp_path / "study.yaml", [*options, ("encoders", "[none]"), ("seeds", "[1]")]), tmp_path / "s"
        )
        assert fewer["counts"] == {"done": 3}
        assert fewer["tested_before"] == {"toy--none": [0.001]}
        assert len(fewer["left_out"]) == 3 + 3 + 1
        assert {one["why"] for one in fewer["left_out"]} == {"no longer in the study"}
        assert fewer["left_out"][0]["dev_cer"] is not None
        self.lines.clear()
        more = load_study(tmp_path / "study.yaml", [*options, ("encoders", "[none]"), ("seeds", "[1, 2, 5]")])
        self.go(more, tmp_path / "s")
        assert "4 of 5 cells are done; 6 more are not in use" in self.lines[0]

    def test_a_full_disk_ends_the_study_and_is_no_result(self, tmp_path: Path, fake: Callable) -> None:
        fake("if seed == 2: print('no space left', flush=True); sys.exit(5)")
        study = grid(tmp_path, encoders=1, rates=1)
        with pytest.raises(StorageError, match="no space left"):
            self.go(study, tmp_path / "s")
        fake()
        assert self.go(study, tmp_path / "s")["counts"] == {"done": 3}

    def test_the_budget_of_time(self, tmp_path: Path, fake: Callable) -> None:
        fake("time.sleep(60 if seed > 1 else 0)")
        study = grid(tmp_path, encoders=2, rates=1)
        study.definition["budget"] |= {"minutes": 3 / 60, "processes": 2}
        began = time.monotonic()
        with pytest.raises(StoppedError, match="time budget is used up; 2 of 6") as error:
            self.go(study, tmp_path / "s")
        assert time.monotonic() - began < 30
        assert error.value.exit_code == 75
        summary = json.loads((tmp_path / "s" / "study.json").read_text())
        assert summary["counts"] == {"done": 2, "skipped_budget": 4}
        assert not summary["complete"]
        fake()
        assert self.go(study, tmp_path / "s")["counts"] == {"done": 6}

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_asks_the_cells_to_save(self, tmp_path: Path, fake: Callable, number: int) -> None:
        saving = "signal.signal(15, lambda *_: ((folder / 'saved').touch(), sys.exit(75)))"
        alone = "(folder / 'alone').write_text(str(os.getsid(0) == os.getpid()))"  # Ctrl-C reaches the study only
        fake(f"{saving}; {alone}; os.kill(os.getppid(), {int(number)}); time.sleep(60)")
        study = grid(tmp_path, encoders=1, rates=1)
        with pytest.raises(StoppedError, match=f"stopped by {signal.Signals(number).name}"):
            self.go(study, tmp_path / "s")
        assert len(list((tmp_path / "s").glob("cells/*/saved"))) == 1
        assert [path.read_text() for path in (tmp_path / "s").glob("cells/*/alone")] == ["True"]
        assert not list((tmp_path / "s").glob("cells/*/cell.json"))
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    def test_the_test_split_is_not_decoded_with_a_second_learning_rate(self, tmp_path: Path, fake: Callable) -> None:
        self.go(grid(tmp_path, encoders=1, rates=2, seeds=1), tmp_path / "s")
        with pytest.raises(RecipeError) as error:
            self.go(load_study(tmp_path / "study.yaml", [("lr", "[5.0e-4, 1.0e-3]")]), tmp_path / "s")
        assert error.value.reason == "test_touched"
        more = load_study(tmp_path / "study.yaml", [("lr", "[1.0e-3, 2.0e-3, 9.0e-3]"), ("seeds", "[1, 2]")])
        assert self.go(more, tmp_path / "s")["complete"]

    def test_a_wider_grid_keeps_what_is_done_and_says_what_was_seen(self, tmp_path: Path, fake: Callable) -> None:
        """Best on dev is the smallest rate (see FAKE): 1e-3 at first, 5e-4 of the wider grid."""
        self.go(grid(tmp_path, encoders=1, rates=2, seeds=2), tmp_path / "s")
        assert json.loads((tmp_path / "s/test_touched.json").read_text()) == {"toy--none": 0.001}
        began = len(journal(tmp_path / "s"))
        wider = load_study(tmp_path / "study.yaml", [("lr", "[5.0e-4, 1.0e-3, 2.0e-3]")])
        with pytest.raises(RecipeError, match="--test-again"):
            self.go(wider, tmp_path / "s")
        assert any(line.startswith("! 1 arm has its learning rate open again") for line in self.lines)
        again = self.go(wider, tmp_path / "s", test_again=True)
        assert again["complete"]
        # New are the first seed's stage 1, its test, and the second seed; nothing that was done is done again.
        assert [line for line in journal(tmp_path / "s")[began:] if line.startswith("+")] == [
            "+ toy--none--lr-0.0005--seed-1", "+ toy--none--lr-0.0005--seed-1", "+ toy--none--lr-0.0005--seed-2",
        ]  # fmt: skip
        assert json.loads((tmp_path / "s/test_touched.json").read_text()) == {"toy--none": [0.001, 0.0005]}
        assert again["tested_before"] == {"toy--none": [0.001]}
        tested = {(cell["lr"], cell["seed"]) for cell in again["cells"] if cell["chosen"] and cell["tested"]}
        assert tested == {(0.0005, 1), (0.0005, 2)}
        self.lines.clear()
        assert self.go(wider, tmp_path / "s")["tested_before"] == {"toy--none": [0.001]}  # it stays said
        from asrkit.report.collect import collect
        from asrkit.report.words import headlines

        said = headlines(collect(tmp_path / "s"), {}, [], [], "test", "CER")
        assert any("toy, none (0.001)" in line and "no longer untouched" in line for line in said)

    def test_one_study_at_a_time_in_a_folder(self, tmp_path: Path, fake: Callable) -> None:
        from asrkit.runs import RunFolder

        with RunFolder(tmp_path / "s").lock(), pytest.raises(AsrkitError) as error:
            self.go(grid(tmp_path), tmp_path / "s")
        assert error.value.exit_code == 6
        self.go(grid(tmp_path, 1, 1, 1), tmp_path / "s")
        (tmp_path / "study.yaml").write_text((tmp_path / "study.yaml").read_text() + "name: other\n")
        with pytest.raises(RecipeError) as error:
            self.go(load_study(tmp_path / "study.yaml"), tmp_path / "s")
        assert error.value.reason == "other_study"

    def test_a_gpu_each(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        study = grid(tmp_path)
        study.definition["budget"] |= {"processes": 4, "gpus": 2}
        one = runner.Runner(study, tmp_path)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        with pytest.raises(RecipeError, match=r"this machine has 1; fix: --budget\.gpus=1"):
            one.run()
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert [one._environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(4)] == ["0", "1", "0", "1"]
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
        assert one._environment(3)["CUDA_VISIBLE_DEVICES"] == "7"
        for visible, fix in (("5", "--budget.gpus=1"), ("", "--budget.gpus=null")):  # the others are not ours
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
            with pytest.raises(RecipeError, match=fix):
                one.run()


def asrkit(*words: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "asrkit", *words]
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def killed_half_way(tmp_path: Path, words: list[str], enough: int) -> dict[str, bytes]:
    """Start a study, SIGKILL it when `enough` cells are done and another has trained an epoch; what was there then."""
    process = asrkit(*words, folder=tmp_path)
    home, until = tmp_path / "out", time.monotonic() + 600
    while time.monotonic() < until:
        assert process.poll() is None, process.communicate()[0]
        done = {path.parent.name for path in home.glob("cells/*/cell.json")}
        halfway = [p for p in home.glob("cells/*/checkpoints/step-*") if p.parents[1].name not in done]
        if len(done) >= enough and halfway:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    found = {}
    for path in home.glob("cells/*/cell.json"):
        tested = json.loads(path.read_bytes())["test"] is not None  # else: trained, and cut off before its test
        for file in (path, path.with_name("metrics.jsonl")) if tested else (path.with_name("metrics.jsonl"),):
            found[str(file.relative_to(home))] = file.read_bytes()
    return found


def check_continuation(tmp_path: Path, words: list[str], total: int, before: dict[str, bytes]) -> dict[str, Any]:
    home = tmp_path / "out"
    log = (home / "log.txt").read_text()
    assert 0 < sum(name.endswith("metrics.jsonl") for name in before) < total
    process = asrkit(*words, "--json", folder=tmp_path)
    answer = process.communicate(timeout=1800)[0]
    assert process.returncode == 0, answer
    summary = json.loads(answer.splitlines()[-1])
    assert summary["complete"]
    assert summary["total_cells"] == total
    later = (home / "log.txt").read_text()[len(log) :]
    for name, content in before.items():
        assert (home / name).read_bytes() == content, name
        assert not name.endswith("cell.json") or Path(name).parent.name not in later
    resumed = [
        cell for cell in summary["cells"] if json.loads((home / cell["path"] / "cell.json").read_text())["resumed"]
    ]
    assert resumed  # the one that was half-way has gone on from its checkpoint
    return summary


class TestWhole:
    def test_sigkill_half_way_and_on(self, tmp_path: Path, corpus: Path) -> None:
        """One recipe, two encoders, two seeds: no finished cell is done again, and the results are those of a study
        that was left alone."""
        write_study(tmp_path)
        options = [f"--{key}={value}" for key, value in [*over(corpus, tmp_path), ("training.epochs", "15")]]
        # One at a time: of two that start together the second is all but done when the first one is.
        words = ["study", "study.yaml", "--output", "out", "--budget.processes=1", *options]
        before = killed_half_way(tmp_path, words, 1)
        summary = check_continuation(tmp_path, words, 4, before)
        assert {cell["status"] for cell in summary["cells"]} <= {"done", "collapsed"}
        name = next(
            cell["id"] for cell in summary["cells"]
            if json.loads((tmp_path / "out" / cell["path"] / "cell.json").read_text())["resumed"]
        )  # fmt: skip
        stopped = cells.read_outcome(tmp_path / "out" / "cells" / name)
        alone = tmp_path / "alone"
        alone.mkdir()
        (alone / "task.json").write_bytes((tmp_path / "out" / "cells" / name / "task.json").read_bytes())
        whole = worker.do_cell(alone, cells.read_task(alone), test=True)
        assert stopped is not None
        for key in ("dev", "test", "proof", "updates", "best_epoch"):
            assert stopped[key] == whole[key], key
        study = json.loads((tmp_path / "out" / "study.json").read_text())
        rows = [row for row in study["proof"] if row["group"] == "toy--seed-1"]
        assert len(rows) == 2
        for key in ("settings", "train", "dev", "test", "tokenizer", "frames", "order", "updates", "weights"):
            assert rows[0][key] == rows[1][key] is not None, key
        assert rows[1]["norm_parameters"] == 2 * 16

    @pytest.mark.slow
    def test_two_recipes_four_encoders_three_seeds(self, tmp_path: Path, corpus: Path) -> None:
        text = STUDY.replace("[none, sequence_batch_norm]", "[none, layer_norm, frame_batch_norm, sequence_batch_norm]")
        text = text.replace("[toy.yaml]", "[toy.yaml, two.yaml]").replace("[1, 2]", "[1, 2, 3]")
        write_study(tmp_path, text, ("toy", "two"))
        options = [f"--{key}={value}" for key, value in over(corpus, tmp_path)]
        words = ["study", "study.yaml", "--output", "out", "--budget.processes=2", "--training.epochs=15", *options]
        before = killed_half_way(tmp_path, words, 12)
        summary = check_continuation(tmp_path, words, 24, before)
        assert len(summary["arms"]) == 8
        assert sum(cell["tested"] for cell in summary["cells"]) == 24

    def test_the_children_of_a_killed_study_leave(self, tmp_path: Path) -> None:
        """Their standard input closes, and they stop as on SIGTERM."""
        code = (
            "import time; from asrkit.study import worker; worker._end_with_parent(); print('up', flush=True); "
            "time.sleep(60)"
        )
        process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"up\n"
        process.stdin.close()
        assert process.wait(timeout=20) == -signal.SIGTERM
        process.stdout.close()


class TestCommand:
    def test_the_plan(self, study_file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        words = ["study", str(study_file), "--dry-run", "--output", str(tmp_path / "out"), "--lr=[1e-3,2e-3,4e-3]"]
        assert main(words) == 0
        text = capsys.readouterr().out
        assert "2 arms x 3 learning rates x 1 seeds = 6 cells" in text
        assert "total    8 cells, 8 pending" in text
        assert "known when the first cell is done" in text
        assert not (tmp_path / "out").exists()
        assert main([*words, "--json"]) == 0
        plan = json.loads(capsys.readouterr().out)
        assert plan["total_cells"] == 8
        assert plan["seconds_left"] is None
        assert len(plan["cells"]) == 6
        assert main([*words, "--data.root=/nowhere/cv"]) == 0
        assert "! data.root = /nowhere/cv: there is no such file or folder here" in capsys.readouterr().out

    def test_arms_that_hear_nothing_are_marked(self, study_file: Path) -> None:
        study = load_study(study_file)
        done = {cell.id: {**outcome(0.9), "hears": cell.encoder != "none"} for cell in study.cells}
        lines = _table(record.summary(study, done, schedule.chosen_rates(study, done))).splitlines()
        (deaf,) = [line for line in lines if "deaf" in line]
        assert deaf.startswith("toy--none ")
        assert deaf.endswith("2 deaf (CER says nothing)")

    def test_the_plan_needs_no_torch(self, study_file: Path) -> None:
        code = (
            f"import sys; from asrkit.cli import main; code = main(['study', {str(study_file)!r}, '--dry-run']); "
            "sys.exit(code or 9 * ('torch' in sys.modules))"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0

    def test_errors_are_one_line(self, study_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["study", str(study_file), "--encoders=[nnone]", "--dry-run"]) == 2
        assert "did you mean 'none'" in capsys.readouterr().err

    @pytest.mark.parametrize("place", ["common_voice_es/study.yaml", "demo_study.yaml"])
    def test_the_studies_of_the_project(self, root: Path, place: str) -> None:
        study = load_study(root / "recipes" / place)
        head = (root / "recipes" / place).read_text(encoding="utf-8").splitlines()[:4]
        assert any(f"asrkit study recipes/{place}" in line for line in head)
        assert len(study.definition["seeds"]) >= 3
        assert {"none", "layer_norm"} <= set(study.definition["encoders"])
        arms = set(itertools.product(study.definition["recipes"], study.definition["encoders"]))
        assert len(study.arms) == len(arms) == (16 if "common" in place else len(arms))

    def test_depth_is_an_axis_of_a_study(self, root: Path) -> None:
        """Five depths with four normalizations, with and without residual connections."""
        study = load_study(root / "recipes" / "common_voice_es" / "depth_study.yaml")
        assert len(study.arms) == 5 * 4 * 2
        assert len(study.cells) == 40 * 4 * 3
        built = {(cell.axes["depth"], cell.axes["skip"]): cell.settings["layers"][3]["repeat"] for cell in study.cells}
        for (depth, skip), repeat in built.items():
            assert (str(repeat["times"]), repeat["residual"]) == (depth, skip == "residual")
        assert {cell.settings["layers"][2]["linear"] for cell in study.cells} == {64}
