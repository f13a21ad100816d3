"""What a report concludes: against scipy, on equal systems, on cells that hear nothing, and across an axis."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_study import change, epochs, make_study, measured, write_epochs
from scipy import stats

from asrkit.cli import main
from asrkit.comparison import LEVEL
from asrkit.report import axes, layers, rate_figures
from asrkit.report.collect import CellResult, StudyResult, collect
from asrkit.report.export import judge, write_report
from asrkit.report.learning import series
from asrkit.report.proof import rates_table

UTTERANCES, SPEAKERS, LOOKS = 160, 16, 10


# --- numbers


def test_every_test_equals_scipy(tmp_path: Path) -> None:
    """p over seeds, p per seed, Holm over three pairs, gap and cost, from the cells as they lie on disk."""
    rng = np.random.default_rng(8)
    levels = {"none": 9, "layer_norm": 7, "sequence_batch_norm": 3}
    errors = {name: rng.poisson(level, (4, 4)).tolist() for name, level in levels.items()}
    data = measured(make_study(tmp_path / "s", errors))
    tests = {}
    for pair in data["comparisons"]:
        x, y = (np.array(errors[pair[side]]) for side in ("first", "second"))
        theirs = stats.ttest_rel(y.sum(1) / 100, x.sum(1) / 100)
        assert pair["seeds"]["p"] == pytest.approx(theirs.pvalue, rel=1e-9)
        assert pair["seeds"]["low"] == pytest.approx(theirs.confidence_interval().low, rel=1e-9)
        d = y - x
        z = d.mean(1) / stats.sem(d, axis=1)
        assert pair["matched_pairs"] == pytest.approx(2 * stats.norm.sf(abs(z)), rel=1e-9)
        tests[theirs.pvalue] = pair["p_holm"]
    small, middle, large = sorted(tests)
    assert tests[small] == pytest.approx(min(1, 3 * small))
    assert tests[middle] == pytest.approx(max(tests[small], min(1, 2 * middle)))
    assert tests[large] == pytest.approx(max(tests[middle], large))
    cell = data["cells"][0]
    assert (cell["end_gap"], cell["seconds_per_update"], cell["memory_mb"]) == (0.125, 0.15, 101.0)


def test_the_bootstrap_equals_one_that_draws_utterance_by_utterance() -> None:
    """Seeds, and speakers with all their utterances, the same in all seeds, pooled; speakers of very different size."""
    from asrkit.comparison import crossed_bootstrap

    rng = np.random.default_rng(9)
    speakers = [f"s{i}" for i in range(7) for _ in range(1 + i)]
    lengths = rng.integers(5, 40, len(speakers))
    x, y = rng.binomial(lengths, 0.3, (3, len(speakers))), rng.binomial(lengths, 0.2, (3, len(speakers)))
    of = {name: [i for i, one in enumerate(speakers) if one == name] for name in speakers}
    drawn = []
    for _ in range(4000):
        rows = [i for s in rng.integers(len(of), size=len(of)) for i in of[f"s{s}"]]
        rates = [(y[k, rows] - x[k, rows]).sum() / lengths[rows].sum() for k in rng.integers(3, size=3)]
        drawn.append(np.mean(rates))
    low, high = np.quantile(drawn, [0.025, 0.975])
    ours = crossed_bootstrap(x, y, lengths, speakers, replications=4000)
    assert ours == pytest.approx((low, high), abs=0.06 * (high - low))


def test_speed_is_the_area_under_the_curve_and_a_ratio_of_updates(tmp_path: Path) -> None:
    slow = [[1.3, 1.0, 0.9, 0.6, 0.4], [1.0, 1.0, 0.8, 0.7, 0.45], [1.0, 1.0, 1.0, 0.8, 0.3]]
    quick = [[1.2, 0.7, 0.4, 0.3, 0.2], [1.0, 0.8, 0.45, 0.2, 0.15], [1.0, 0.45, 0.4, 0.3, 0.2]]
    folder = make_study(tmp_path / "s", {"none": [[1] * 4] * 3, "layer_norm": [[1] * 4] * 3})
    for name, curves in (("none", slow), ("layer_norm", quick)):
        for seed, curve in enumerate(curves, 1):
            write_epochs(folder / f"cells/m--{name}--seed-{seed}", epochs(curve))
    data = measured(folder)
    (pace,) = data["paces"]
    x, y = np.minimum(slow, 1).mean(1), np.minimum(quick, 1).mean(1)
    assert pace["difference"]["mean"] == pytest.approx((y - x).mean())
    assert pace["p_holm"] == pytest.approx(stats.ttest_rel(y, x).pvalue, rel=1e-9)
    assert pace["goal"] == pytest.approx([0.5, 50.0, 80 / 3])
    logs = np.log([30, 30, 20]) - np.log([50, 50, 50])
    expected = [logs.mean(), *stats.t.interval(0.95, 2, logs.mean(), stats.sem(logs))]
    assert pace["ratio"] == pytest.approx(np.exp(expected))
    assert data["pace"][0].startswith("layer_norm learns faster than none: its dev CER averaged over training is ")
    assert data["pace"][0].endswith("; dev CER 50 % after 50 updates (none) and 27 (layer_norm), 0.52 times as many "
                                    f"({pace['ratio'][1]:.2f} to {pace['ratio'][2]:.2f})")  # fmt: skip


def test_no_evidence_says_how_many_seeds_it_would_take(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "s", {n: [[5] * 4, [7] * 4, [6] * 4] for n in ("none", "layer_norm")})
    for seed, level in enumerate((0.5, 0.7, 0.52), 1):
        write_epochs(folder / f"cells/m--none--seed-{seed}", epochs([1.0, level]))
        write_epochs(folder / f"cells/m--layer_norm--seed-{seed}", epochs([1.0, 0.5]))
    data = measured(folder)
    (pace,) = data["paces"]
    d = -np.array([0, 0.1, 0.01])
    n = pace["seeds_needed"]

    def power(count: int) -> float:
        effect = abs(d.mean()) / d.std(ddof=1) * math.sqrt(count)
        return float(stats.nct.sf(stats.t.ppf(1 - LEVEL / 2, count - 1), count - 1, effect))

    assert power(n) >= 0.8 > power(n - 1)
    assert f"about {n - 3} more seeds would be needed to show {100 * abs(d.mean()):.2f} points" in data["pace"][0]


# --- cells that hear nothing


def deafen(folder: Path, arm: str, seeds: list[int], cers: list[float], phases: list[str]) -> None:
    for seed in seeds:
        write_epochs(folder / f"cells/m--{arm}--seed-{seed}", epochs(cers, phases))
        change(folder, f"m--{arm}--seed-{seed}", best_epoch=int(np.argmin(cers)) + 1)


def test_two_arms_on_the_plateau_are_not_compared(tmp_path: Path) -> None:
    """Their CER falls from chance onto the blanks, one from 60 % and one from 90 %, with tiny variances."""
    better, worse = [[12] * 4, [12, 12, 12, 13], [12, 12, 12, 11]], [[18] * 4, [18, 18, 18, 19], [18] * 4]
    folder = make_study(tmp_path / "s", {"none": better, "layer_norm": worse})
    deafen(folder, "none", [1, 2, 3], [0.6, 1.0, 1.0], ["above_floor", "on_floor", "on_floor"])
    deafen(folder, "layer_norm", [1, 2, 3], [0.9, 1.0, 1.0], ["above_floor", "on_floor", "on_floor"])
    data = measured(folder)
    assert data["comparisons"][0]["seeds"]["p"] < 0.01
    assert not data["comparisons"][0]["different"]
    assert not data["paces"][0]["different"]
    for line in (data["verdicts"][0], data["pace"][0]):
        assert line == "none and layer_norm: no seed of either hears its input within 30 updates: too short to tell"
    assert 'm: no model of "none" and "layer_norm" hears its input' in data["headlines"]
    assert any(line.startswith("6 of 6 models do not hear the input") for line in data["headlines"])
    assert data["cells"][0]["updates_to_0.8"] is None  # 60 % was chance


def test_chance_is_not_better_than_a_model_that_hears(tmp_path: Path) -> None:
    """An arm whose best models are those of the first epoch, before anything was heard."""
    chance, heard = [[12] * 4, [12, 12, 12, 13], [12, 12, 12, 11]], [[18] * 4, [18, 18, 18, 19], [18] * 4]
    folder = make_study(tmp_path / "s", {"none": chance, "layer_norm": heard})
    deafen(folder, "none", [1, 2, 3], [0.6, 1.0, 0.97], ["above_floor", "on_floor", "below_floor"])
    for seed, end in ((1, 0.88), (2, 0.88), (3, 0.885)):
        deafen(folder, "layer_norm", [seed], [0.95, 0.9, end], ["on_floor", "below_floor", "below_floor"])
    data = measured(folder)
    assert data["verdicts"][0] == (
        "none and layer_norm: no verdict: none makes fewer errors, and none of its models hears its input"
    )
    assert data["comparisons"][0]["p_holm"] is None
    assert data["pace"][0].startswith("layer_norm learns faster than none")
    deafen(folder, "none", [2], [1.0, 1.0, 0.6], ["above_floor", "on_floor", "below_floor"])
    assert measured(folder)["verdicts"][0].startswith("none is better than layer_norm")


def test_how_much_better_than_chance_is_not_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_study(tmp_path / "s", {"none": [[15] * 4, [16] * 4, [15, 15, 16, 15]],
                                         "layer_norm": [[2] * 4, [3] * 4, [2, 1, 2, 2]]})  # fmt: skip
    assert "hears nothing" not in measured(folder)["verdicts"][0]
    deafen(folder, "none", [1, 2, 3], [1.0, 1.0, 0.6], ["on_floor"] * 3)
    [line] = measured(folder)["verdicts"]
    assert line.startswith("layer_norm is better than none by ")
    assert line.endswith("); none hears nothing, so that by how much says nothing but that")
    deafen(folder, "layer_norm", [1, 2, 3], [1.0, 1.0, 0.6], ["on_floor"] * 3)
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out.count("no seed of either hears its input") == 1  # of both questions the same


def test_one_damaged_line_costs_that_line(tmp_path: Path) -> None:
    """The arm stays deaf, and its curve is there."""
    folder = make_study(tmp_path / "s", {"none": [[15] * 4] * 3, "layer_norm": [[2] * 4, [3] * 4, [2, 1, 2, 2]]})
    deafen(folder, "none", [1, 2, 3], [1.0, 1.0, 0.6], ["on_floor"] * 3)
    before = measured(folder)
    log = folder / "cells/m--none--seed-1/metrics.jsonl"
    for whole in (2, 0):  # epochs that are left
        lines = log.read_text().splitlines()
        log.write_text(
            "\n".join(["garbage", *lines[len(lines) - whole :]]) + "\n" if whole else "garbage\nnone\n[]\n{}\n"
        )
        change(folder, "m--none--seed-1", hears=False)
        data = measured(folder)
        for key in ("verdicts", "headlines") if whole else ("verdicts",):  # without a curve no speed can be said
            assert [one for one in data[key] if "not simply" not in one] == before[key]
        assert len(data["troubles"]) == 1
        assert "metrics.jsonl line 1 is damaged; fix: repair or remove that line" in data["troubles"][0]["reason"]
        assert str(tmp_path) not in data["troubles"][0]["reason"]


def test_a_best_epoch_from_before_it_heard_is_remarked(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "s", {"none": [[12] * 4] * 2, "layer_norm": [[9] * 4] * 2})
    deafen(folder, "none", [1, 2], [0.6, 1.0, 0.97], ["above_floor", "on_floor", "below_floor"])
    deafen(folder, "layer_norm", [1, 2], [0.9, 0.8, 0.6], ["on_floor", "below_floor", "below_floor"])
    write_report(folder)
    table = (folder / "report.md").read_text().split("### All tests")[0]
    rows = [line for line in table.splitlines() if line.startswith("| m, ")]
    assert "seed 1: best epoch 1, from before it heard; seed 2: best epoch 1, from before it heard" in rows[0]
    assert "before it heard" not in rows[1]


def test_cpu_time_is_drawn_where_it_is_recorded_and_all_recipes_on_one_scale(tmp_path: Path) -> None:
    """CPU seconds differ from the wall's by another factor in every epoch; a second context makes an overview."""
    folder = tmp_path / "s"
    for depth in ("1", "2"):
        make_study(folder, {"none": [[1] * 4] * 2, "layer_norm": [[2] * 4] * 2}, axes={"depth": depth})
    write_report(folder)
    page = (folder / "report.html").read_text()
    assert "CPU seconds" not in page
    assert "m, depth-1, against updates: none ends at 25, layer_norm ends at 25" in page
    for cell in folder.glob("cells/m--depth-1--*"):
        lines = epochs([0.9, 0.45, 0.25])
        write_epochs(cell, [{**line, "cpu_seconds": 0.5 + i} for i, line in enumerate(lines)])
    write_report(folder)
    page = (folder / "report.html").read_text()
    assert page.count("CER on dev, %, against CPU seconds of training: none ends at 25") == 1
    cell = collect(folder).of_arm("m--depth-1--none")[0]
    assert [cpu for _, cpu, _ in series(cell, "dev", "cer", clock="cpu_seconds")] == [0.5, 2.0, 4.5]
    assert [wall for _, wall, _ in series(cell, "dev", "cer")] == [1.5, 3.0, 4.5]


