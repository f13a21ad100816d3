"""Run command lines with an audit hook on, and print what they did: started by test_audit.py in a process of its own.

Standard input has JSON: {"watch": [folders], "steps": [{"words": [...]} or {"write": {path: text}}, ...]}, where texts
are bytes as Latin-1. Printed is one JSON object: exit codes, and every event that SECURITY.md makes promises about.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import traceback
from typing import Any

PROCESSES = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "subprocess.Popen", "pty.spawn")
NETWORK = ("socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request")

events: list[list[str]] = []
opened: set[str] = set()
watched: list[str] = []
active = False
watching = False


def inside(path: object) -> bool:
    """Whether a path, given as text or bytes, lies in a watched folder."""
    if not isinstance(path, str | bytes) or os.fsdecode(path).startswith("<"):  # <string> is no file
        return False
    full = os.path.realpath(os.fsdecode(path))
    return any(full.startswith(folder + os.sep) for folder in watched)


def where() -> str:
    """The innermost lines that led here, for the message of a failing test."""
    frames = traceback.extract_stack()[:-2][-6:]
    return " <- ".join(f"{os.path.basename(frame.filename)}:{frame.lineno}" for frame in reversed(frames))


def hook(event: str, args: tuple[Any, ...]) -> None:
    """Record; never raise."""
    if not active:
        return
    if event == "pickle.find_class" or event in PROCESSES or event in NETWORK:
        events.append([event, f"{args!r}"[:200] + where()])
    elif event == "import" and len(args) > 1 and inside(args[1]):
        events.append([event, str(args[1])])
    elif event == "exec" and inside(getattr(args[0], "co_filename", "")):
        events.append([event, args[0].co_filename])
    elif (event == "ctypes.dlopen" and "/" in str(args[0]) and inside(args[0])) or (
        event == "compile" and inside(args[1])
    ):
        events.append([event, repr(args)[:200]])
    elif event == "open" and inside(args[0]):
        opened.add(os.path.basename(os.fsdecode(args[0])))


def watch_unpickling() -> None:
    """Also see unpickling that names no class, which raises no audit event."""
    global watching
    if watching:
        return
    watching = True
    import pickle

    import torch

    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        original = getattr(module, name)

        def record(*args: Any, _name: str = f"{module.__name__}.{name}", _original: Any = original, **kw: Any) -> Any:
            if active:
                events.append([_name, ""])
            return _original(*args, **kw)

        if not isinstance(original, type):
            setattr(module, name, record)


def main() -> None:
    """Run the commands, one after another in this process."""
    global active
    job = json.load(sys.stdin)
    watched.extend(os.path.realpath(folder) for folder in job["watch"])
    sys.addaudithook(hook)
    from asrkit.cli import main as asrkit

    if job.get("self_test"):
        self_test(job["self_test"])
    codes, errors = [], []
    for step in job["steps"]:
        for path, text in step.get("write", {}).items():
            with open(path, "wb") as file:
                file.write(text.encode("latin-1"))
        if "words" in step:
            watch_unpickling()
            out, err = io.StringIO(), io.StringIO()
            active = True
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                codes.append(asrkit(step["words"]))
            active = False
            errors.append(err.getvalue()[-500:])
    print(json.dumps({"codes": codes, "errors": errors, "events": events, "opened": sorted(opened)}))


def self_test(folder: str) -> None:
    """Do each forbidden thing once, harmlessly: a watch that sees nothing must not pass for a clean run."""
    global active
    active = True
    import pickle
    import subprocess
    from importlib.util import module_from_spec, spec_from_file_location

    pickle.loads(pickle.dumps(os.getcwd))
    os.system("true")
    subprocess.run(["true"], check=True)
    spec = spec_from_file_location("planted", os.path.join(folder, "planted.py"))
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(module_from_spec(spec))
    active = False


if __name__ == "__main__":
    main()
