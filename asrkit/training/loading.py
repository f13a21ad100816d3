"""The batches of an epoch, read in this process or by workers whose death costs one clip and not the run.

A worker that dies (killed, a segmentation fault in a decoder, longer over one clip than the timeout) was at the first
clip that has not arrived, so the clip has a name. It is tried once more by a new worker: what killed the old one may
have come from outside. A clip that fails again is left out of this and of all later epochs, in which nothing else
changes its place. Workers are forked per epoch and send plain bytes: no pickle, no handler of SIGCHLD that raises in
the midst of a training step (as torch's DataLoader has it), and a worker whose trainer is gone ends with its next clip.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import numpy as np
import torch

from asrkit.batching import Batch, BatchSampler, collate
from asrkit.errors import AsrkitError
from asrkit.preparation.splits import Split

PIPE_BYTES = 1 << 20  # as much as Linux allows everybody: how far ahead of the trainer a worker reads
_SET_PIPE_SIZE = getattr(fcntl, "F_SETPIPE_SZ", None)  # Linux


class _Dead(Exception):
    """A worker ended before its clip arrived; says how."""


class Loading:
    """Iterates over the batches of the sampler's epoch from its `skip` on; None for one without a clip that is left.

    Args:
        split: read as `split[row]`; `split.set_epoch` must have been called.
        sampler: gives the rows of every batch.
        workers: processes that read ahead; 0 reads in this one.
        timeout: seconds that a worker may take over one clip.
        quarantined: ids that are left out; ids are added here as they are found.
        on_bad: called with (batch, id, why) for each of them.

    Raises:
        AsrkitError: whatever reading a clip raises on purpose, such as StorageError; no reason to leave a clip out.
    """

    def __init__(
        self,
        split: Split,
        sampler: BatchSampler,
        workers: int = 0,
        timeout: float = 120.0,
        quarantined: list[str] | None = None,
        on_bad: Callable[[int, str, str], None] | None = None,
    ) -> None:
        self.split, self.sampler, self.workers, self.timeout = split, sampler, workers, timeout
        self.quarantined = quarantined if quarantined is not None else []
        self.on_bad = on_bad or (lambda batch, identity, why: None)

    def __iter__(self) -> Iterator[Batch | None]:
        batches, first = self.sampler.batches(), self.sampler.skip
        pool: dict[int, _Worker] = {}
        try:
            for index in range(first, len(batches)):
                items = []
                for place, row in enumerate(batches[index]):
                    identity = self.split.utterances[row].id
                    if identity in self.quarantined:
                        continue
                    frames, why = self._frames(pool, batches, index, place)
                    if frames is None:
                        self.quarantined.append(identity)
                        self.on_bad(index, identity, why)
                    else:
                        items.append((row, identity, frames, self.split.labels[row]))
                yield collate(items) if items else None
        finally:
            for worker in pool.values():
                worker.stop()

    def _frames(
        self, pool: dict[int, _Worker], batches: list[list[int]], index: int, place: int
    ) -> tuple[np.ndarray | None, str]:
        """Features (T, F) of one clip, or None and why there are none."""
        row = batches[index][place]
        if not self.workers:
            try:
                return self.split[row][2], ""
            except AsrkitError:
                raise
            except Exception as error:
                return None, f"{type(error).__name__}: {error}"
        slot, why = index % self.workers, ""
        for _ in range(2):
            if slot not in pool:
                rows = list(batches[index][place:])
                for later in batches[index + self.workers :: self.workers]:
                    rows += later
                left = [r for r in rows if self.split.utterances[r].id not in self.quarantined]
                pool[slot] = _Worker(self.split, left, self.timeout, [worker.connection for worker in pool.values()])
            try:
                frames, why = pool[slot].receive()
            except _Dead as death:
                why = str(death)
                pool.pop(slot).stop()
                continue
            if why == "AsrkitError":
                return self.split[row][2], ""  # raises it here, with all it has to say
            return frames, why
        return None, why


class _Worker:
    """A forked process that reads these rows, one after the other."""

    def __init__(self, split: Split, rows: list[int], timeout: float, others: list[Connection]) -> None:
        self.connection, theirs = Pipe(duplex=False)
        if _SET_PIPE_SIZE is not None:
            with contextlib.suppress(OSError):
                fcntl.fcntl(theirs.fileno(), _SET_PIPE_SIZE, PIPE_BYTES)
        self.timeout = timeout
        self.pid = os.fork()
        if self.pid == 0:
            try:
                for connection in (self.connection, *others):  # or it would never see that the trainer is gone
                    connection.close()
                _read(split, rows, timeout, theirs)
            finally:
                os._exit(0)
        theirs.close()

    def receive(self) -> tuple[np.ndarray | None, str]:
        """The next row's features (T, F), or None and the exception that it raised. _Dead if there is no answer."""
        try:
            header = json.loads(self.connection.recv_bytes())
            if isinstance(header, str):
                return None, header
            data = self.connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise _Dead(self._ending()) from error
        shape, dtype = header
        return np.frombuffer(data, dtype).reshape(shape).copy(), ""

    def _ending(self) -> str:
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.pid = 0
        if code == -signal.SIGALRM:
            return f"took more than {self.timeout:g} s"
        return f"its worker was ended by {signal.Signals(-code).name}" if code < 0 else f"its worker left with {code}"

    def stop(self) -> None:
        """End the process, whatever it does."""
        self.connection.close()
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0


def _read(split: Split, rows: list[int], timeout: float, connection: Connection) -> None:
    """What a worker does. A clip that takes too long ends it, even inside a decoder: nobody catches SIGALRM."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # meant for the trainer, which ends its workers
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    torch.set_num_threads(1)  # the threads of the trainer have not come along
    for row in rows:
        signal.setitimer(signal.ITIMER_REAL, timeout)
        try:
            frames, why = np.asarray(split[row][2]), ""
        except AsrkitError:
            frames, why = np.empty(0), "AsrkitError"
        except Exception as error:
            frames, why = np.empty(0), f"{type(error).__name__}: {error}"
        signal.setitimer(signal.ITIMER_REAL, 0)  # waiting for the trainer is no hang
        try:
            connection.send_bytes(json.dumps(why or [frames.shape, frames.dtype.str]).encode())
            if not why:
                connection.send_bytes(frames.tobytes())
        except OSError:  # the trainer is gone
            return