def test_a_collapsed_cell_does_not_hear(tmp_path: Path) -> None:
    """Whatever its loss; it counts with the errors it makes, and the arm beside it may be better."""
    folder = make_study(tmp_path / "s", {"none": [[20, 30, 10, 40]] * 3, "layer_norm": [[9] * 4, [8] * 4, [9] * 4]})
    for name in ("none", "layer_norm"):
        deafen(folder, name, [1, 2, 3], [1.0, 0.9, 0.4], ["on_floor", "below_floor", "below_floor"])
    for seed in (1, 2, 3):
        change(folder, f"m--none--seed-{seed}", status="collapsed")
    data = measured(folder)
    assert [cell["model_hears"] for cell in data["cells"]] == [False] * 3 + [True] * 3
    assert data["verdicts"][0].startswith("layer_norm is better than none by ")


def test_a_loss_below_the_floor_is_no_hearing_where_the_audio_changes_nothing(tmp_path: Path) -> None:
    """As eleven BiGRUs without a norm were: 0.92 of the floor, CER 87 %, outputs that other audio moves by 3e-6."""
    folder = make_study(tmp_path / "s", {"none": [[18] * 4, [18, 18, 18, 19]], "layer_norm": [[18] * 4] * 2})
    deafen(folder, "none", [1, 2], [1.0, 0.9], ["below_floor"] * 2)
    deafen(folder, "layer_norm", [1, 2], [1.0, 0.9], ["below_floor"] * 2)
    for cell in folder.glob("cells/*"):
        lines = epochs([1.0, 0.9], ["below_floor"] * 2)
        for line, loss in zip(lines, (3.0 * 0.97, 3.0 * 0.92), strict=True):
            line["train"]["loss"] = loss
            line["diagnosis"]["dependence"] = {"layers.0": 0.9, "layers.4": 3e-6 if "none" in cell.name else 0.3}
        write_epochs(cell, lines)
    data = measured(folder)
    assert [one["hears"] for one in data["cells"]] == [False, False, True, True]
    assert [one["updates_to_0.8"] for one in data["cells"]] == [None] * 4
    assert "2 of 4 models do not hear the input, so that the error rate says nothing but that" in data["headlines"]
    assert 'm: layer_norm 72.0 %, no model of "none" hears its input' in data["headlines"]
    write_report(folder)
    table = (folder / "report.md").read_text().split("### Error rates")[1]
    assert [table.split(f"| {name} |")[1].split("|")[1].strip() for name in ("m, none", "m, layer_norm")] == ["0", "2"]


