"""`asrkit doctor`: what of this installation and this machine works, what does not, and what to do about it.

Each check looks at one thing and never stops the others. Versions are compared as text before torchaudio is
imported: torch and torchaudio built for different CUDA versions make that import fail with a message that names no
way out.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import io
import math
import os
import platform
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from asrkit import registry
from asrkit.cli.common import one_line, print_json, quiet_libraries
from asrkit.errors import AsrkitError

HELP = "check this installation and this machine; says what to do about what it finds"
OK, WARN, FAIL = "ok", "warn", "FAIL"
GIB = 1 << 30
LOW_DISK, NO_DISK = 5 * GIB, GIB // 4  # a full-size run keeps some checkpoints of 0.5 GB; below the last not even one
TONE_RATE, TONE_HZ, TONE_SECONDS = 48_000, 440.0, 0.5  # 48 kHz: the one rate that all five formats know


@dataclass(frozen=True)
class Finding:
    """One line of the answer: what was looked at, `ok`, `warn` or `FAIL`, what was found, and what to do about it."""

    check: str
    status: str
    found: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.status:<4}  {self.check:<15}  {self.found}" + (f"; fix: {self.fix}" if self.fix else "")


def add_parser(subparsers: Any) -> None:
    """Add `doctor` to the command line."""
    parser = subparsers.add_parser(
        "doctor",
        help=HELP,
        description="Checks Python, the libraries and their versions, audio formats, plugins, GPU, cores, disk. "
        "Exit code 0 if nothing is marked FAIL, else 1.",
    )
    parser.add_argument("--json", action="store_true", help='{"ok": ..., "checks": [{check, status, found, fix}, ...]}')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the findings, each as soon as it is known; 1 if one of them is FAIL."""
    quiet_libraries()
    findings = []
    for finding in examine():
        findings.append(finding)
        if not args.json:
            print(finding, flush=True)
    counts = {status: sum(finding.status == status for finding in findings) for status in (OK, WARN, FAIL)}
    if args.json:
        print_json({"ok": not counts[FAIL], "checks": findings})
    else:
        print(", ".join(f"{count} {status}" for status, count in counts.items()))
    return 1 if counts[FAIL] else 0


def examine() -> Iterator[Finding]:
    """All findings, in the order in which one would repair them."""
    versions = list(_guarded(check_versions))
    yield from versions
    broken = any(finding.check == "torch + audio" and finding.status == FAIL for finding in versions)
    checks = [check_imports, check_audio, check_extras, check_gpu, check_cores, check_folder, check_plugins]
    for check in checks:
        if broken and check in (check_imports, check_plugins):
            name = "imports" if check is check_imports else "plugins"
            yield Finding(name, WARN, "not tried", "repair torch and torchaudio first (above)")
            continue
        yield from _guarded(check)


def _guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except Exception as error:  # one broken thing must not hide the others
        name = check.__name__.removeprefix("check_")
        yield Finding(name, FAIL, f"{type(error).__name__}: {one_line(error)}", "reinstall what this names")


def check_versions() -> Iterator[Finding]:
    """Python, asrkit's requirements, and the CUDA versions of torch and torchaudio; imports neither of them."""
    from packaging.requirements import Requirement

    try:
        asrkit = metadata.distribution("asrkit")
    except metadata.PackageNotFoundError:
        yield Finding("asrkit", FAIL, "not installed, only its files are here", "pip install -e . (in asrkit's folder)")
        return
    python, wanted = platform.python_version(), asrkit.metadata["Requires-Python"] or ""
    fits = Requirement(f"python{wanted}").specifier.contains(python, prereleases=True)
    yield Finding("python", OK if fits else FAIL, f"{python} ({wanted})", "" if fits else f"install Python {wanted}")
    requirements = [Requirement(text) for text in asrkit.requires or []]
    needed = {need.name: need for need in requirements if need.marker is None or need.marker.evaluate()}
    found = {name: installed_version(name) for name in needed}
    for name, version in found.items():
        install = f"pip install '{needed[name]}'"
        if version is None:
            yield Finding(name, FAIL, "not installed", install)
        elif not needed[name].specifier.contains(version, prereleases=True):
            yield Finding(name, WARN, f"{version}, asrkit is made for {needed[name].specifier}", install)
    present = sum(version is not None for version in found.values())
    yield Finding(
        "requirements", OK, f"asrkit {asrkit.version}: {present} of {len(found)} required packages are installed"
    )
    if found.get("torch") and found.get("torchaudio"):
        yield compare_cuda(f"pip install '{needed['torch']}' '{needed['torchaudio']}'")


