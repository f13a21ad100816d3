"""Names and what they stand for: built-ins and guests come through the same entry points.

Listing reads package metadata only and imports nothing; loading imports one module and checks its
`asrkit_api` before anything is built. A notebook or a student's file registers with a decorator instead.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import Distribution, EntryPoint, MetadataPathFinder, distributions, entry_points
from pathlib import Path
from typing import Any

from asrkit.errors import AsrkitError, RecipeError, nearest

API = 1
KINDS = ("audio", "corpora", "text", "tokenizers", "features", "encoders", "decoders")
YOUNG = 2_000_000_000  # nanoseconds: the coarsest clock of a disk ticks every two seconds

Ask = Callable[..., Iterable[EntryPoint]]


@dataclass(frozen=True)
class Plugin:
    """One registered name: its kind, the distribution that offers it, and where the class lives."""

    name: str
    kind: str
    package: str
    version: str
    target: str


_registered: dict[tuple[str, str], type] = {}
_silent: list[str] = []  # plugin files that registered nothing


def _entries(kind: str) -> tuple[tuple[Plugin, EntryPoint], ...]:
    """Plugins of one kind with their entry points; packages are read again only when one has come or gone."""
    return _read(kind, entry_points, tuple(_metadata(folder) for folder in sys.path))


def _metadata(folder: str) -> tuple[object, ...]:
    """Changes when a package in this folder of `sys.path` comes or goes; nothing is read. Two changes may fall into one
    tick of the disk's clock, so a folder that has just changed is listed too."""
    try:
        state = os.stat(folder or ".")
        found: list[object] = [folder, state.st_dev, state.st_ino, state.st_mtime_ns]
        if abs(time.time_ns() - state.st_mtime_ns) < YOUNG and not os.path.isfile(folder):
            for name in sorted(os.listdir(folder or ".")):
                if name.lower().endswith(("dist-info", "egg-info")):
                    found.append(name)
                    with contextlib.suppress(OSError):  # many packages offer nothing
                        offers = os.stat(os.path.join(folder, name, "entry_points.txt"))
                        found += [offers.st_ino, offers.st_mtime_ns, offers.st_size]
        return tuple(found)
    except (OSError, ValueError, TypeError):  # nothing that could be installed there
        return (folder,)


@lru_cache(maxsize=64)
def _read(kind: str, ask: Ask, installed: tuple[object, ...]) -> tuple[tuple[Plugin, EntryPoint], ...]:
    importlib.invalidate_caches()  # a package that has just come is not yet in importlib's own lists of folders
    MetadataPathFinder().invalidate_caches()  # nor in these, which Python 3.11 leaves out
    found = []
    seen = set()
    for entry in _entry_points(f"asrkit.{kind}", ask):
        package, version = _identity(entry.dist)
        key = (entry.name, package, entry.value)
        if key in seen:  # the same distribution can lie on sys.path twice (editable installs)
            continue
        seen.add(key)
        found.append((Plugin(entry.name, kind, package, version, entry.value), entry))
    return tuple(found)


def _entry_points(group: str, ask: Ask) -> list[EntryPoint]:
    try:
        return list(ask(group=group))
    except Exception:  # one package whose list of entry points cannot be read must not hide those of all others
        readable, _ = _one_by_one()
        return [entry for entry in readable if entry.group == group]


def unreadable_packages() -> dict[str, str]:
    """Installed packages whose entry points cannot be read, and why; asrkit goes on without what they offer."""
    _, unreadable = _one_by_one()
    return unreadable


def _one_by_one() -> tuple[list[EntryPoint], dict[str, str]]:
    readable: dict[str, list[EntryPoint]] = {}
    unreadable: dict[str, str] = {}
    for dist in distributions():
        name, _ = _identity(dist)
        if name in readable or name in unreadable:
            continue  # the first on the path counts, as for the import of its modules
        try:
            readable[name] = list(dist.entry_points)
        except Exception as error:
            unreadable[name] = f"{type(error).__name__}: {error}"
    return [entry for entries in readable.values() for entry in entries], unreadable


def _identity(dist: Distribution | None) -> tuple[str, str]:
    """Name and version, `?` where the metadata are damaged."""
    try:
        return (dist.name or "?", dist.version or "?") if dist is not None else ("?", "?")
    except Exception:
        return "?", "?"


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
            fix=_where_from(kind, name),
            reason=f"unknown_{singular}",
        )
    if len(matches) > 1:
        offers = " and ".join(f"{plugin.package} {plugin.version}" for plugin in matches)
        raise RecipeError(
            f"{singular} {name!r} is offered twice, by {offers}", fix="uninstall one of them", reason="duplicate_plugin"
        )
    return matches[0]


