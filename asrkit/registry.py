"""Names and what they stand for: built-ins and guests come through the same entry points.

Listing reads package metadata only and imports nothing; loading imports one module and checks its
`asrkit_api` before anything is built. A notebook or a student's file registers with a decorator instead.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from asrkit.errors import AsrkitError, RecipeError, nearest

API = 1
KINDS = ("audio", "corpora", "text", "tokenizers", "features", "encoders", "decoders")


@dataclass(frozen=True)
class Plugin:
    """One registered name: its kind, the distribution that offers it, and where the class lives."""

    name: str
    kind: str
    package: str
    version: str
    target: str


_registered: dict[tuple[str, str], type] = {}


def _entries(kind: str) -> list[tuple[Plugin, EntryPoint]]:
    found = []
    seen = set()
    for entry in entry_points(group=f"asrkit.{kind}"):
        package = entry.dist.name if entry.dist else "?"
        key = (entry.name, package, entry.value)
        if key in seen:  # the same distribution can lie on sys.path twice (editable installs)
            continue
        seen.add(key)
        version = entry.dist.version if entry.dist else "?"
        found.append((Plugin(entry.name, kind, package, version, entry.value), entry))
    return found


def list_plugins(kind: str | None = None) -> list[Plugin]:
    """All names of one kind (or of all kinds), sorted; nothing is imported."""
    kinds = KINDS if kind is None else (kind,)
    plugins = [plugin for k in kinds for plugin, _ in _entries(k)]
    for (k, name), cls in _registered.items():
        if k in kinds:
            plugins.append(Plugin(name, k, "(this process)", "-", f"{cls.__module__}:{cls.__qualname__}"))
    return sorted(plugins, key=lambda plugin: (KINDS.index(plugin.kind), plugin.name))


def describe(kind: str, name: str) -> Plugin:
    """The one plugin of that name, or an error that lists the names and the nearest."""
    plugins = list_plugins(kind)
    matches = [plugin for plugin in plugins if plugin.name == name]
    singular = (
        kind.rstrip("s") if kind not in ("features", "corpora") else {"features": "feature", "corpora": "corpus"}[kind]
    )
    if not matches:
        raise RecipeError(
            f"unknown {singular} {name!r}",
            possible=nearest(str(name), {plugin.name for plugin in plugins}),
            fix="take one of these, or install the package that offers it (`asrkit plugins` lists what is installed)",
            reason=f"unknown_{singular}",
        )
    if len(matches) > 1:
        offers = " and ".join(f"{plugin.package} {plugin.version}" for plugin in matches)
        raise RecipeError(
            f"{singular} {name!r} is offered twice, by {offers}", fix="uninstall one of them", reason="duplicate_plugin"
        )
    return matches[0]


def load(kind: str, name: str) -> Any:
    """Import the class registered as `name` and check that it speaks this API."""
    plugin = describe(kind, name)
    if (kind, name) in _registered:
        return _registered[kind, name]
    entry = next(entry for offered, entry in _entries(kind) if offered == plugin)
    try:
        cls = entry.load()
    except Exception as error:
        raise RecipeError(
            f"{plugin.package} {plugin.version} offers {name!r} but {plugin.target} does not load "
            f"({type(error).__name__}: {error})",
            fix=f"repair or uninstall {plugin.package}; all other plugins still work",
            reason="broken_plugin",
        ) from error
    _check_api(cls, f"{plugin.package} {plugin.version}: {name!r}")
    return cls


def _check_api(cls: Any, who: str) -> None:
    api = getattr(cls, "asrkit_api", None)
    if api == API:
        return
    side = "the plugin" if not isinstance(api, int) or api < API else "asrkit"
    raise RecipeError(
        f"{who} declares asrkit_api = {api!r}, this asrkit speaks {API}",
        fix=f"{side} is the older side: upgrade it",
        reason="plugin_api",
    )


def register(kind: str, name: str) -> Callable[[type], type]:
    """Class decorator for notebooks and `--plugin file.py`: registers for this process only."""
    if kind not in KINDS:
        raise RecipeError(f"unknown kind of plugin {kind!r}", possible=nearest(kind, KINDS))

    def decorate(cls: type) -> type:
        _check_api(cls, f"{cls.__module__}.{cls.__qualname__}")
        taken = [plugin for plugin in list_plugins(kind) if plugin.name == name]
        ours = _registered.get((kind, name))
        redefined = ours is not None and ours.__qualname__ == cls.__qualname__  # a notebook cell run again
        if taken and not redefined:
            raise RecipeError(
                f"{name!r} is already offered by {taken[0].package}",
                fix="choose another name",
                reason="duplicate_plugin",
            )
        _registered[kind, name] = cls
        return cls

    return decorate


def register_encoder(name: str) -> Callable[[type], type]:
    """`@asrkit.register_encoder("my_norm")` above an Encoder class."""
    return register("encoders", name)


def load_plugin_file(path: str | Path) -> None:
    """Run a Python file given by `--plugin file.py`; its decorators register what it defines.

    Raises RecipeError (`plugin_file`) with file and line for a file that does not run; it then registers nothing.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"--plugin {path}: no such file", fix="give the path of a Python file", reason="plugin_file")
    name = f"asrkit_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RecipeError(f"--plugin {path}: not a Python file", fix="give a .py file", reason="plugin_file")
    module = importlib.util.module_from_spec(spec)
    before = dict(_registered)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        _registered.clear()  # half a file must leave no names behind
        _registered.update(before)
        if isinstance(error, AsrkitError) or not isinstance(error, Exception | SystemExit):
            raise  # says what to do already; or it is the user, pressing Ctrl-C
        raise RecipeError(
            f"--plugin {_place(path, error)}: {type(error).__name__}: {error}",
            fix="mend the file; with --debug you see the whole traceback",
            reason="plugin_file",
        ) from error


def _place(path: Path, error: BaseException) -> str:
    """`file:line` of the plugin's own line that was running (or could not be read) when the error came up."""
    here, frames = path.resolve(), traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == here]
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).resolve() == here:
        lines.append(error.lineno)
    return f"{path}:{lines[-1]}" if lines else str(path)
