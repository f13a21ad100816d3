"""Reports of studies that are written by hand: the numbers, what is said of cells that went wrong, the page itself."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from report_study import ENCODERS, change, epochs, make_study, measured, write_epochs

from asrkit.cli import main
from asrkit.comparison import NO_SPREAD, UNPAIRED
from asrkit.errors import DataError, StorageError
from asrkit.report import measures
from asrkit.report.collect import StudyResult, collect
from asrkit.report.export import write_report
from asrkit.report.proof import proof_table
from asrkit.report.words import rates_in_words, versions_in_words


@pytest.fixture
def three(tmp_path: Path) -> Path:
    rng = np.random.default_rng(5)
    return make_study(tmp_path / "s", {name: rng.integers(0, 10, (3, 4)).tolist() for name in ENCODERS})


def row_of(folder: Path, title: str, arm: str) -> list[str]:
    """A line of a table of report.md."""
    text = (folder / "report.md").read_text().split(f"### {title}\n")[1].split("\n#")[0]
    line = next(line for line in text.splitlines() if line.startswith(f"| m, {arm} |"))
    return [word.strip() for word in line.strip("|").split("|")]


def test_numbers_are_those_of_the_cells(three: Path) -> None:
    data = write_report(three)
    for arm in data["arms"]:
        paths = sorted(three.glob(f"cells/{arm['arm']}--seed-*/cell.json"))
        cers, wers = [
            np.array([sum(c["test"][unit]["errors"]) / sum(c["test"][unit]["lengths"]) for c in
                      (json.loads(path.read_text()) for path in paths)]) for unit in ("characters", "words")
        ]  # fmt: skip
        reach = 4.302652729749464 * cers.std(ddof=1) / 3**0.5  # Student's t, 2 degrees of freedom, 97.5 %
        assert arm["CER"]["mean"] == pytest.approx(cers.mean())
        assert arm["CER"]["high"] == pytest.approx(cers.mean() + reach)
        assert arm["WER"]["mean"] == pytest.approx(wers.mean())
        row = row_of(three, "Error rates on test", arm["encoder"])
        assert row[1:5] == ["3", "–", f"{100 * cers.mean():.1f}", f"{100 * cers.min():.1f} to {100 * cers.max():.1f}"]
        assert row[6] == f"{100 * wers.mean():.1f}"
    assert row_of(three, "Updates to reach a CER", "none")[1:] == ["–", *["20"] * 2, "30"]  # 80, 50, 30 %
    assert row_of(three, "Per update", "none")[1:] == ["150", "102 (101 to 103)"]
    end = row_of(three, "At the end of training", "none")
    assert end[1:4] == ["12.5", "25.0", "12.5"]
    assert end[6:] == ["0 / ctc", "0.5", "4", "–"]


def test_cells_that_went_wrong_are_named_and_counted(three: Path) -> None:
    error = {"code": "nonfinite", "message": "nan <everywhere> | twice", "exit_code": 4}
    change(three, "m--none--seed-1", status="failed", error=error, dev=None, test=None)
    change(three, "m--none--seed-2", status="collapsed")
    change(three, "m--layer_norm--seed-1", test=None, test_error={"code": "oom", "message": "no memory"})
    (three / "cells/m--layer_norm--seed-2/cell.json").write_text("{")
    (three / "cells/m--layer_norm--seed-3/metrics.jsonl").unlink()
    (three / "cells/m--sequence_batch_norm--seed-1/cell.json").unlink()
    study = json.loads((three / "study.json").read_text())
    study["cells"][-1]["status"], study["cells"][-2]["status"] = "pending", "skipped_budget"
    (three / "study.json").write_text(json.dumps(study))
    for seed in (2, 3):
        (three / f"cells/m--sequence_batch_norm--seed-{seed}/cell.json").unlink()
    data = write_report(three)
    named = {trouble["id"][3:]: (trouble["status"], trouble["reason"]) for trouble in data["troubles"]}
    assert named["none--seed-1"] == ("failed", "nonfinite: nan <everywhere> | twice")
    assert named["none--seed-2"][0] == "collapsed"
    assert named["layer_norm--seed-1"] == ("done", "test not scored: oom: no memory")
    assert "is damaged" in named["layer_norm--seed-2"][1]
    assert str(three) not in json.dumps(data)
    assert "no curves" in named["layer_norm--seed-3"][1]
    assert [named[f"sequence_batch_norm--seed-{i}"][0] for i in (1, 2, 3)] == ["missing", "skipped_budget", "pending"]
    assert len(named) == 8
    for name in ("report.html", "report.md"):
        assert all(cell in (three / name).read_text() for cell in named)
    none = data["arms"][0]["CER"]
    assert (none["by_seed"]["1"], none["without_model"], none["count"]) == (1.0, [1], 3)
    assert data["arms"][2]["CER"] is None
    assert all("too few to tell" in line for line in data["verdicts"])
    assert "<everywhere>" not in (three / "report.html").read_text()


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        known = dict(attrs)
        self.ids += [str(known["id"])] if "id" in known else []
        self.links += [str(known[key]) for key in ("href", "xlink:href", "src") if key in known]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else(three: Path) -> None:
    write_report(three)
    text = (three / "report.html").read_text()
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert "svg" in page.seen
    assert not page.seen & {"script", "link", "img", "iframe", "object"}
    assert "http" not in text.replace("http-equiv", "")
    assert not re.search(r"\bsrc=|@import", text)
    assert len(page.ids) == len(set(page.ids))
    assert {link[0] for link in page.links} == {"#"}
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | {link[1:] for link in page.links}
    assert used <= set(page.ids)
    write_report(three)
    assert (three / "report.html").read_text() == text


def test_csv_and_json_round_trip(three: Path) -> None:
    data = write_report(three)
    assert json.loads((three / "report.json").read_text()) == data
    lines = list(csv.DictReader(io.StringIO((three / "cells.csv").read_text())))
    assert len(lines) == len(data["cells"]) == 9
    for line, cell in zip(lines, data["cells"], strict=True):
        assert {k: v for k, v in line.items() if k != "axes"} == {
            key: "" if value is None else str(value) for key, value in cell.items() if key != "axes"
        }
        assert float(line["test_cer"]) == cell["test_cer"]


def test_equal_arms_are_not_called_different(tmp_path: Path) -> None:
    same = [[3, 4, 1, 7], [2, 5, 2, 6], [4, 4, 0, 9]]
    data = write_report(make_study(tmp_path / "s", {"none": same, "layer_norm": same}))
    assert not data["comparisons"][0]["different"]
    assert not data["paces"][0]["different"]
    assert "no evidence of a difference" in data["verdicts"][0]
    assert "no evidence at this budget that one learns faster" in data["pace"][0]


def test_a_clear_difference_is_said_and_holm_counts_all_contexts(tmp_path: Path) -> None:
    worse = [[13, 14, 8, 27], [12, 15, 8, 26], [14, 14, 7, 28]]
    better = [[3, 4, 1, 7], [2, 5, 1, 6], [4, 4, 0, 9]]
    curves = {"none": [0.9, 0.9, 0.45], "layer_norm": [0.45, 0.3, 0.25]}
    folder = make_study(tmp_path / "s", {"none": worse, "layer_norm": better}, curves)
    write_epochs(folder / "cells/m--none--seed-3", epochs([0.9, 0.91, 0.45]))
    data = write_report(folder)
    assert data["verdicts"][0].startswith("layer_norm is better than none by ")
    assert data["pace"][0].startswith("layer_norm learns faster than none: ")
    assert "dev CER 50 % after 30 updates (none) and 10 (layer_norm)" in data["pace"][0]
    study = json.loads((folder / "study.json").read_text())
    for place, name in enumerate(("none", "layer_norm")):  # a second context with the same cells
        study["arms"].append(study["arms"][place] | {"arm": f"w--{name}", "context": "w"})
    study["cells"] += [c | {"arm": c["arm"].replace("m--", "w--")} for c in study["cells"]]
    (folder / "study.json").write_text(json.dumps(study))
    again = write_report(folder)["comparisons"]
    assert [one["context"] for one in again] == ["m", "w"]
    assert again[0]["p_holm"] == pytest.approx(2 * data["comparisons"][0]["p_holm"])


def test_the_same_difference_in_every_seed_is_no_proof(tmp_path: Path) -> None:
    """Three counts are easily alike where errors are few: a spread of 0 would be the surest of all verdicts."""
    none = [[1, 0, 0, 2], [2, 0, 0, 1], [0, 0, 1, 4]]
    data = write_report(
        make_study(tmp_path / "s", {"none": none, "layer_norm": [[a, 1, *rest] for a, _, *rest in none]})
    )
    one = data["comparisons"][0]
    assert (one["different"], one["p_holm"], one["seeds_needed"]) == (False, None, None)
    assert data["verdicts"][0] == f"none and layer_norm: {NO_SPREAD}"
    assert data["pace"][0].startswith("none and layer_norm: no evidence")  # there is no difference at all
    assert (
        "of no pair of arms it can be said whether they differ in CER on test; without a verdict: 1 whose difference "
        "is the same in every seed"
    ) in data["headlines"]


def test_words_and_dev_and_what_was_not_scored(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(three), "--unit", "words", "--split", "dev", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["rate"], answer["split"]) == ("WER", "dev")
    assert "WER" in answer["verdicts"][0]
    for path in three.glob("cells/*/cell.json"):
        change(three, path.parent.name, test=None)
    assert measures.default_split(collect(three)) == "dev"
    with pytest.raises(DataError) as error:
        write_report(three, split="test")
    assert error.value.reason == "not_scored"
    assert main(["report", str(three)]) == 0
    assert "9 cells: 9 done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("grid", "chosen", "said"),
    [
        ([2e-3], [2e-3, 2e-3], "one learning rate for all arms, 0.002"),
        ([2e-3], [2e-3], None),
        ([1e-3, 2e-3, 4e-3], [2e-3, 2e-3], None),
        ([1e-3, 2e-3, 4e-3], [2e-3, None], None),
        ([4e-3, 2e-3, 1e-3], [2e-3, 4e-3],
         r"1 of 2 arms is the highest one tried, 0.004; .*--lr='\[1.0e-03, 2.0e-03, 4.0e-03, 8.0e-03\]'.*: m1, b$"),
        ([1e-3, 2e-3], [1e-3, 1e-3], r"2 of 2 arms is the lowest one tried.*\[5.0e-04, 1.0e-03.*: m1, a; m1, b$"),
        ([2.5e-4, 1.25e-3], [2.5e-4, 1e-3], r"1 of 2 arms is the lowest one.*\[0.000125, 2.5e-04, 0.00125\]"),
    ],
)  # fmt: skip
def test_learning_rates_at_the_end_of_their_grid(grid: list[float], chosen: list[float | None], said: str) -> None:
    tuning = [{"lr": lr, "dev_cer": 0.5} for lr in grid]
    arms = [{"arm": f"m1--{name}", "lr": lr, "tuning": tuning} for name, lr in zip("ab", chosen, strict=False)]
    lines = rates_in_words(StudyResult(Path(), {"arms": arms}, []))
    assert (lines == []) if said is None else re.search(said, lines[0])


def test_a_proof_says_how_many_have_recorded_it(three: Path) -> None:
    study = json.loads((three / "study.json").read_text())
    for row in study["proof"][1:]:
        del row["order"]
    for place, row in enumerate(study["proof"]):
        row["code"] = "1" * 16 + ("+" + "2" * 16) * (place == 1)
    (three / "study.json").write_text(json.dumps(study))
    table = proof_table(collect(three))
    row = dict(zip(table.head, table.rows[0], strict=True))
    assert row["order"] == "1abc (1 of 3)"
    assert row["updates"] == "30"
    assert {dict(zip(table.head, one, strict=True))["code"] for one in table.rows} == {
        "11111111", "≠ 11111111+22222222, 11111111",
    }  # fmt: skip


def test_a_model_that_could_not_be_scored_is_listed_without_a_rate(three: Path) -> None:
    error = {"code": "OSError", "message": "gone", "exit_code": 1}
    change(three, "m--none--seed-2", status="failed", error=error, dev=None, test=None, dev_error=error)
    data = measured(three)
    arm = next(one for one in data["arms"] if one["encoder"] == "none")
    assert list(arm["CER"]["by_seed"]) == ["1", "3"]
    assert list(arm["CER"]["without_model"]) == []
    assert [one["id"] for one in data["troubles"]] == ["m--none--seed-2"]


def test_cells_of_other_sources_are_named(three: Path) -> None:
    path = three / "study.json"
    study = json.loads(path.read_text())
    assert versions_in_words(collect(three)) == []  # recorded of none
    for row in study["proof"]:
        row["code"] = "a" * 16
    path.write_text(json.dumps(study))
    assert versions_in_words(collect(three)) == []
    study["proof"][0]["code"], study["proof"][1]["code"] = "b" * 16, None
    path.write_text(json.dumps(study))
    (line,) = versions_in_words(collect(three))
    assert f"(1 cell with bbbbbbbb, {len(study['proof']) - 2} cells with aaaaaaaa, 1 with unrecorded ones)" in line
    write_report(three)
    assert line in (three / "report.md").read_text()


def other_utterances(cell: Path) -> None:
    """A cell that lacks the last utterance of both splits."""
    left = json.loads((cell / "cell.json").read_text())
    for split in ("dev", "test"):
        score = left[split]
        for part in (score, score["characters"], score["words"]):
            part |= {key: value[:3] for key, value in part.items() if isinstance(value, list)}
    change(cell.parents[1], cell.name, dev=left["dev"], test=left["test"])


def test_a_cell_of_other_utterances_is_named(three: Path) -> None:
    """Also where it is the first one: most cells say which utterances count."""
    whole = write_report(three)
    odd = three / "cells/m--none--seed-1"
    other_utterances(odd)
    data = write_report(three)
    reason = "; ".join(f"{split} was not scored on the same utterances as most others', so it is not compared"
                       for split in ("dev", "test"))  # fmt: skip
    assert [(one["id"], one["reason"]) for one in data["troubles"]] == [(odd.name, reason)]
    assert next(cell["reason"] for cell in data["cells"] if cell["id"] == odd.name) == reason
    assert [arm["CER"]["count"] for arm in data["arms"]] == [2, 3, 3]
    assert data["comparisons"][2]["seeds"] == whole["comparisons"][2]["seeds"]
    assert reason in (three / "report.md").read_text()


@pytest.mark.parametrize("values", [("plain", "other"), ("1", "2", "4"), ("1", "2", "4", "8", "16")])
def test_values_of_other_utterances_get_no_verdict(tmp_path: Path, values: tuple[str, ...]) -> None:
    """Neither beside the first value nor in what the axis does to the difference of two encoders."""
    folder, rng = tmp_path / "s", np.random.default_rng(2)
    for value in values:
        make_study(folder, {name: rng.integers(0, 10, (3, 4)).tolist() for name in ENCODERS[:2]}, axes={"a": value})
    for cell in folder.glob(f"cells/m--a-{values[1]}--*"):
        other_utterances(cell)
    data = write_report(folder)
    odd = [one for one in data["axes"] if one["second"] == f"a {values[1]}"]
    assert [(one["undecided"], one["seeds"]["mean"], one["too_few"]) for one in odd] == [(UNPAIRED, None, False)] * 2
    assert len(data["axes"]) == 2 * (len(values) - 1)
    assert all(one["undecided"] is None for one in data["axes"] if one not in odd)
    assert f"m, none: a {values[0]} and a {values[1]}: {UNPAIRED}" in data["across"]
    (change,) = data["interactions"]
    if len(values) == 2:
        assert (change["undecided"], change["difference"]["mean"]) == (UNPAIRED, None)
        assert data["changes"] == [f"m: layer_norm beside none, from a plain to other: {UNPAIRED}"]
    elif len(values) == 3:
        few = "no verdict: fewer than 3 values are there to compare on the same utterances"
        assert (change["undecided"], change["unpaired"]) == (few, ["2"])
    else:
        assert (change["undecided"], change["unpaired"]) == (None, ["2"])
        assert [value for value, _ in change["gaps"]] == ["1", "4", "8", "16"]
        assert "; 2 was not scored on the same utterances as 1; " in data["changes"][0]
    assert data["troubles"] == []  # a context of its own


def test_a_test_that_is_not_decoded_yet_is_no_cell_that_is_done(three: Path) -> None:
    for name in ("none", "layer_norm"):
        change(three, f"m--{name}--seed-3", test=None)
    assert write_report(three)["troubles"] == []  # this study does not say that it decodes test
    study = json.loads((three / "study.json").read_text())
    study["cells"][2]["chosen"] = False
    (three / "study.json").write_text(json.dumps(study | {"definition": {"test": True}}))
    data = write_report(three)
    assert [(t["id"], t["reason"]) for t in data["troubles"]] == [("m--layer_norm--seed-3", "test is not decoded yet")]
    page = (three / "report.html").read_text()
    assert "Every cell is done." not in page
    assert "1 cell is not simply done" in page
    change(three, "m--layer_norm--seed-3", test_error={"code": "oom", "message": "no memory"})
    assert write_report(three)["troubles"][0]["reason"] == "test not scored: oom: no memory"


def test_cells_to_come_are_not_done_either(three: Path) -> None:
    write_report(three)
    assert "Every cell is done." in (three / "report.html").read_text()
    study = json.loads((three / "study.json").read_text())
    (three / "study.json").write_text(json.dumps(study | {"total_cells": 11}))
    assert write_report(three)["headlines"][0] == "11 cells: 9 done, 2 not planned yet"
    page = (three / "report.html").read_text()
    assert "Every cell is done." not in page
    assert "2 cells depend on what others come to: still to come." in page


def test_with_a_baseline_fewer_pairs_are_corrected_for(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    every = write_report(three)
    data = write_report(three, baseline="layer_norm")
    for name in ("comparisons", "paces"):
        assert [(one["first"], one["second"]) for one in data[name]] == [
            ("layer_norm", "none"), ("layer_norm", "sequence_batch_norm"),
        ]  # fmt: skip
    study = json.loads((three / "study.json").read_text())
    (three / "study.json").write_text(json.dumps(study | {"definition": {"baseline": "layer_norm"}}))
    assert write_report(three)["comparisons"] == data["comparisons"]  # the study's own, chosen before any result
    p = sorted(one["seeds"]["p"] for one in data["comparisons"])
    assert min(one["p_holm"] for one in data["comparisons"]) == pytest.approx(min(1, 2 * p[0]))
    assert len(every["comparisons"]) == 3
    assert main(["report", str(three), "--baseline", "layer"]) == 3
    assert "possible: none, layer_norm, sequence_batch_norm" in capsys.readouterr().err


def test_no_study_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as error:
        write_report(tmp_path)
    assert error.value.reason == "no_study"
    (tmp_path / "report.html").touch()
    with pytest.raises(StorageError) as error:
        write_report(tmp_path / "report.html")
    assert error.value.reason == "no_study"
    (tmp_path / "study.json").write_text('{"format": 1, "name": "e", "cells": [], "arms": []}')
    assert write_report(tmp_path)["headlines"] == ["0 cells: none"]