def test_curves_that_cross_are_said_to(tmp_path: Path) -> None:
    """One arm ahead early and the other late, in every seed; not where it goes to and fro, or one seed differs."""
    folder = make_study(tmp_path / "s", {"none": [[1] * 4] * 3, "layer_norm": [[1] * 4] * 3})
    fast, slow = [0.9, 0.6, 0.5, 0.5, 0.49], [1.0, 0.8, 0.495, 0.3, 0.2]

    def told(first: list[float], second: list[float], seeds: tuple[int, ...] = (1, 2, 3)) -> str:
        for seed in (1, 2, 3):
            for name, cers in (("none", first if seed in seeds else second), ("layer_norm", second)):
                moved = [cer + 1e-3 * (seed == 3 and name == "none") for cer in cers]  # or there is no spread
                write_epochs(folder / f"cells/m--{name}--seed-{seed}", epochs(moved))
        return str(measured(folder)["pace"][0])

    words = "the curves cross: none is ahead in every seed from 10 to 20 updates, layer_norm from 40 to 50"
    assert told(fast, slow).endswith(words)
    assert "cross" not in told(fast, slow, (1, 2))
    assert "cross" not in told(fast, [0.95, 0.5, 0.6, 0.4, 0.6])
    assert "cross" not in told(fast, fast)


