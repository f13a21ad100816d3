"""An audit hook watches whole commands: nothing is unpickled, no process is started, no code comes from data.

The interpreter itself reports imports, executed code, opened files, started processes and classes that an unpickler
looks up. The commands run in one fresh process, whose current folder is full of planted modules.
"""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_x import plant, planted
from toy import RECIPE, make_corpus

pytestmark = pytest.mark.fault


def audited(folder: Path, watch: list[Path], steps: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """What `audited.py` saw while these steps ran with `folder` as the current one."""
    job = {"watch": [str(path) for path in watch], "steps": steps, **more}
    script = Path(__file__).with_name("audited.py")
    done = subprocess.run(
        [sys.executable, str(script)], input=json.dumps(job), cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def planting(folder: Path, marker: Path, keep: tuple[str, ...] = ()) -> dict[str, str]:
    """Path -> text of what to write there, the files in `keep` left alone."""
    return {str(folder / name): data.decode("latin-1") for name, data in planted(marker).items() if name not in keep}


def test_commands_unpickle_nothing_start_nothing_import_nothing(tmp_path: Path) -> None:
    """Train, resume, evaluate and transcribe over a corpus, a run and a model with payloads in every corner."""
    marker = tmp_path / "marker"
    corpus, run = make_corpus(tmp_path / "cv"), tmp_path / "run"
    recipe = tmp_path / "toy.yaml"
    recipe.write_text(RECIPE)
    for folder in (corpus, corpus / "clips"):
        plant(folder, marker)
    own = ("recipe.yaml", "resolved.yaml")
    train = ["train", str(recipe), f"--data.root={corpus}", f"--data.cache={tmp_path / 'cache'}", "--output", str(run)]
    clip = str(corpus / "clips" / "common_voice_es_0.wav")
    steps: list[dict[str, Any]] = [
        {"words": [*train, "--training.epochs=1"]},
        {"write": planting(run, marker, own) | planting(run / "model", marker) | planting(run / "checkpoints", marker)},
        {"words": [*train, "--training.epochs=2"]},
        {"words": ["evaluate", str(run)]},
        {"words": ["evaluate", str(run / "model"), f"--data.root={corpus}", f"--data.cache={tmp_path / 'cache'}"]},
        {"words": ["transcribe", "--model", str(run), clip, str(corpus / "clips"), "--first", "3"]},
    ]
    seen = audited(corpus, [corpus, run, tmp_path / "cache"], steps)
    assert seen["codes"] == [0, 0, 0, 0, 0], seen["errors"]
    assert seen["events"] == [], seen["events"][:20]
    read = {"train.tsv", "common_voice_es_0.wav", "resolved.yaml", "model.safetensors", "tokens.txt", "MANIFEST.json"}
    assert read <= set(seen["opened"]), "the watch is blind"
    assert not {"torch.py", "model.pt", "hyperparams.yaml", "CKPT.yaml", "tokenizer.pkl"} & set(seen["opened"])
    assert not marker.exists()


def test_the_watch_sees_what_it_is_for(tmp_path: Path) -> None:
    """Each forbidden thing, done once, is an event."""
    (tmp_path / "planted.py").write_text("x = 1\n")
    seen = audited(tmp_path, [tmp_path], [], self_test=str(tmp_path))
    kinds = {kind for kind, _ in seen["events"]}
    assert kinds >= {"pickle.find_class", "os.system", "subprocess.Popen", "exec"}


def test_security_names_real_tests() -> None:
    """Every statement of SECURITY.md names a test that there is."""
    root = Path(__file__).resolve().parents[2]
    named = set(re.findall(r"`(test_\w+)", (root / "SECURITY.md").read_text(encoding="utf-8")))
    source = "".join(path.read_text(encoding="utf-8") for path in (root / "tests").rglob("test_*.py"))
    assert len(named) > 20
    assert [name for name in sorted(named) if f"def {name}(" not in source] == []


def test_the_page_of_all_rows_is_of_today() -> None:
    """docs/reliability.md has a line for every row, as benchmarks/fault_rows.py has it, and each of them was tested."""
    root = Path(__file__).resolve().parents[2]
    rows = runpy.run_path(str(root / "benchmarks" / "fault_rows.py"))["ROWS"]
    page = (root / "docs" / "reliability.md").read_text(encoding="utf-8")
    told = {cells[0]: cells[1:4] for cells in re.findall(r"(?m)^\| ([A-Z]\d\d) \| (.*?) \| (.*?) \| (.*?) \|", page)}
    source = "".join(path.read_text(encoding="utf-8") for path in (root / "tests").rglob("test_*.py"))
    assert sorted(told) == sorted(rows)
    for row, (fault, promise) in rows.items():
        assert told[row][:2] == (fault.replace("|", "/"), promise.replace("|", "/"))
        assert re.fullmatch(r"\d+ passed(, \d+ skipped)?", told[row][2]), f"{row}: {told[row][2]}"
        assert f"def test_{row.lower()}_" in source
