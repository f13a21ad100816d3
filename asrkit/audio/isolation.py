"""Decoding in a child process that has nothing to lose: `asrkit transcribe --isolate`, `with isolation.isolated():`.

Decoders are C libraries, and a crafted file may find a fault in one. The child gets the bytes of one file over a pipe
and gives samples back. It has an environment without secrets, a bound on memory and on processor time, may write no
file, and can open nothing more once it has started: no file, no socket, no pipe. This is no sandbox of the kernel (a
child that is taken over can still ask for what needs no descriptor), but what it can reach is what it was given.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

from asrkit.audio.soundfile_reader import MAX_CHANNELS, MAX_RATE, MAX_VALUES, Decoded, label
from asrkit.errors import AsrkitError, AudioError, StorageError

MEMORY = 6 << 30  # bytes of address space: numpy and the decoders take one, a read at most `MAX_VALUES` twice
SECONDS = 300  # of processor time for one file, and of waiting for it
REPLY = 1 << 16  # bytes of the header of a reply
KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")  # of the environment: what a start needs
CHILD = "import sys; from asrkit.audio.isolation import serve; serve(sys.argv[1])"
_HEAD = struct.Struct("<I")

_on = False


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Inside, `asrkit.audio.read_audio` decodes every file in a child process, whatever the format and the plugin."""
    global _on
    before, _on = _on, True
    try:
        yield
    finally:
        _on = before
        if not _on:
            for child in list(_children.values()):
                child.stop()


def guard(name: str, reader: Any) -> Any:
    """The reader itself, or inside `isolated` one that asks a child for what the plugin `name` would read."""
    return IsolatedReader(name, reader) if _on else reader


class IsolatedReader:
    """The `asrkit.audio` contract; `read` happens in a child. Raises AudioError `decoder_died` where that ends."""

    def __init__(self, name: str, reader: Any) -> None:
        self.name, self.formats, self.can_read = name, reader.formats, reader.can_read

    def read(self, source: Path | BinaryIO, start: float, end: float | None, limit: float | None) -> Decoded:
        """As the plugin's own `read`."""
        data = source.read_bytes() if isinstance(source, Path) else source.read()
        key = (os.getpid(), self.name)  # a forked worker must not talk to the child of its parent
        with _lock:
            child = _children.get(key) or _children.setdefault(key, _Child(self.name))
        return child.read(data, label(source), start, end, limit)


class _Child:
    """One process, started when it is first asked, and again after it has died."""

    def __init__(self, name: str) -> None:
        self.name, self.lock = name, threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None

    def read(self, data: bytes, what: str, start: float, end: float | None, limit: float | None) -> Decoded:
        request = json.dumps({"size": len(data), "what": what, "start": start, "end": end, "limit": limit})
        with self.lock:
            process = self.process if self.process is not None and self.process.poll() is None else self._start()
            assert process.stdin is not None
            assert process.stdout is not None
            watch = threading.Timer(SECONDS, process.kill)  # whatever it does or leaves undone: then the pipes end
            watch.start()
            try:
                _send(process.stdin, request.encode(), data)
                reply, samples = _receive(process.stdout)
                more = False if "error" in reply else bool(reply["more"])
            except (OSError, ValueError, TypeError, KeyError, EOFError) as error:
                raise self._died(what, error) from error
            finally:
                watch.cancel()
        if "error" in reply:
            raise AudioError(
                str(reply["error"]), fix="convert it to flac", reason=str(reply.get("reason", "not_audio"))
            )
        return Decoded(samples, reply["rate"], reply["claimed"], reply["problem"], more)

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {key: os.environ[key] for key in KEPT if key in os.environ}
        environment |= {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "PYTHONUTF8": "1",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-s", "-c", CHILD, self.name]
        try:
            self.process = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                cwd="/",
            )
        except OSError as error:
            raise StorageError(f"no process for --isolate ({error.strerror or error})", reason="isolate") from error
        return self.process

    def _died(self, what: str, error: Exception) -> AudioError:
        code = self.stop()
        why = f"signal {-code}" if code < 0 else f"code {code}"
        return AudioError(
            f"{what}: the process that decoded it ended ({why}, {type(error).__name__})",
            fix="do not use this file, or download it again",
            reason="decoder_died",
        )

    def stop(self) -> int:
        """End the process and give its exit code."""
        process, self.process = self.process, None
        if process is None:
            return 0
        with contextlib.suppress(OSError):
            if process.stdin is not None:
                process.stdin.close()
        try:
            code = process.wait(0.5)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if process.stdout is not None:
            process.stdout.close()
        return code