# --- layer by layer


def test_layers_are_those_of_the_last_record(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "s", {"none": [[1] * 4] * 2})
    for seed in (1, 2):
        write_epochs(folder / f"cells/m--none--seed-{seed}", epochs([0.9] * seed, ["below_floor"] * seed))
    data = write_report(folder)
    assert data["layers"]["m--none--seed-2"] == {
        "gradient": {"0": 0.5, "4": 1.0, "ctc": 3.0}, "dependence": {"cmvn": 1.0, "0": 0.8, "4": 0.04},
    }  # fmt: skip
    cell = data["cells"][1]
    assert (cell["weakest_layer"], cell["weakest_dependence"]) == ("4", 0.04)
    text = (folder / "report.md").read_text()
    for line in ("| cmvn | – / 1 |", "| 0 | 0.5 / 0.8 |", "| 4 | 1 / 0.03 |", "| ctc | 2.5 / – |"):
        assert line in text.split("### Layer by layer: m")[1].split("\n#")[0]
    page = (folder / "report.html").read_text()
    assert "dependence on the input of every layer, at the end, from input to output: none is least in layer 4" in page


def test_layers_of_arms_with_different_layers_are_put_in_one_order() -> None:
    assert layers.order([["a", "c", "d"], ["a", "b", "c", "x", "d", "z"]]) == ["a", "b", "c", "x", "d", "z"]
    assert layers.order([]) == []