def installed_version(name: str) -> str | None:
    """The version of an installed package from its metadata, None where there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def version_file(package: str) -> str:
    """The text of `<package>/version.py`, found without importing the package; empty if there is none."""
    spec = importlib.util.find_spec(package)
    file = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    return file.read_text(encoding="utf-8") if file and file.is_file() else ""


def build_of(version_text: str) -> tuple[str, str | None]:
    """(version, CUDA version it was built with) from the text of a version.py: `("2.11.0+cu130", "13.0")`.

    The CUDA version is "" for a build without CUDA and None where the file does not say.
    """
    version = re.search(r"^__version__\b[^=]*=\s*['\"]([^'\"]+)", version_text, re.MULTILINE)
    name = version[1] if version else "?"
    cuda = re.search(r"^cuda\b[^=]*=\s*(?:['\"]([\d.]+)['\"]|None)", version_text, re.MULTILINE)
    if cuda:
        return name, ".".join((cuda[1] or "").split(".")[:2])
    label = re.search(r"\+cu(\d+)(\d)\b", name)
    if label:
        return name, f"{label[1]}.{label[2]}"
    return name, "" if re.search(r"\+(cpu|rocm|xpu)", name) else None


def compare_cuda(install: str) -> Finding:
    """Whether torchaudio will accept this torch; it refuses to be imported when the CUDA versions differ."""
    said, cuda = [], []
    for package in ("torch", "torchaudio"):
        version, built = build_of(version_file(package))
        said.append(
            f"{package} {version} ({'CUDA ' + built if built else 'no CUDA' if built == '' else 'CUDA not stated'})"
        )
        cuda.append(built)
    found = " and ".join(said)
    if all(cuda) and cuda[0] != cuda[1]:
        return Finding("torch + audio", FAIL, f"{found}: torchaudio cannot be imported beside this torch", install)
    return Finding("torch + audio", OK, found)


def check_imports() -> Iterator[Finding]:
    """The libraries that are most often broken, really imported; each failure is a line of its own."""
    for package in ("torch", "torchaudio", "speechbrain"):
        start = time.perf_counter()
        try:
            importlib.import_module(package)
        except Exception as error:
            fix = f"pip install --force-reinstall '{package}=={installed_version(package) or '*'}'"
            yield Finding(package, FAIL, f"cannot be imported: {type(error).__name__}: {one_line(error)}", fix)
            return  # the ones that follow import it
        took = time.perf_counter() - start
        yield Finding(package, OK, f"{installed_version(package) or '?'}, imported in {took:.1f} s")


def check_audio() -> Iterator[Finding]:
    """The formats that libsndfile really writes and reads here: a tone goes through each of them in memory."""
    import soundfile

    formats = {
        "wav": {"format": "WAV", "subtype": "PCM_16"},
        "flac": {"format": "FLAC"},
        "mp3": {"format": "MP3"},
        "ogg": {"format": "OGG", "subtype": "VORBIS"},
        "opus": {"format": "OGG", "subtype": "OPUS"},
    }
    good, bad = [], {}
    for name, options in formats.items():
        problem = try_format(options)
        if problem:
            bad[name] = problem
        else:
            good.append(name)
    library = f"soundfile {soundfile.__version__}, libsndfile {soundfile.__libsndfile_version__}"
    if good:
        yield Finding("audio", OK, f"{', '.join(good)} ({library})")
    fix = "pip install --force-reinstall soundfile: its wheel brings a libsndfile that knows all five"
    for name, problem in bad.items():
        needed = name in ("wav", "flac", "mp3")  # Common Voice is mp3; asrkit writes wav and flac
        yield Finding(f"audio {name}", FAIL if needed else WARN, f"{problem} ({library})", fix)


def try_format(options: dict[str, Any]) -> str:
    """Write and read a tone; empty if it comes back, else what went wrong."""
    import numpy as np
    import soundfile

    tone = 0.5 * np.sin(2 * math.pi * TONE_HZ / TONE_RATE * np.arange(int(TONE_RATE * TONE_SECONDS)))
    try:
        buffer = io.BytesIO()
        soundfile.write(buffer, tone, TONE_RATE, **options)
        buffer.seek(0)
        samples, rate = soundfile.read(buffer)
    except Exception as error:
        return f"not supported: {one_line(error)}"
    spectrum = np.abs(np.fft.rfft(samples))
    heard = spectrum.argmax() * rate / max(1, len(samples)) if len(samples) else 0.0
    if rate != TONE_RATE or abs(len(samples) - len(tone)) > TONE_RATE * 0.1 or abs(heard - TONE_HZ) > 10:
        return f"a tone of {TONE_HZ:.0f} Hz, {TONE_SECONDS} s comes back as {heard:.0f} Hz, {len(samples) / rate:.2f} s"
    return ""


def check_extras() -> Iterator[Finding]:
    """Optional packages, and what is missing without them."""
    extras = {
        "PyAV": ("av", "audio", "m4a, mp4 and webm cannot be read"),
        "espeakng-loader": ("espeakng-loader", "synth", "`asrkit data synth` and the demo need it"),
        "onnxruntime": ("onnxruntime", "export", "`asrkit export onnx` needs it"),
    }
    for check, (package, extra, without) in extras.items():
        version = installed_version(package)
        if version is None:
            yield Finding(check, WARN, f"not installed: {without}", f"pip install 'asrkit[{extra}]'")
        else:
            yield Finding(check, OK, version)


def check_gpu() -> Iterator[Finding]:
    """The GPUs that torch can really compute on."""
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available:
        why = one_line(caught[0].message) if caught else ""
        if not why and shutil.which("nvidia-smi"):
            why = f"nvidia-smi is here, but torch {torch.__version__} sees no GPU"
        if why:
            yield Finding(
                "gpu", WARN, f"none that torch can use: {why}", "update the driver, or install a torch made for it"
            )
        else:
            yield Finding("gpu", OK, "none: CPU training works, scale with --width")
        return
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        try:
            torch.ones(8, device=f"cuda:{index}").sum().item()
        except Exception as error:
            fix = (
                f"install a torch built for this GPU, or hide it: CUDA_VISIBLE_DEVICES= (torch is {torch.__version__})"
            )
            yield Finding("gpu", FAIL, f"{name} cannot compute: {one_line(error)}", fix)
            continue
        free, total = torch.cuda.mem_get_info(index)
        yield Finding("gpu", OK, f"cuda:{index} {name}, {free / GIB:.0f} of {total / GIB:.0f} GiB free")


def check_cores() -> Iterator[Finding]:
    """Cores this process may use, and the threads torch will use."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    found = f"{cores} cores for this process ({os.cpu_count()} in the machine), {threads} torch threads"
    if threads > cores:
        yield Finding("cores", WARN, f"{found}: they get in each other's way", f"export OMP_NUM_THREADS={cores}")
    else:
        yield Finding("cores", OK, found)


