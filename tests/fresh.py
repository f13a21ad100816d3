"""A fresh environment that sees the packages of this one, and commands in it; nothing is fetched from anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

# Used only by commands that a test starts: an index and a build environment would need a network.
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}  # 0: no isolation


class FreshEnvironment:
    """A new virtual environment in `folder`; `asrkit`, `pip` and `pytest` in it are found first on PATH."""

    def __init__(self, folder: Path) -> None:
        venv.EnvBuilder(with_pip=False, symlinks=os.name != "nt").create(folder)
        scripts = {"base": str(folder), "platbase": str(folder)}
        self.bin = Path(sysconfig.get_path("scripts", "venv", scripts))
        self.python = self.bin / Path(sys.executable).name
        self.site = Path(sysconfig.get_path("purelib", "venv", scripts))
        here = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
        lines = [f"import site; site.addsitedir({folder!r})\n" for folder in here]  # reads the .pth files there too
        (self.site / "those_of_the_tests.pth").write_text("".join(lines), encoding="utf-8")
        for name in ("asrkit", "pip", "pytest"):
            script = self.bin / name
            script.write_text(f'#!/bin/sh\nexec "{self.python}" -m {name} "$@"\n', encoding="utf-8")
            script.chmod(0o755)
        path = os.pathsep.join([str(self.bin), os.environ.get("PATH", "")])
        self.variables = {**os.environ, **OFFLINE, "PATH": path, "OMP_NUM_THREADS": "1"}

    def run(self, *words: str, folder: Path, fails: bool = False) -> str:
        """What a command prints. Fails the test with all of it if the command fails (with `fails`: if it does not)."""
        done = subprocess.run(words, cwd=folder, env=self.variables, capture_output=True, text=True, check=False)
        text = f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert (done.returncode != 0) == fails, text
        return done.stdout
