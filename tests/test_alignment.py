"""Forced alignment against an independent Viterbi in NumPy, and against tones whose places are known."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from toy import RATE, make_corpus, tones, toy_recipe

import asrkit
from asrkit.cli import main
from asrkit.errors import DataError
from asrkit.experiment import train
from asrkit.transcribe.alignment import Aligner, _path, align_labels
from asrkit.transcribe.viterbi import lean_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(bundle, corpus): a model that has learned the tones, with one frame every 20 ms."""
    folder = tmp_path_factory.mktemp("trained")
    corpus = make_corpus(folder / "cv")
    quiet = [(f"training.{key}", 25) for key in ("epochs", "evaluate_every", "checkpoint_every")]
    return train(toy_recipe(folder, corpus, *quiet), "", folder / "run", say=lambda _: None).bundle, corpus


def viterbi(log_probs: np.ndarray, labels: list[int]) -> tuple[float, list[tuple[int, int]]]:
    """The best path over blank, l1, blank, l2, ... in float64: its log-probability and the frames of each label."""
    states = [0] + [s for label in labels for s in (label, 0)]
    frames = len(log_probs)
    best = np.full((frames, len(states)), -np.inf)
    back = np.zeros((frames, len(states)), dtype=int)
    best[0, :2] = log_probs[0, states[:2]]
    for t in range(1, frames):
        for s, label in enumerate(states):
            reach = [s, s - 1] + [s - 2] * (s > 1 and label != 0 and states[s - 2] != label)
            reach = [r for r in reach if r >= 0]
            back[t, s] = max(reach, key=lambda r: best[t - 1, r])
            best[t, s] = best[t - 1, back[t, s]] + log_probs[t, label]
    state = max((len(states) - 1, len(states) - 2), key=lambda s: best[-1, s])
    score, path = best[-1, state], []
    for t in range(frames - 1, -1, -1):
        path.insert(0, state)
        state = back[t, state]
    places = [[t for t, s in enumerate(path) if s == 2 * i + 1] for i in range(len(labels))]
    return score, [(place[0], place[-1] + 1) for place in places]


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_spans_are_those_of_viterbi(seed: int, lean: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if lean:
        monkeypatch.setattr("asrkit.transcribe.alignment.REMEMBERED", 0)
    random = np.random.default_rng(seed)
    labels = [int(i) for i in random.integers(1, 4, random.integers(1, 9))]
    needed = len(labels) + sum(a == b for a, b in itertools.pairwise(labels))
    frames = needed + int(random.integers(0, 3 * needed)) * (seed % 3 > 0)  # a third of them with none to spare
    log_probs = torch.from_numpy(random.normal(size=(frames, 5)) * 3).log_softmax(-1)
    score, places = viterbi(log_probs.numpy(), labels)
    spans = align_labels(log_probs.float(), labels)
    assert [span.label for span in spans] == labels
    assert [(span.start, span.end) for span in spans] == places
    for span in spans:
        expected = log_probs[span.start : span.end, span.label].exp().mean()
        assert span.posterior == pytest.approx(float(expected), abs=1e-6)
    covered = sum(float(log_probs[s.start : s.end, s.label].sum()) for s in spans)
    blanks = set(range(frames)) - {t for s in spans for t in range(s.start, s.end)}
    assert covered + sum(float(log_probs[t, 0]) for t in blanks) == pytest.approx(score)


def test_the_way_of_long_recordings_is_the_same_path() -> None:
    """A thousand frames, so that blocks, their borders and both ends of the band are met; against torchaudio."""
    draw = torch.Generator().manual_seed(3)
    for frames, count in ((1000, 300), (400, 399), (1, 1), (2, 1)):
        log_probs = (3 * torch.randn(frames, 6, generator=draw, dtype=torch.float64)).log_softmax(-1)
        labels = [1 + i % 5 for i in range(count)]
        assert torch.equal(lean_path(log_probs, labels), _path(log_probs, labels))


def test_what_cannot_be_aligned_is_refused_with_its_frames() -> None:
    flat = torch.zeros(4, 5).log_softmax(-1)
    with pytest.raises(DataError, match=r"4 labels with 1 repeats need 5 frames, T' is 4") as caught:
        align_labels(flat, [1, 2, 2, 3])
    assert caught.value.reason == "too_short_for_ctc"
    with pytest.raises(DataError) as caught:
        align_labels(flat, [])
    assert caught.value.reason == "no_text"
    with pytest.raises(DataError) as caught:
        align_labels(torch.zeros(1, 5).expand(1 << 24, 5), [1, 2] * (1 << 10))
    assert caught.value.reason == "too_long_to_align"


def test_tones_are_found_where_they_are(trained: tuple[Path, Path]) -> None:
    """Every letter of the toy corpus lasts 60 ms and peaks in the middle of its time."""
    aligner = Aligner(asrkit.load(trained[0]))
    text = "abe iou bou"
    result = aligner.align((tones(text, 5), RATE), " Abe,  IOU; bou! ")
    assert result.text == text
    assert [word.word for word in result.words] == text.split()
    assert "".join(c.word for c in result.characters) == text.replace(" ", "")
    middles = [0.06 * place + 0.03 for place, letter in enumerate(text) if letter != " "]
    found = [(c.start + c.end) / 2 for c in result.characters]
    assert np.abs(np.subtract(found, middles)).max() < 0.045
    starts = [c.start for c in result.characters]
    assert [w.start for w in result.words] == [starts[0], starts[3], starts[6]]
    assert all(0 < w.confidence <= 1 for w in (*result.words, *result.characters))
    assert result.confidence > aligner.align((tones(text, 5), RATE), "uoi eba bbb").confidence
    assert [w.word for w in result.by_character().words] == [c.word for c in result.characters]


def test_a_table_is_aligned_and_bad_rows_stop_nothing(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, _ = trained
    soundfile.write(tmp_path / "good.wav", tones("abe iou", 1), RATE)
    rows = ["path\tsentence", "good.wav\tAbe iou.", "good.wav\t" + "ab" * 200, "good.wav\tabe 7", "no\x1bne.wav\ta"]
    (tmp_path / "pairs.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    command = ["align", "--model", str(bundle), "--table", str(tmp_path / "pairs.tsv")]
    assert main([*command, "--format", "json"]) == 3
    printed = capsys.readouterr()
    record = json.loads(printed.out)
    assert [w["word"] for w in record["words"]] == ["abe", "iou"]
    assert [c["word"] for c in record["characters"]] == list("abeiou")
    assert "400 labels with 0 repeats need 400 frames, T' is" in printed.err
    assert "check that the text belongs to the recording" in printed.err
    assert "no\\u001bne.wav cannot be opened: No such file or directory; fix: check the path\n" in printed.err
    assert "3 of 4 clips were not aligned: 1 too_short_for_ctc, 1 unknown_character, 1 missing" in printed.err
    assert main([*command, "--output-dir", str(tmp_path / "out")]) == 3
    assert "same_output" in capsys.readouterr().err
    assert main([*command, "--first", "1", "--unit", "character", "--output-dir", str(tmp_path / "out")]) == 0
    lines = (tmp_path / "out" / "good.wav.txt").read_text().splitlines()
    assert [line.split()[3] for line in lines] == list("abeiou")
    assert float(lines[0].split()[0]) == record["characters"][0]["start"]


def test_rows_of_a_table_may_be_pieces(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second half is looked for in the second half, not in the whole recording."""
    one, two = tones("abe", 1), tones("iou", 1)
    soundfile.write(tmp_path / "talk.wav", np.concatenate([one, two]), RATE, "FLOAT")
    soundfile.write(tmp_path / "two.wav", two, RATE, "FLOAT")
    half = len(one) / RATE
    (tmp_path / "pairs.tsv").write_text(f"path\tsentence\tstart\ntwo.wav\tiou\t\ntalk.wav\tiou\t{half}\n")
    command = ["align", "--model", str(trained[0]), "--table", str(tmp_path / "pairs.tsv"), "--format", "json"]
    assert main(command) == 0
    alone, piece = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert Path(piece["source"]).name == f"talk#{half:.3f}.wav"
    assert (piece["words"], piece["seconds"]) == (alone["words"], alone["seconds"])


def test_one_clip_and_its_text_file(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "a.wav", tones("abe iou", 1), RATE)
    (tmp_path / "a.txt").write_text("Abe, iou.\n", encoding="utf-8")
    command = ["align", "--model", str(trained[0]), str(tmp_path / "a.wav")]
    assert main([*command, str(tmp_path / "a.txt")]) == 0
    from_file = capsys.readouterr().out
    assert main([*command, "abe iou"]) == 0
    assert capsys.readouterr().out == from_file
    assert [line.split()[3] for line in from_file.splitlines()] == ["abe", "iou"]
    assert main(command) == 2
    assert main([*command, "abe", "--format", "poem"]) == 2
    assert "poem" in capsys.readouterr().err