# --- across an axis


def depths(folder: Path) -> Path:
    """Depth 1, 3 and 11 of two encoders: one suffers, one does not; and a second, named axis."""
    rng = np.random.default_rng(12)
    for depth, level in (("11", 20), ("1", 5), ("3", 6)):
        for place in ("before", "gates"):
            errors = {"none": level + rng.integers(0, 2, (3, 4)), "layer_norm": 5 + rng.integers(0, 2, (3, 4))}
            arms = {name: np.minimum(one, [20, 30, 10, 40]).tolist() for name, one in errors.items()}
            make_study(folder, arms, axes={"depth": depth, "place": place})
    return folder


def test_an_axis_is_compared_where_all_else_is_equal(tmp_path: Path) -> None:
    folder = depths(tmp_path / "s")
    found = collect(folder)
    assert axes.axes(found) == {"depth": ["1", "3", "11"], "place": ["before", "gates"]}
    data = write_report(folder)
    pairs = [(one["axis"], one["context"], one["encoder"], one["first"], one["second"]) for one in data["axes"]]
    assert len(pairs) == len(set(pairs)) == 2 * 2 * 2 + 3 * 2  # depth: 2 pairs x 2 places x 2 encoders; place: 3 depths
    assert ("depth", "m--place-gates", "none", "depth 1", "depth 11") in pairs
    assert ("place", "m--depth-3", "layer_norm", "place before", "place gates") in pairs
    for one in data["axes"]:
        other, value = one["context"].removeprefix("m--"), (one["first"].split()[1], one["second"].split()[1])
        names = [f"depth-{v}--{other}" if one["axis"] == "depth" else f"{other}--place-{v}" for v in value]
        rates = []
        for name in names:
            cells = [json.loads((folder / f"cells/m--{name}--{one['encoder']}--seed-{s}/cell.json").read_text())
                     for s in (1, 2, 3)]  # fmt: skip
            rates.append([sum(cell["test"]["characters"]["errors"]) / 100 for cell in cells])
        assert one["seeds"]["p"] == pytest.approx(stats.ttest_rel(rates[1], rates[0]).pvalue, rel=1e-9)
    deepest = next(line for line in data["across"] if "depth 11" in line and "m, place-gates, none" in line)
    assert "depth 1 is better than depth 11 by " in deepest
    assert data["axes"][0]["p_holm"] >= data["axes"][0]["seeds"]["p"]
    page = (folder / "report.html").read_text()
    for split in ("dev", "test"):
        assert f"CER on {split}, %, m, place-before, against depth: none " in page


