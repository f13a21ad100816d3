"""The command line: verbs found by name, options that reach the recipe, one-line errors, and the doctor's answers."""

from __future__ import annotations

import argparse
import ast
import builtins
import importlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, entry_points
from pathlib import Path
from types import SimpleNamespace

import pytest

import asrkit
import asrkit.cli
from asrkit import registry
from asrkit.cli import VERBS, common, doctor, main
from asrkit.cli.common import print_json, split_overrides, take_overrides
from asrkit.errors import RecipeError

FOLDER = Path(asrkit.cli.__file__).parent


def process(
    *words: str, code: str = "", env: dict[str, str] | None = None, **options: object
) -> subprocess.CompletedProcess:
    """`python -m asrkit words`, or Python code, in a process of its own."""
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "asrkit", *words]
    options = {"capture_output": True, **options}
    return subprocess.run(command, text=True, timeout=120, env={**os.environ, **(env or {})}, **options)


@pytest.fixture
def verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Adds a verb whose `run(args)` has the given body; the file is found and imported as a real one is."""

    def add(name: str, body: str, options: str = "", top: str = "") -> None:
        lines = [
            "import argparse, os, sys, pathlib",
            "from asrkit.errors import *",
            top,
            "def add_parser(subparsers):",
            f"    parser = subparsers.add_parser('{name}', help='a test')",
            f"    {options or 'pass'}",
            "    parser.set_defaults(run=run)",
            "def run(args):",
            f"    {body}",
        ]
        (tmp_path / f"{name}.py").write_text("\n".join(lines))
        monkeypatch.setattr(asrkit.cli, "__path__", [*asrkit.cli.__path__, str(tmp_path)])
        monkeypatch.setitem(VERBS, name, "a test")
        importlib.invalidate_caches()
        monkeypatch.delitem(sys.modules, f"asrkit.cli.{name}", raising=False)

    yield add
    for module in [m for m in sys.modules if m.startswith("asrkit.cli.") and not (FOLDER / f"{m[11:]}.py").is_file()]:
        del sys.modules[module]
        delattr(asrkit.cli, module[11:])


TAKES = (
    "parser.add_argument('recipe'); parser.add_argument('--json', action='store_true'); "
    "parser.set_defaults(takes_overrides=True)"
)
SHOW = "print(args.recipe, args.overrides, args.json); return 0"


class TestVerbs:
    @pytest.mark.parametrize(
        "words", [["--help"], ["-h"], ["--version"], ["plugins"], ["plugins", "--help"], ["--help", "train"]]
    )
    def test_torch_is_not_imported(self, words: list[str]) -> None:
        code = (
            f"import sys; from asrkit.cli import main; code = main({words!r}); "
            "print(code, sorted({'torch', 'numpy', 'speechbrain', 'torchaudio', 'datasets'} & set(sys.modules)))"
        )
        answer = process(code=code)
        assert answer.stdout.splitlines()[-1] == "0 []", answer.stdout + answer.stderr

    def test_help_of_every_verb_leaves_torch_alone(self) -> None:
        code = (
            "import sys; from asrkit.cli import main\n"
            f"for verb in {list(VERBS)!r}: assert main([verb, '--help']) == 0, verb\n"
            "print('torch' in sys.modules)"
        )
        answer = process(code=code)
        assert answer.stdout.splitlines()[-1] == "False", answer.stdout + answer.stderr
        assert "%%" not in answer.stdout

    def test_help_names_the_verbs_in_order(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert list(VERBS) == [
            "train", "evaluate", "transcribe", "align", "average", "export", "diagnose", "show", "study", "report",
            "lm", "tune-decoder", "data", "plugins", "doctor",
        ]  # fmt: skip
        assert main(["--help"]) == 0
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        listed = [words[0] for words in lines if words and words[0] in VERBS]
        assert listed == list(VERBS)

    @pytest.mark.parametrize("name", list(VERBS))
    def test_help_says_what_the_module_says(self, name: str) -> None:
        module = ast.parse((FOLDER / f"{name.replace('-', '_')}.py").read_text(encoding="utf-8"))
        for node in module.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "HELP":
                assert ast.literal_eval(node.value) == VERBS[name]

    def test_only_the_typed_verb_is_imported(self, verb: Callable, capsys: pytest.CaptureFixture[str]) -> None:
        verb("broken", "return 0", top="raise RuntimeError('not me')")
        verb("fine", "print('done'); return 7")
        assert main(["fine"]) == 7
        assert "asrkit.cli.broken" not in sys.modules
        assert capsys.readouterr().out == "done\n"
        assert main(["broken"]) == 1
        assert "while importing asrkit.cli.broken" in capsys.readouterr().err

    def test_a_verb_without_a_module_breaks_nothing(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(VERBS, "later", "not written yet")
        assert main(["--help"]) == 0
        assert "later" not in capsys.readouterr().out
        assert main(["later"]) == 2
        assert "unknown verb 'later'" in capsys.readouterr().err

    def test_unknown_verb(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["plugns"]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("asrkit: error[unknown_verb]: unknown verb 'plugns'")
        assert "did you mean 'plugins'?" in err
        assert err.count("\n") == 1

    def test_no_verb_shows_the_help_and_fails(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([]) == 2
        out, err = capsys.readouterr()
        assert (out, err[:13]) == ("", "usage: asrkit")

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--version"]) == 0
        assert capsys.readouterr().out == f"asrkit {asrkit.__version__}\n"

    def test_the_command_is_the_module(self) -> None:
        (script,) = [entry for entry in entry_points(group="console_scripts") if entry.name == "asrkit"]
        assert script.load() is main
        answer = process("plugns")
        assert (answer.returncode, answer.stdout) == (2, "")
        assert answer.stderr.startswith("asrkit: error[unknown_verb]")

    def test_settings_of_libraries(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
        main(["--version"])
        assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "64"
        monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
        main(["--version"])
        assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "7"


class TestOverrides:
    def test_they_reach_the_verb(self, verb: Callable, capsys: pytest.CaptureFixture[str]) -> None:
        verb("tune", SHOW, TAKES)
        words = [
            "--layers=[{linear: 3}, norm]",
            "r.yaml",
            "--data.root=/a=b c",
            "--json",
            "--width=",
            "--js=1",
            "--width=2",
        ]
        assert main(["tune", *words]) == 0
        expected = [
            ("layers", "[{linear: 3}, norm]"),
            ("data.root", "/a=b c"),
            ("width", ""),
            ("js", "1"),
            ("width", "2"),
        ]
        assert capsys.readouterr().out == f"r.yaml {expected} True\n"

    @pytest.mark.parametrize("words", [["--data.root", "/my cv", "r.yaml"], ["r.yaml", "--data.root", "/my cv"]])
    def test_without_an_equals_sign_the_right_form_is_shown(
        self, words: list[str], verb: Callable, capsys: pytest.CaptureFixture[str]
    ) -> None:
        verb("tune", SHOW, TAKES)
        assert main(["tune", *words]) == 2
        err = capsys.readouterr().err
        assert "error[override_form]" in err
        assert err.rstrip().endswith("--data.root='/my cv'")

    def test_a_misspelled_switch_is_recognised(self, verb: Callable, capsys: pytest.CaptureFixture[str]) -> None:
        verb("tune", SHOW, TAKES)
        assert main(["tune", "r.yaml", "--jsn"]) == 2
        assert "did you mean '--json'?" in capsys.readouterr().err

    def test_other_verbs_refuse_them(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["plugins", "--knd=encoders"]) == 2
        err = capsys.readouterr().err
        assert "unknown option --knd=encoders (did you mean '--kind'?)" in err
        assert "--json" in err
        assert "asrkit plugins --help" in err

    def test_a_verb_within_a_verb_names_its_own(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["data", "check", ".", "--jsn=1"]) == 2
        err = capsys.readouterr().err
        assert "asrkit data check --help" in err
        assert "--speakers" not in err  # of `data synth`

    def test_no_option_is_guessed_from_its_beginning(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["plugins", "--lo"]) == 2
        assert "unknown option --lo " in capsys.readouterr().err

    @pytest.mark.parametrize(
        "words",
        [["plugins", "extra"], ["--widht=3", "plugins"], ["--nothing"], ["tune", "r", "s"], ["tune", "r", "-w=3"]],
    )
    def test_nothing_is_ignored(self, words: list[str], verb: Callable, capsys: pytest.CaptureFixture[str]) -> None:
        verb("tune", SHOW, TAKES)
        assert main(words) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1

    def test_usage_errors_are_one_line(self, verb: Callable, capsys: pytest.CaptureFixture[str]) -> None:
        verb("tune", SHOW, TAKES)
        assert main(["tune"]) == 2
        err = capsys.readouterr().err
        assert err == (
            "asrkit: error[usage]: the following arguments are required: recipe; fix: see `asrkit tune --help`\n"
        )

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["evaluate", "run", "--worst=-1"], "'-1'; possible: a whole number from 0"),
            (["average", "run", "--last=0", "--output=x"], "'0'; possible: a whole number from 1"),
            (["diagnose", "no/such"], "no folder no/such"),
        ],
    )
    def test_values_that_no_verb_can_use(self, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(words) != 0
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert said in error

    def test_take_overrides(self) -> None:
        words = ["a", "--json", "--x.y=1", "-v", "--z", "3", "--out=o", "--", "--q=1"]
        own, unknown = take_overrides(words, {"--json", "--out", "-v"})
        assert own == ["a", "--json", "-v", "--out=o", "--", "--q=1"]
        assert unknown == ["--x.y=1", "--z", "3"]

    @pytest.mark.parametrize("word", ["--a", "--=1", "a=1", "-a=1"])
    def test_split_overrides_takes_one_form(self, word: str) -> None:
        assert split_overrides(["--a.b=1"]) == [("a.b", "1")]
        with pytest.raises(RecipeError) as error:
            split_overrides(["--a.b=1", word])
        assert error.value.exit_code == 2

    def test_the_real_train_verb_takes_them(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["train", str(tmp_path / "none.yaml"), "--data.root", "/cv"]) == 2
        assert "--data.root=/cv" in capsys.readouterr().err


class TestErrors:
    @pytest.mark.parametrize(
        ("body", "code"),
        [
            ("RecipeError", 2),
            ("DataError", 3),
            ("NumericError", 4),
            ("StorageError", 5),
            ("InUseError", 6),
            ("TrustError", 7),
            ("StoppedError", 75),
        ],
    )
    def test_each_kind_has_its_exit_code(
        self, body: str, code: int, verb: Callable, capsys: pytest.CaptureFixture[str]
    ) -> None:
        verb("fail", f"raise {body}('two\\nlines', fix='so', reason='why')")
        assert main(["fail"]) == code
        assert capsys.readouterr() == ("", "asrkit: error[why]: two lines; fix: so\n")

    def test_interrupted(self, verb: Callable, capsys: pytest.CaptureFixture[str]) -> None:
        verb("fail", "raise KeyboardInterrupt")
        assert main(["fail"]) == 130
        assert capsys.readouterr().err == "asrkit: interrupted\n"

    def test_a_bug_is_called_a_bug(self, verb: Callable, capsys: pytest.CaptureFixture[str]) -> None:
        verb("fail", "raise KeyError('a\\nb')")
        assert main(["fail"]) == 1
        err = capsys.readouterr().err
        assert err.startswith("asrkit: error[bug]: KeyError: ")
        assert "this is a bug; run again with --debug" in err
        assert err.count("\n") == 1

    @pytest.mark.parametrize("words", [["--debug", "fail"], ["fail", "--debug"], ["fail"]])
    def test_debug_shows_the_traceback(
        self, words: list[str], verb: Callable, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if "--debug" not in words:
            monkeypatch.setenv("ASRKIT_DEBUG", "1")
        verb("fail", "raise DataError('no', reason='why')")
        assert main(words) == 3
        err = capsys.readouterr().err
        assert "Traceback (most recent call last)" in err
        assert "fail.py" in err
        assert err.endswith("asrkit: error[why]: no\n")

    def test_a_missing_library_is_not_called_a_bug(self, verb: Callable, capsys: pytest.CaptureFixture[str]) -> None:
        verb("fail", "import a_library_that_is_not_here")
        assert main(["fail"]) == 1
        err = capsys.readouterr().err
        assert "a_library_that_is_not_here" in err
        assert "asrkit doctor" in err
        assert "is a bug" not in err

    def test_a_library_that_refuses_its_import_is_named(
        self, verb: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "refuses_import.py").write_text("raise RuntimeError('compiled with different CUDA versions')")
        monkeypatch.syspath_prepend(tmp_path)
        verb("fail", "import refuses_import")
        assert main(["fail"]) == 1
        err = capsys.readouterr().err
        assert "RuntimeError: compiled with different CUDA versions (while importing refuses_import)" in err
        assert "asrkit doctor" in err

    @pytest.mark.skipif(os.name == "nt", reason="no such pipes")
    @pytest.mark.parametrize("unbuffered", ["", "1"])
    def test_a_closed_pipe_is_quiet(self, unbuffered: str) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        try:
            answer = process(
                "plugins",
                env={"PYTHONUNBUFFERED": unbuffered},
                capture_output=False,
                stdout=writer,
                stderr=subprocess.PIPE,
            )
        finally:
            os.close(writer)
        assert (answer.returncode, answer.stderr) == (141, "")

    @pytest.mark.skipif(os.name == "nt", reason="no such pipes")
    def test_a_closed_pipe_with_text_still_buffered(self) -> None:
        code = (
            "import sys, asrkit.cli as cli\n"
            "cli._dispatch = lambda words: print('buffered') or print('fails', file=sys.stderr) or 0\n"
            "sys.exit(cli.main([]))"
        )
        reader, writer = os.pipe()
        os.close(reader)
        try:
            answer = process(
                code=code, env={"PYTHONUNBUFFERED": ""}, capture_output=False, stdout=writer, stderr=writer
            )
        finally:
            os.close(writer)
        assert answer.returncode == 141  # 120 where Python fails to flush at exit

    def test_a_broken_pipe_elsewhere_is_not(self, verb: Callable, capsys: pytest.CaptureFixture[str]) -> None:
        verb("fail", "raise BrokenPipeError('a worker is gone')")
        assert main(["fail"]) == 1
        assert "a worker is gone" in capsys.readouterr().err

    def test_file_names_of_any_bytes_can_be_printed(self, tmp_path: Path) -> None:
        name = os.fsdecode(b"ni\xf1o")
        code = f"from asrkit.cli.common import *; encode_any_name(); print({name!a}); print_json({name!a})"
        answer = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, env={**os.environ, "PYTHONUTF8": "1"}
        )
        plain, quoted = answer.stdout.splitlines()
        assert plain == b"ni\xf1o", answer.stderr
        assert os.fsencode(json.loads(quoted)) == b"ni\xf1o"


class TestOutput:
    def test_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        import numpy as np

        data = {
            "finding": doctor.Finding("a", "ok", "b"),
            1: [np.float32(0.5), np.arange(3), (True, None), float("nan"), np.float64("-inf")],
            "path": Path("x") / "ñ",
            "set": {2, 1},
        }
        print_json(data)
        out = capsys.readouterr().out
        assert json.loads(out) == {
            "finding": {"check": "a", "status": "ok", "found": "b", "fix": ""},
            "1": [0.5, [0, 1, 2], [True, None], None, None],
            "path": os.path.join("x", "ñ"),
            "set": [1, 2],
        }
        assert out.count("\n") == 1
        assert "ñ" in out

    def test_table(self) -> None:
        table = common.format_table(["name", "n"], [["{0}", 5], ["abcdef", 12.5]])
        assert table == "name       n\n{0}        5\nabcdef  12.5"
        assert common.format_table(["a", "b"], []) == "a  b"

    def test_quiet_libraries(self, caplog: pytest.LogCaptureFixture) -> None:
        import logging

        logger = logging.getLogger("speechbrain.utils.quirks")
        before = logging.getLogger("speechbrain").level
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                common.quiet_libraries()
                warnings.warn_explicit("old", FutureWarning, "f.py", 1, module="speechbrain.core")
                warnings.warn_explicit("ours", FutureWarning, "f.py", 1, module="asrkit.audio")
                assert [str(warning.message) for warning in caught] == ["ours"]
            with caplog.at_level(logging.INFO):
                logger.info("noise")
                logger.warning("news")
            assert [record.message for record in caplog.records] == ["news"]
        finally:
            logging.getLogger("speechbrain").setLevel(before)


class TestPlugins:
    def test_all_of_them(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["plugins", "--json"]) == 0
        listed = {(p["kind"], p["name"], p["target"]) for p in json.loads(capsys.readouterr().out)}
        ours = {
            (group.removeprefix("asrkit."), entry.name, entry.value)
            for group in entry_points().groups
            if group.startswith("asrkit.")
            for entry in entry_points(group=group)
        }
        assert {kind for kind, _, _ in ours} == set(registry.KINDS)
        assert listed == ours

    def test_one_kind_as_a_table(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["plugins", "--kind", "decoders", "--long"]) == 0
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert lines[0] == ["name", "kind", "package", "version", "target"]
        assert ["greedy", "decoders", "asrkit", asrkit.__version__, "asrkit.decoders:GreedyDecoder"] in lines
        assert {line[1] for line in lines[1:]} == {"decoders"}

    def test_unknown_kind(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["plugins", "--kind", "encoder"]) == 2
        err = capsys.readouterr().err
        assert "error[unknown_kind]" in err
        assert "did you mean 'encoders'?" in err

    def test_a_name_offered_twice_is_pointed_out(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        twice = [registry.Plugin("rms", "encoders", package, "1", "a:b") for package in ("one", "two")]
        monkeypatch.setattr(registry, "list_plugins", lambda kind=None: twice)
        assert main(["plugins"]) == 0
        assert "'rms' (encoders) is offered by one 1 and two 1" in capsys.readouterr().out

    def test_nothing_installed(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr(registry, "list_plugins", lambda kind=None: [])
        assert main(["plugins", "--kind", "encoders"]) == 0
        assert "no encoders" in capsys.readouterr().out


def broken_versions(monkeypatch: pytest.MonkeyPatch, torch: str, cuda: str | None, torchaudio: str) -> None:
    """Make the doctor read other versions of torch and torchaudio than those that are here."""
    files = {
        "torch": f"from typing import Optional\n__version__ = '{torch}'\ncuda: Optional[str] = {cuda!r}\nhip = None\n",
        "torchaudio": f"__version__ = '{torchaudio}'\ngit_version = 'cuda'\n",
    }
    installed = {"torch": torch.split("+")[0], "torchaudio": torchaudio.split("+")[0]}
    real = doctor.installed_version
    monkeypatch.setattr(doctor, "version_file", files.__getitem__)
    monkeypatch.setattr(doctor, "installed_version", lambda name: installed.get(name) or real(name))


def by_check(findings: list[doctor.Finding]) -> dict[str, doctor.Finding]:
    return {finding.check: finding for finding in findings}


class TestDoctor:
    def test_json_of_this_machine(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(registry, "list_plugins", lambda kind=None: [])  # they have tests of their own
        with warnings.catch_warnings():
            code = main(["doctor", "--json"])
        answer = json.loads(capsys.readouterr().out)
        checks = {line["check"]: line for line in answer["checks"]}
        assert (code, answer["ok"]) == (1, False)
        assert [check for check, line in checks.items() if line["status"] == "FAIL"] == ["plugins"]
        for name in (
            "python",
            "requirements",
            "torch + audio",
            "torch",
            "torchaudio",
            "speechbrain",
            "audio",
            "folder",
        ):
            assert checks[name]["status"] == "ok", checks[name]
        assert {"PyAV", "espeakng-loader", "gpu", "cores", "disk"} <= set(checks)

    def test_exit_code_and_lines(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        found = [doctor.Finding("one", "ok", "fine"), doctor.Finding("two", "warn", "hm", "do it")]
        monkeypatch.setattr(doctor, "examine", lambda: iter(found))
        assert main(["doctor"]) == 0
        assert capsys.readouterr().out == (
            "ok    one              fine\nwarn  two              hm; fix: do it\n1 ok, 1 warn, 0 FAIL\n"
        )
        found.append(doctor.Finding("three", "FAIL", "broken", "repair"))
        assert main(["doctor"]) == 1

    def test_build_of_agrees_with_the_libraries(self) -> None:
        import torch
        import torchaudio

        assert doctor.build_of(doctor.version_file("torch")) == (torch.__version__, torch.version.cuda or "")
        version, cuda = doctor.build_of(doctor.version_file("torchaudio"))
        number = torch.ops._torchaudio.cuda_version()  # 13000 for CUDA 13.0
        assert version == torchaudio.__version__
        assert cuda == (f"{number // 1000}.{number % 1000 // 10}" if number else "")

    @pytest.mark.parametrize(
        ("text", "build"),
        [
            ("__version__ = '2.15.0+cu132'\ncuda: Optional[str] = '13.2'", ("2.15.0+cu132", "13.2")),
            ("__version__ = '2.7.1+cu118'", ("2.7.1+cu118", "11.8")),
            ("__version__ = '2.11.0+cpu'\ncuda: Optional[str] = None", ("2.11.0+cpu", "")),
            ("__version__ = '2.11.0+cpu'", ("2.11.0+cpu", "")),
            ("__version__ = '2.11.0'", ("2.11.0", None)),
            ("", ("?", None)),
        ],
    )
    def test_build_of(self, text: str, build: tuple[str, str | None]) -> None:
        assert doctor.build_of(text) == build

    def test_versions_are_read_without_importing(self) -> None:
        code = (
            "import sys; from asrkit.cli.doctor import check_versions; print(*check_versions(), sep='\\n'); "
            "print({'torch', 'torchaudio', 'speechbrain'} & set(sys.modules))"
        )
        answer = process(code=code)
        assert answer.stdout.endswith("\nset()\n"), answer.stdout + answer.stderr
        assert "torch + audio" in answer.stdout

    def test_cuda_versions_that_differ(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        broken_versions(monkeypatch, "2.15.0+cu132", "13.2", "2.11.0+cu130")
        findings = by_check(list(doctor.check_versions()))
        assert findings["torch + audio"].status == "FAIL"
        assert "torch 2.15.0+cu132 (CUDA 13.2)" in findings["torch + audio"].found
        assert "torchaudio 2.11.0+cu130 (CUDA 13.0)" in findings["torch + audio"].found
        assert findings["torch"].status == "warn"  # 2.15 is beyond what asrkit is made for
        for check in ("torch + audio", "torch"):
            fix = findings[check].fix
            assert fix.startswith("pip install 'torch")
            assert "<2.15" in fix
            assert ">=2.11" in fix

    @pytest.mark.parametrize(
        ("torch", "cuda", "torchaudio"),
        [("2.14.1+cpu", None, "2.11.0+cu130"), ("2.14.1+cu130", "13.0", "2.11.0+cpu"), ("2.14.1", None, "2.11.0")],
    )
    def test_builds_that_do_not_clash(
        self, torch: str, cuda: str | None, torchaudio: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        broken_versions(monkeypatch, torch, cuda, torchaudio)
        findings = by_check(list(doctor.check_versions()))
        assert findings["torch + audio"].status == "ok"
        assert "torch" not in findings

    def test_a_clash_is_found_before_torchaudio_speaks(self, tmp_path: Path) -> None:
        for package, text in {"torch": "'2.15.0+cu132'\ncuda = '13.2'", "torchaudio": "'2.11.0+cu130'"}.items():
            (tmp_path / package).mkdir()
            (tmp_path / package / "__init__.py").write_text("raise RuntimeError('different CUDA versions')")
            (tmp_path / package / "version.py").write_text(f"__version__ = {text}\n")
        answer = process("doctor", env={"PYTHONPATH": str(tmp_path)})
        assert answer.returncode == 1, answer.stderr
        (line,) = [line for line in answer.stdout.splitlines() if line.startswith("FAIL  torch + audio")]
        assert "fix: pip install 'torch" in line
        assert answer.stdout.count("not tried") == 2
        assert "disk" in answer.stdout  # the checks after it still ran
        assert answer.stderr == ""

    def test_a_missing_requirement(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = doctor.installed_version
        monkeypatch.setattr(doctor, "installed_version", lambda name: None if name == "kaldialign" else real(name))
        finding = by_check(list(doctor.check_versions()))["kaldialign"]
        assert (finding.status, finding.found) == ("FAIL", "not installed")
        assert finding.fix.startswith("pip install 'kaldialign")

    def test_asrkit_itself_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(name: str) -> None:
            raise PackageNotFoundError(name)

        monkeypatch.setattr(doctor.metadata, "distribution", missing)
        (finding,) = doctor.check_versions()
        assert (finding.check, finding.status) == ("asrkit", "FAIL")
        assert "pip install" in finding.fix

    def test_a_library_that_does_not_import(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = importlib.import_module

        def refuse(name: str) -> object:
            if name == "torchaudio":
                raise OSError("libcudart.so.13: cannot open")
            return real(name)

        monkeypatch.setattr(doctor.importlib, "import_module", refuse)
        findings = list(doctor.check_imports())
        assert [(finding.check, finding.status) for finding in findings] == [("torch", "ok"), ("torchaudio", "FAIL")]
        assert "libcudart.so.13" in findings[1].found
        assert "pip install" in findings[1].fix

    def test_audio_formats_that_are_missing_or_wrong(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import soundfile

        write = soundfile.write

        def old_library(file: object, data: object, rate: int, **options: str) -> None:
            if options["format"] == "MP3":
                raise soundfile.LibsndfileError(1, "unknown format")
            if options.get("subtype") == "OPUS":
                data = data * 0 + 0.1  # written without complaint, but no tone
            write(file, data, rate, **options)

        monkeypatch.setattr(soundfile, "write", old_library)
        findings = by_check(list(doctor.check_audio()))
        assert {check: finding.status for check, finding in findings.items()} == {
            "audio": "ok",
            "audio mp3": "FAIL",
            "audio opus": "warn",
        }
        assert findings["audio"].found.startswith("wav, flac, ogg (")
        assert "soundfile" in findings["audio mp3"].fix

    @pytest.mark.parametrize(("here", "status"), [(None, "warn"), ("9.9", "ok")])
    def test_extras(self, here: str | None, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor, "installed_version", lambda name: here)
        findings = by_check(list(doctor.check_extras()))
        assert {check: finding.status for check, finding in findings.items()} == dict.fromkeys(
            ["PyAV", "espeakng-loader", "onnxruntime"], status
        )
        if here is None:
            assert findings["PyAV"].fix == "pip install 'asrkit[audio]'"
            assert findings["espeakng-loader"].fix == "pip install 'asrkit[synth]'"

    def test_no_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import torch

        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
        (finding,) = doctor.check_gpu()
        assert (finding.status, finding.found) == ("ok", "none: CPU training works, scale with --width")

    def test_a_gpu_that_torch_cannot_use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import torch

        def old_driver() -> bool:
            warnings.warn("The NVIDIA driver on your system is too old", stacklevel=1)
            return False

        monkeypatch.setattr(torch.cuda, "is_available", old_driver)
        (finding,) = doctor.check_gpu()
        assert finding.status == "warn"
        assert "driver on your system is too old" in finding.found

    def test_a_gpu_that_cannot_compute(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import torch

        def refuse(*shape: int, device: str) -> None:
            raise RuntimeError("no kernel image\nis available")

        monkeypatch.setattr(
            torch,
            "cuda",
            SimpleNamespace(is_available=lambda: True, device_count=lambda: 1, get_device_name=lambda index: "Old GPU"),
        )
        monkeypatch.setattr(torch, "ones", refuse)
        (finding,) = doctor.check_gpu()
        assert (finding.status, finding.found) == ("FAIL", "Old GPU cannot compute: no kernel image is available")

    def test_more_threads_than_cores(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import torch

        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
        (finding,) = doctor.check_cores()
        assert (finding.status, finding.fix) == ("warn", "export OMP_NUM_THREADS=2")

    @pytest.mark.parametrize(("free", "status"), [(1 << 20, "FAIL"), (1 << 30, "warn"), (1 << 40, "ok")])
    def test_disk(self, free: int, status: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
        folder, disk = doctor.check_folder()
        assert (folder.status, disk.status) == ("ok", status)
        assert bool(disk.fix) == (status != "ok")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.skipif(os.name == "nt", reason="a folder in use cannot be removed there")
    def test_a_folder_that_is_gone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = tmp_path / "gone"
        folder.mkdir()
        monkeypatch.chdir(folder)
        folder.rmdir()
        (finding,) = doctor.check_folder()
        assert (finding.check, finding.status) == ("folder", "FAIL")

    def test_every_broken_plugin_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def entry(name: str, value: str) -> SimpleNamespace:
            def load() -> type:
                if value == "missing":
                    raise ModuleNotFoundError("No module named 'gone'")
                return type(name, (), {"asrkit_api": registry.API if value == "good" else 99})

            return SimpleNamespace(name=name, value=value, dist=SimpleNamespace(name="guest", version="3"), load=load)

        offered = [entry("a", "good"), entry("b", "missing"), entry("c", "newer")]
        monkeypatch.setattr(registry, "entry_points", lambda group: offered if group == "asrkit.encoders" else [])
        *broken, summary = doctor.check_plugins()
        assert [finding.status for finding in broken] == ["FAIL", "FAIL"]
        assert "'b'" in broken[0].found
        assert "No module named 'gone'" in broken[0].found
        assert "uninstall guest" in broken[0].fix
        assert "'c'" in broken[1].found
        assert "asrkit_api = 99" in broken[1].found
        assert summary.found == "1 of 3 names load (guest 3)"

    def test_a_check_that_fails_itself_hides_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = builtins.__import__

        def no_soundfile(name: str, *rest: object) -> object:
            if name == "soundfile":
                raise ImportError("libsndfile is gone")
            return real(name, *rest)

        monkeypatch.setattr(builtins, "__import__", no_soundfile)
        (finding,) = doctor._guarded(doctor.check_audio)
        assert (finding.check, finding.status) == ("audio", "FAIL")
        assert "libsndfile is gone" in finding.found

    def test_it_needs_no_arguments_beyond_its_own(self) -> None:
        parser = common.Parser(prog="asrkit")
        doctor.add_parser(parser.add_subparsers())
        args = parser.parse_args(["doctor"])
        assert isinstance(args, argparse.Namespace)
        assert args.run is doctor.run