def check_folder() -> Iterator[Finding]:
    """Whether a run can be written here: the current folder and the space it has."""
    try:
        folder = Path.cwd()
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".asrkit-doctor-") as file:
            file.write(b"asrkit")
    except OSError as error:
        yield Finding("folder", FAIL, f"cannot write here: {one_line(error)}", "cd to a folder where you can write")
        return
    yield Finding("folder", OK, f"{folder} is writable")
    free = shutil.disk_usage(folder).free
    status = FAIL if free < NO_DISK else WARN if free < LOW_DISK else OK
    fix = "" if status == OK else "free some space, or run in a folder on another disk"
    yield Finding("disk", status, f"{free / GIB:.1f} GiB free here", fix)


def check_plugins() -> Iterator[Finding]:
    """Every registered name, really loaded; each broken one is a line of its own."""
    plugins = registry.list_plugins()
    names = list(dict.fromkeys((plugin.kind, plugin.name) for plugin in plugins))
    for package, why in registry.unreadable_packages().items():
        yield Finding("plugin", FAIL, f"what {package} offers cannot be read ({one_line(why)})", f"reinstall {package}")
    good = 0
    for kind, name in names:
        try:
            registry.load(kind, name)
        except AsrkitError as error:
            yield Finding("plugin", FAIL, f"{kind}: {error.what}", error.fix or "reinstall the package that offers it")
        else:
            good += 1
    if not names:
        yield Finding("plugins", FAIL, "none, not even asrkit's own", "pip install --force-reinstall asrkit")
    else:
        packages = ", ".join(sorted({f"{plugin.package} {plugin.version}" for plugin in plugins}))
        yield Finding("plugins", OK if good else FAIL, f"{good} of {len(names)} names load ({packages})")