def test_an_axis_changes_what_an_encoder_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Depth harms one encoder and not the other; the place does nothing."""
    folder = depths(tmp_path / "s")
    data = measured(folder)
    assert main(["report", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "m, place-gates, none: depth 1 is better than depth 11 by " in told
    assert "m, place-gates: layer_norm beside none, from depth 1 to 11: its CER is " in told
    pairs = {(one["axis"], one["context"], one["start"], one["to"]): one for one in data["interactions"]}
    assert len(pairs) == len(data["interactions"]) == 2 + 3  # depth in two places; the place at three depths
    one = pairs["depth", "m--place-gates", "1", "11"]

    def gap(context: str) -> np.ndarray:
        rates = [
            [sum(json.loads((folder / f"cells/m--{context}--{name}--seed-{s}/cell.json").read_text())["test"]
                 ["characters"]["errors"]) / 100 for s in (1, 2, 3)]
            for name in ("none", "layer_norm")
        ]  # fmt: skip
        return np.subtract(rates[1], rates[0])

    along = np.array([gap(f"depth-{depth}--place-gates") for depth in (1, 3, 11)])
    slopes = np.array([stats.linregress(np.log2([1, 3, 11]), along[:, seed]).slope for seed in range(3)])
    assert one["difference"]["mean"] == pytest.approx(slopes.mean())
    assert one["difference"]["p"] == pytest.approx(stats.ttest_1samp(slopes, 0).pvalue, rel=1e-9)
    assert one["gaps"] == [[v, pytest.approx(mean)] for v, mean in zip(("1", "3", "11"), along.mean(1), strict=True)]
    said = [line for line in data["changes"] if "from depth 1 to 11" in line]
    assert len(said) == 2
    shown = ", ".join(f"{100 * mean:+.1f} ({v})" for v, mean in zip((1, 3, 11), along.mean(1), strict=True))
    words = f"its CER is {shown} points beside it; it gains {-100 * slopes.mean():.2f} points of CER with each doubling"
    assert words in next(line for line in said if "gates" in line)
    before, after = (gap(f"depth-3--place-{place}") for place in ("before", "gates"))
    one = pairs["place", "m--depth-3", "before", "gates"]
    assert one["difference"]["mean"] == pytest.approx((after - before).mean())
    assert one["difference"]["p"] == pytest.approx(stats.ttest_rel(after, before).pvalue, rel=1e-9)
    assert "no evidence that the difference changes" in next(line for line in data["changes"] if "from place" in line)
    page = (folder / "report.html").read_text()
    assert f"CER less that of none, m, place-gates: layer_norm {100 * along[0].mean():+.1f} at 1" in page


def test_depths_at_which_nobody_hears_are_left_out(tmp_path: Path) -> None:
    folder, rng = tmp_path / "s", np.random.default_rng(5)
    for depth, level in ((1, 1), (2, 2), (4, 3), (16, 5)):
        arms = {name: (level * (name == "none") + 4 + rng.integers(0, 2, (3, 4))).tolist()
                for name in ("none", "layer_norm")}  # fmt: skip
        make_study(folder, arms, axes={"depth": str(depth)})
    for name, seed in itertools.product(("none", "layer_norm"), (1, 2, 3)):
        write_epochs(folder / f"cells/m--depth-16--{name}--seed-{seed}", epochs([0.9, 1.0], ["on_floor"] * 2))
    data = measured(folder)
    (one,) = data["interactions"]
    assert [value for value, _ in one["gaps"]] == ["1", "2", "4"]
    assert one["left_out"] == ["16"]
    assert "from depth 1 to 4: " in data["changes"][0]
    assert "at 16 the better one hears nothing" in data["changes"][0]


def test_a_change_is_not_judged_where_the_better_arm_hears_nothing(tmp_path: Path) -> None:
    """But where all of it collapsed, that is what the axis does; and the worse one may hear nothing."""
    folder = depths(tmp_path / "s")

    def said() -> str:
        return next(c for c in measured(folder)["changes"] if "place-gates" in c and "from depth 1 to 11" in c)

    cells = {
        name: [f"m--depth-11--place-gates--{name}--seed-{s}" for s in (1, 2, 3)] for name in ("none", "layer_norm")
    }
    for cell in cells["none"]:
        write_epochs(folder / "cells" / cell, epochs([0.8, 1.0], ["on_floor", "on_floor"]))
    assert "it gains " in said()
    for cell in cells["layer_norm"]:
        write_epochs(folder / "cells" / cell, epochs([0.8, 1.0], ["on_floor", "on_floor"]))
    assert said().endswith(
        "from depth 1 to 11: at depth 11, no seed of either hears its input within 20 updates: too short to tell"
    )
    for cell in cells["none"]:
        write_epochs(folder / "cells" / cell, epochs([0.9, 0.8], ["on_floor", "below_floor"]))
    assert said().endswith(
        "at depth 11, no verdict: layer_norm makes fewer errors, and none of its models hears its input"
    )
    for cell in cells["layer_norm"]:
        change(folder, cell, status="collapsed")
    assert "it gains " in said()


def test_values_that_are_no_numbers_keep_the_order_of_the_study() -> None:
    assert axes.numbers(["1", "0.5", "1e-3"]) == [1.0, 0.5, 0.001]
    assert axes.numbers(["1", "deep"]) is None
    assert axes.numbers(["nan", "1"]) is None


# --- equal systems


def equal_systems(
    rng: np.random.Generator, seeds: int, encoders: int = 2, seed_sd: float = 0.01, depth: str | None = None
) -> StudyResult:
    """Cells of one system under several names: a seed moves a whole run, its errors and when it begins to read."""
    names = [f"e{i}" for i in range(encoders)]
    speaker = np.arange(UTTERANCES) % SPEAKERS
    context, chosen = (f"m--depth-{depth}", {"depth": depth}) if depth else ("m", {})
    arms: list[dict[str, Any]] = [
        {"arm": f"{context}--{n}", "context": context, "recipe": "m", "axes": chosen, "encoder": n, "lr": 1e-3}
        for n in names
    ]
    cells = []
    for arm in arms:
        for seed in range(1, seeds + 1):
            luck = rng.normal()
            of_speakers = rng.normal(0, 0.05, SPEAKERS)
            rate = np.clip(0.2 + seed_sd * luck + of_speakers[speaker] - of_speakers.mean(), 0.01, 0.99)
            errors = rng.binomial(40, rate).tolist()
            counts = {"errors": errors, "lengths": [40] * UTTERANCES}
            score = {"cer": 0.2, "wer": 0.2, "ids": list(range(UTTERANCES)), "speakers": [f"s{i}" for i in speaker],
                     "characters": counts, "words": counts}  # fmt: skip
            begin = 4 + rng.normal() + 0.5 * luck
            cers = 1 - 0.8 / (1 + np.exp(begin - np.arange(LOOKS))) + rng.normal(0, 0.01, LOOKS)
            phases = ["below_floor" if cer < 0.95 else "on_floor" for cer in cers]
            row = {**arm, "id": f"{arm['arm']}--{seed}", "seed": seed, "chosen": True}
            outcome = {"status": "done", "dev": score, "test": score, "best_epoch": LOOKS}
            cells.append(CellResult(row, outcome, epochs(cers.tolist(), phases)))
    return StudyResult(Path(), {"name": "equal", "arms": arms}, cells)


def test_equal_systems_are_called_different_in_at_most_8_percent_of_400_reports() -> None:
    """Error rates and speed by all that a report does before it draws; every fifth study has three arms."""
    rng = np.random.default_rng(11)
    better = faster = either = single = 0
    for trial in range(400):
        found = equal_systems(rng, 3 + trial % 3, 3 if trial % 5 == 0 else 2)
        said = judge(found, "characters", "test")
        one = any(pair.different for _, pair in said.pairs)
        assert one == any(" is better than " in line for line in said.verdicts)
        better += one
        quick = any(pace.different for pace in said.speeds)
        faster += quick
        either += one or quick
        single += said.pairs[0][1].matched_pairs[0] < 0.05
    assert either / 400 <= 0.08
    print(f"called different: {better} by error rate, {faster} by speed, {either} by either; single runs {single}")
    assert better + faster > 8  # or the verdict would be deaf itself
    assert single / 400 > 0.12  # what a test of single runs would have said


def test_learning_rates_are_drawn_and_tabled_with_what_hears_nothing(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "s", {"none": [[1, 2]] * 3, "layer_norm": [[2, 1]] * 3})
    assert rate_figures.learning_rates(collect(folder)) == []  # one rate: nothing to draw
    study = json.loads((folder / "study.json").read_text())
    for arm, deaf in zip(study["arms"], (1, 0), strict=True):
        rates = ((0.001, 0.5, 0), (0.002, 0.75, deaf), (0.004, None, None))
        arm["tuning"] = [{"lr": lr, "dev_cer": cer, "deaf": no} for lr, cer, no in rates]
    (folder / "study.json").write_text(json.dumps(study))
    (gallery,) = rate_figures.learning_rates(collect(folder))
    assert gallery.legend == ["none", "layer_norm"]
    assert re.search(r"<title[^>]*>CER on dev, m, against the learning rate: none 50.0 at 0.001, 75.0 at 0.002; "
                     r"layer_norm 50.0 at 0.001, 75.0 at 0.002</title>", gallery.panels[0])  # fmt: skip
    table = rates_table(collect(folder))
    assert [row[:5] for row in table.rows] == [
        ("m, none", "0.001", "50.0", "[75.0]", "–"), ("m, layer_norm", "0.001", "50.0", "75.0", "–"),
    ]  # fmt: skip
    study["arms"][0]["tuning"][1]["deaf"] = 0
    (folder / "study.json").write_text(json.dumps(study))
    (filled,) = rate_figures.learning_rates(collect(folder))
    hollow, without = (one.panels[0].count("fill-opacity: 0") for one in (gallery, filled))
    assert (hollow, without) == (1, 0)


def test_the_same_of_reports_with_an_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four questions instead of two: at the level of two they would call something different in 9 %."""
    monkeypatch.setattr(
        "asrkit.comparison.crossed_bootstrap", lambda *_: (math.nan, math.nan)
    )  # no verdict's, and slow
    rng = np.random.default_rng(14)
    wrong = at_two = 0
    for trial in range(400):
        values = ("1", "2", "4") if trial % 2 else ("1", "2")
        parts = [equal_systems(rng, 3 + trial % 3, depth=depth) for depth in values]
        arms, cells = [arm for one in parts for arm in one.arms], [cell for one in parts for cell in one.cells]
        said = judge(StudyResult(Path(), {"name": "equal", "arms": arms}, cells), "characters", "test")
        found = [*(one for _, one in said.pairs), *said.speeds, *(one for _, one in said.axes), *said.changes]
        assert {one.level for one in found} == {LEVEL / 2}
        wrong += any(one.different for one in found)
        at_two += any(one.p_holm < LEVEL for one in found)
    assert wrong / 400 <= 0.08
    assert at_two > wrong
    print(f"called different: {wrong}, at the level of two questions {at_two}")
    data = measured(depths(tmp_path / "s"))
    assert any("(p < 0.0125 after Holm's correction)" in line for line in data["headlines"])
