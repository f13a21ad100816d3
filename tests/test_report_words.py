"""What a report says in words: one sentence of every comparison, and the lines it begins with."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_study import ENCODERS, change, epochs, make_study, measured, write_epochs

from asrkit.cli import main
from asrkit.comparison import Comparison, Difference, corrected, over_seeds, seeds_for
from asrkit.report.collect import StudyResult, collect
from asrkit.report.export import write_report
from asrkit.report.formats import amount, listed, of
from asrkit.report.interactions import Interaction
from asrkit.report.learning import Pace
from asrkit.report.sentences import comparison_in_words, interaction_in_words, pace_in_words, seeds_to_come
from asrkit.report.words import AHEAD, rates_in_words, versions_in_words


def compared(differences: list[float], **facts: Any) -> Comparison:
    d = over_seeds(np.zeros(len(differences)), np.array(differences))
    one = Comparison("none", "layer_norm", d, (math.nan, math.nan), (), math.nan, None, tuple(differences), **facts)
    return corrected([one])[0]


def rewrite(folder: Path, **facts: Any) -> None:
    """Other facts in study.json."""
    path = folder / "study.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


@pytest.fixture
def three(tmp_path: Path) -> Path:
    rng = np.random.default_rng(5)
    return make_study(tmp_path / "s", {name: rng.integers(0, 10, (3, 4)).tolist() for name in ENCODERS})


# --- nouns


def test_nouns_are_counted() -> None:
    assert [amount(count, "cell") for count in (0, 1, 2)] == ["0 cells", "1 cell", "2 cells"]
    assert amount(1, "cell is", "cells are") == "1 cell is"
    assert amount(3, "cell is", "cells are") == "3 cells are"
    assert (of(0, 1, "seed"), of(1, 3, "seed")) == ("0 of 1 seed", "1 of 3 seeds")
    assert [listed(list("abc")[:count]) for count in range(4)] == ["", "a", "a and b", "a, b and c"]


# --- one comparison


def test_one_seed_no_difference_and_a_tiny_one() -> None:
    assert comparison_in_words(compared([0.01])) == "none and layer_norm: 1 paired seed, too few to tell (at least 3)"
    same = compared([0.0, 0.0, 0.0])
    assert comparison_in_words(same) == (
        "none and layer_norm: no evidence of a difference at this budget: layer_norm's CER is the same (in each of 3 "
        "paired seeds)"
    )
    tiny = comparison_in_words(compared([2e-5, -1e-5, 1e-5, 1e-5]), "WER")
    assert "layer_norm's WER is less than 0.01 points higher (95 % interval" in tiny


def test_a_pace_says_what_a_cer_counts_as_before_a_model_hears() -> None:
    d = Difference(-0.0162, -0.0275, -0.0049, 0.02, 3)
    pace = Pace("m", "none", "layer_norm", d, 0.2, None, seeds_needed=6, raised=True)
    assert pace_in_words(pace).startswith(
        "none and layer_norm: no evidence at this budget that one learns faster: layer_norm's dev CER averaged over "
        "training (100 % until a model hears) is 1.62 points lower (95 % interval -2.75 to -0.49 over 3 paired seeds; "
        "p = 0.02, 0.2 after Holm's correction)"
    )
    stands = replace(pace, p_holm=0.02, raised=False)
    assert pace_in_words(stands) == (
        "layer_norm learns faster than none: its dev CER averaged over training is 1.62 points lower (95 % interval "
        "0.49 to 2.75 over 3 paired seeds; p = 0.02)"
    )
    few = replace(pace, difference=Difference(0.1, math.nan, math.nan, math.nan, 1))
    assert pace_in_words(few) == "none and layer_norm: 1 paired seed, too few to tell which learns faster (at least 3)"


def test_every_sentence_is_made_the_same_way() -> None:
    """An interaction: its begin, then what is undecided, too few, standing or not; with nothing moved it says so."""
    d = Difference(-0.02, -0.03, -0.01, 0.01, 3)
    one = Interaction("depth", "m", "1", "4", "none", "layer_norm", d, p_holm=0.02, seeds_needed=5)
    begin = "m: layer_norm beside none, from depth 1 to 4: "
    numbers = (
        "it gains 2.00 points of CER (95 % interval 1.00 to 3.00 over 3 paired seeds; p = 0.01, 0.02 after Holm's "
    )
    assert interaction_in_words(one, "CER").startswith(begin + numbers)
    unclear = replace(one, p_holm=0.2)
    assert interaction_in_words(unclear, "CER").startswith(
        f"{begin}no evidence that the difference changes: {numbers[:30]}"
    )
    assert interaction_in_words(unclear, "CER").endswith("about 2 more seeds would be needed to show 2.00 points")
    assert interaction_in_words(replace(one, undecided="no verdict: so"), "CER") == f"{begin}no verdict: so"
    still = replace(unclear, difference=Difference(0.0, 0.0, 0.0, 1.0, 3), seeds_needed=None)
    assert "changes: it gains and loses nothing in CER (in each of 3 paired seeds)" in interaction_in_words(
        still, "CER"
    )
    along = replace(one, per="doubling of depth", gaps=(("1", 0.0), ("4", -0.04)), left_out=("8",), unpaired=("2",))
    assert interaction_in_words(along, "CER").startswith(
        f"{begin}its CER is +0.0 (1), -4.0 (4) points beside it; at 8 the better one hears nothing; 2 was not scored "
        "on the same utterances as 1; it gains 2.00 points of CER with each doubling of depth ("
    )


def test_seeds_are_needed_only_where_something_is_to_be_shown() -> None:
    """Three at least, and none where no verdict is given for another reason."""
    assert seeds_for(np.array([1.0, 1.0001])) == 3  # the power is there with two, and two are no evidence
    unclear = compared([0.01, -0.005, 0.02])
    assert unclear.seeds_needed is not None
    assert seeds_to_come(unclear) == unclear.seeds_needed - 3
    undecided = compared([0.01, -0.005, 0.02], undecided="no verdict: chance")
    assert undecided.seeds_needed is None
    assert seeds_to_come(undecided) == seeds_to_come(compared([0.01, -0.005])) == 0
    assert "more seed" not in comparison_in_words(undecided)


# --- headlines


def test_pairs_without_any_verdict_and_a_single_one(three: Path) -> None:
    for seed in (1, 2, 3):
        for name in ENCODERS[:2]:
            change(three, f"m--{name}--seed-{seed}", best_epoch=1)
            write_epochs(three / f"cells/m--{name}--seed-{seed}", epochs([0.9, 1.0], ["on_floor"] * 2))
    lines = measured(three)["headlines"]
    assert any(re.search("; without a verdict: [123] whose models do not hear their input$", line) for line in lines)
    two = [[5, 5, 5, 5], [6, 5, 5, 5], [7, 6, 5, 5]]
    better = [[1, 1, 1, 1], [2, 1, 1, 1.0], [3, 2, 1, 1]]
    data = measured(make_study(three.parent / "two", {"none": two, "layer_norm": better}))
    assert any(line.startswith("of no pair of arms it can be said whether") for line in data["headlines"])
    better[0][0] = 2
    data = measured(make_study(three.parent / "one", {"none": two, "layer_norm": better}))
    assert "1 of 1 pair of arms differs in CER on test (p < 0.025 after Holm's correction)" in data["headlines"]
    assert "6 cells: 6 done" in data["headlines"]


def test_a_single_cell(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "s", {"none": [[1, 1, 1, 1]]})
    error = {"code": "killed", "message": "by a signal", "exit_code": -9}
    change(folder, "m--none--seed-1", status="failed", error=error, dev=None, test=None)
    (folder / "cells/m--none--seed-1/metrics.jsonl").unlink()
    data = write_report(folder)
    assert data["headlines"][0] == "1 cell: 1 failed"
    assert "seed 1 failed without a model" not in (folder / "report.md").read_text()  # nothing was scored at all
    assert "1 cell is not simply done" in (folder / "report.html").read_text()


def test_more_seeds_come_with_a_warning(three: Path) -> None:
    data = measured(three)
    assert AHEAD in data["headlines"]
    assert any("more seed" in line for line in data["verdicts"])
    same = [[1, 1, 1, 1]] * 3
    data = measured(make_study(three.parent / "same", {"none": same, "layer_norm": same}))
    assert AHEAD not in data["headlines"]


def test_it_is_said_when_the_baseline_was_named(three: Path) -> None:
    assert not any(line.startswith("compared with") for line in write_report(three)["headlines"])
    given = "compared with none (given to this report, after the results)"
    assert given in write_report(three, baseline="none")["headlines"]
    rewrite(three, definition={"baseline": "none"})
    assert "compared with none (named in the study)" in write_report(three)["headlines"]
    assert "compared with none (named in the study)" in write_report(three, baseline="none")["headlines"]
    other = "compared with layer_norm (given to this report, after the results)"
    assert other in write_report(three, baseline="layer_norm")["headlines"]
    assert other in (three / "report.md").read_text()


def test_with_one_encoder_everywhere_the_values_of_the_axis_are_ordered(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    for cure, level in (("plain", 15), ("residual", 4), ("clip", 9)):
        make_study(folder, {"none": [[level] * 4]}, axes={"cure": cure})
    head = "mean CER on test, the lowest first (an order of means is no evidence by itself):"
    lines = measured(folder)["headlines"]
    assert lines[lines.index(head) + 1] == "m, none: cure residual 16.0 %, cure clip 36.0 %, cure plain 60.0 %"
    write_epochs(folder / "cells/m--cure-plain--none--seed-1", epochs([0.9, 1.0], ["on_floor"] * 2))
    assert (
        'm, none: cure residual 16.0 %, cure clip 36.0 %, no model of "cure plain" hears its input'
        in (measured(folder)["headlines"])
    )
    assert not any("recipes are not compared" in line for line in lines)


def test_recipes_alone_are_not_compared_and_that_is_said(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "s", {"none": [[5] * 4], "layer_norm": [[9] * 4]})
    study = json.loads((folder / "study.json").read_text())
    study["arms"][1] |= {"context": "w", "recipe": "w", "encoder": "none"}
    (folder / "study.json").write_text(json.dumps(study))
    data = measured(folder)
    assert "none: m 20.0 %, w 36.0 %" in data["headlines"]
    assert (
        "recipes are not compared with each other: make what differs between them an axis of one recipe"
        in (data["headlines"])
    )
    assert data["comparisons"] == []


def test_a_rate_at_the_end_of_the_grid_says_nothing_where_no_rate_is_heard() -> None:
    grid = [1e-3, 2e-3]
    tunings = [[{"lr": lr, "dev_cer": 0.9, "deaf": deaf} for lr, deaf in zip(grid, many, strict=True)]
               for many in ((2, 2), (2, 1), (0, 0))]  # fmt: skip
    arms = [{"arm": f"m--{name}", "lr": 2e-3, "tuning": one} for name, one in zip("abc", tunings, strict=True)]
    lines = rates_in_words(StudyResult(Path(), {"arms": arms, "tuning_seeds": [1, 2]}, []))
    assert lines[0].startswith("the best learning rate of 2 of 2 arms is the highest one tried, 0.002")
    assert lines[0].endswith(": m, b; m, c")
    assert lines[1] == "no learning rate of these was chosen by a model that hears its input: m, a"
    assert len(lines) == 2


def test_a_cell_without_a_proof_says_nothing_of_its_sources(three: Path) -> None:
    """One that a signal ended has none; a row without `code` is of a time when none was recorded."""
    study = json.loads((three / "study.json").read_text())
    rows = [row | {"code": "a" * 16} for row in study["proof"]]
    rewrite(three, proof=rows[1:])
    assert versions_in_words(collect(three)) == []
    rewrite(three, proof=[{k: v for k, v in rows[0].items() if k != "code"}, *rows[1:]])
    (line,) = versions_in_words(collect(three))
    assert "(8 cells with aaaaaaaa, 1 with unrecorded ones)" in line


def test_what_is_not_compared_is_counted_and_listed(three: Path) -> None:
    assert write_report(three)["left_out"] == []
    assert "Cells that are not compared" not in (three / "report.md").read_text()
    rows = [
        {"id": "m--none--lr-0.5--seed-2", "arm": "m--none", "lr": 0.5, "seed": 2, "status": "done", "dev_cer": 0.125,
         "why": "rate not chosen now"},
        {"id": "m--old--seed-1", "arm": "m--old", "lr": 0.001, "seed": 1, "status": "failed", "dev_cer": None,
         "why": "no longer in the study"},
    ]  # fmt: skip
    rewrite(three, left_out=[rows[0], *rows])
    data = write_report(three)
    assert data["left_out"] == [rows[0], *rows]
    line = "3 cells were trained and are not compared: 2 with a rate that is not chosen now, 1 no longer in the study"
    assert data["headlines"][1] == line
    for name in ("report.md", "report.html"):
        text = (three / name).read_text()
        assert line in text
        assert "Cells that are not compared" in text
    text = (three / "report.md").read_text()
    assert "| m--none--lr-0.5--seed-2 | 0.5 | 2 | done | 12.5 | rate not chosen now |" in text
    assert "| m--old--seed-1 | 0.001 | 1 | failed | – | no longer in the study |" in text
    rewrite(three, left_out=rows[1:])
    assert "1 cell was trained and is not compared: 1 no longer in the study" in write_report(three)["headlines"]
    rewrite(three, left_out="damaged")
    assert write_report(three)["left_out"] == []


# --- the terminal


def test_the_terminal_counts_what_is_too_few_by_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An encoder may be called as the sentence reads."""
    name = "too few to tell"
    folder = make_study(tmp_path / "s", {name: [[9] * 4, [8] * 4, [9, 9, 9, 8]], "none": [[1] * 4, [2] * 4, [1] * 4]})
    assert main(["report", str(folder)]) == 0
    said = capsys.readouterr().out
    assert f"none is better than {name} by " in said
    assert "too few paired seeds" not in said
    assert "after 30 updates (too few to tell) and 30 (none)\n" in said  # and not 1.00 times as many (1.00 to 1.00)
    folder = make_study(tmp_path / "few", {"a": [[9] * 4], "none": [[1] * 4]})
    assert main(["report", str(folder)]) == 0
    assert "(2 comparisons have too few paired seeds)" in capsys.readouterr().out
    folder = tmp_path / "axis"
    for value in ("1", "2"):
        make_study(folder, {"none": [[int(value)] * 4]}, axes={"depth": value})
    assert main(["report", str(folder)]) == 0
    assert "(1 comparison has too few paired seeds)" in capsys.readouterr().out