_children: dict[tuple[int, str], _Child] = {}
_lock = threading.Lock()


def _send(stream: IO[bytes], head: bytes, body: Any) -> None:
    stream.write(_HEAD.pack(len(head)) + head)
    stream.write(body)
    stream.flush()


def _receive(stream: IO[bytes]) -> tuple[dict[str, Any], np.ndarray]:
    """The reply of a child, which may be anything: sizes are looked at before memory is taken for them."""
    reply = json.loads(_exactly(stream, min(REPLY, _HEAD.unpack(_exactly(stream, _HEAD.size))[0])))
    if not isinstance(reply, dict) or "error" in reply:
        return dict(reply), np.zeros((0, 1), np.float32)
    frames, channels = int(reply["frames"]), int(reply["channels"])
    numbers = isinstance(reply["rate"], int) and isinstance(reply["claimed"], int | None)
    if not (numbers and frames >= 0 and 0 < channels <= MAX_CHANNELS and 0 < reply["rate"] <= MAX_RATE):
        raise ValueError("sizes that cannot be")
    if frames * channels > MAX_VALUES + (MAX_CHANNELS << 16) or not isinstance(reply["problem"], str | None):
        raise ValueError("sizes that cannot be")
    samples = np.frombuffer(bytearray(_exactly(stream, 4 * frames * channels)), np.float32)  # which may be written to
    return reply, samples.reshape(frames, channels)


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError("the child has ended")
    return data


# --- in the child


def serve(name: str) -> None:
    from asrkit import registry
    from asrkit.audio.soundfile_reader import SoundfileReader

    reader = SoundfileReader() if name == "soundfile" else registry.load("audio", name)()
    silence = b"RIFF\x28\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x40\x1f\0\0\x80\x3e\0\0\2\0\x10\0data\4\0\0\0\0\0\0\0"
    with contextlib.suppress(Exception):
        reader.read(io.BytesIO(silence), 0.0, None, None)  # imports what is imported late
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    _give_up_rights()
    while len(size := stdin.read(_HEAD.size)) == _HEAD.size:
        request = json.loads(stdin.read(_HEAD.unpack(size)[0]))
        data = io.BytesIO(stdin.read(request["size"]))
        _limit_time()
        try:
            got = reader.read(data, request["start"], request["end"], request["limit"])
        except AsrkitError as error:
            _send(
                stdout, json.dumps({"error": _about(error.what, request), "reason": error.reason})[:REPLY].encode(), b""
            )
        except MemoryError:
            what = f"{request['what']} needs more memory than --isolate allows"
            _send(stdout, json.dumps({"error": what, "reason": "too_large"}).encode(), b"")
        else:
            frames, channels = got.samples.shape
            reply = {"frames": frames, "channels": channels, "rate": got.rate, "claimed": got.claimed}
            reply |= {"problem": got.problem, "more": got.more}
            _send(stdout, json.dumps(reply).encode(), np.ascontiguousarray(got.samples).reshape(-1).view(np.uint8).data)


def _about(what: str, request: dict[str, Any]) -> str:
    return what.replace("the given bytes", request["what"], 1)


def _give_up_rights() -> None:
    """Everything is imported: from here on no file is written and no descriptor is opened."""
    try:
        import resource
    except ImportError:  # no such limits on this system
        return
    limits = {"RLIMIT_AS": MEMORY, "RLIMIT_FSIZE": 0, "RLIMIT_NOFILE": 0, "RLIMIT_CORE": 0, "RLIMIT_NPROC": 0}
    for name, value in limits.items():
        with contextlib.suppress(ValueError, OSError, AttributeError):
            resource.setrlimit(getattr(resource, name), (value, value))


def _limit_time() -> None:
    """`SECONDS` of processor time from now on; the kernel ends the process after that."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        spent = resource.getrusage(resource.RUSAGE_SELF)
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(spent.ru_utime + spent.ru_stime) + SECONDS, hard))
