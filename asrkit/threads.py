"""How many threads torch works with; importing this does not import torch: a survey without decoding needs none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Inside, torch works with one thread: where threads of ours do the work, or where there is so little of it that
    torch's would wait for each other by spinning."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