def _where_from(kind: str, name: str) -> str:
    """What to do about an unknown name."""
    if _silent:
        above = f'@asrkit.register_encoder("{name}")' if kind == "encoders" else f'register("{kind}", "{name}")'
        return (
            f"{_silent[-1]} registers nothing: put {above} above its class, or install its package (pip install -e its "
            "folder)"
        )
    return (
        "take one of these, install the package that offers it (`asrkit plugins` lists what is installed), or give its "
        "file with --plugin FILE.py"
    )


def load(kind: str, name: str) -> Any:
    """Import the class registered as `name` and check that it speaks this API."""
    plugin = describe(kind, name)
    if (kind, name) in _registered:
        return _registered[kind, name]
    entry = next(entry for offered, entry in _entries(kind) if offered == plugin)
    try:
        cls = entry.load()
    except (Exception, SystemExit) as error:
        raise RecipeError(
            f"{plugin.package} {plugin.version} offers {name!r} but {plugin.target} does not load "
            f"({type(error).__name__}: {error})",
            fix=f"repair or uninstall {plugin.package}; all other plugins still work",
            reason="broken_plugin",
        ) from error
    _check_api(cls, f"{plugin.package} {plugin.version}: {name!r}")
    return cls


def loadable(kind: str) -> dict[str, Any]:
    """Name -> class of all plugins of a kind that load. Broken ones are left out: `asrkit doctor` names them."""
    found = {}
    for name in dict.fromkeys(plugin.name for plugin in list_plugins(kind)):
        with contextlib.suppress(RecipeError):
            found[name] = load(kind, name)
    return found


def guest_line(error: BaseException) -> str | None:
    """`my_norm.py:23, in forward`: the innermost line of a guest's code on the way to an error, if there is one."""
    guests = {p.target.partition(":")[0].partition(".")[0] for p in list_plugins() if p.package != "asrkit"}
    found = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        if str(frame.f_globals.get("__name__")).partition(".")[0] in guests:
            found = f"{Path(frame.f_code.co_filename).name}:{line}, in {frame.f_code.co_name}"
    return found


def _check_api(cls: Any, who: str) -> None:
    api = getattr(cls, "asrkit_api", None)
    if api == API and not isinstance(api, bool):
        return
    given = "declares no asrkit_api" if api is None else f"declares asrkit_api = {api!r}"
    if not isinstance(cls, type):
        given = f"is a {type(cls).__name__}, no class, and {given}"
    if isinstance(api, int) and not isinstance(api, bool):
        fix = f"{'the plugin' if api < API else 'asrkit'} is the older side: upgrade it"
    else:
        fix = f"the plugin is to derive from asrkit.StackEncoder or a like class, or to say asrkit_api = {API} itself"
    raise RecipeError(f"{who} {given}, this asrkit speaks {API}", fix=fix, reason="plugin_api")


def register(kind: str, name: str) -> Callable[[type], type]:
    """Class decorator for notebooks and `--plugin file.py`: registers for this process only."""
    if kind not in KINDS:
        raise RecipeError(f"unknown kind of plugin {kind!r}", possible=nearest(kind, KINDS))

    def decorate(cls: type) -> type:
        _check_api(cls, f"{cls.__module__}.{cls.__qualname__}")
        taken = [plugin for plugin in list_plugins(kind) if plugin.name == name]
        ours = _registered.get((kind, name))
        names = [(found.__module__, found.__qualname__) for found in (ours, cls) if found is not None]
        redefined = len(names) == 2 and names[0] == names[1]  # a notebook cell run again
        if taken and not redefined:
            owner = taken[0].package if ours is None else f"{ours.__module__}.{ours.__qualname__} in this process"
            raise RecipeError(
                f"{name!r} is already offered by {owner}",
                fix="choose another name" + (", or keep the class's own where it is defined again" if ours else ""),
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
    if _registered == before:
        _silent.append(str(path))


def _place(path: Path, error: BaseException) -> str:
    """`file:line` of the plugin's own line that was running (or could not be read) when the error came up."""
    here, frames = path.resolve(), traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == here]
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).resolve() == here:
        lines.append(error.lineno)
    return f"{path}:{lines[-1]}" if lines else str(path)
