"""A loop of one's own under torchrun, two ranks in DistributedDataParallel, learns what one process learns."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchrun_loop import NAMES, SHARES, train

LOOP = Path(__file__).with_name("torchrun_loop.py")
JOINT = [*SHARES[0], *SHARES[1]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*words, str(LOOP), str(folder)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_learn_what_one_process_learns(name: str, ranks: list[dict[str, dict[str, Tensor]]]) -> None:
    """Weights and running statistics after three updates."""
    expected = train(name, JOINT)
    for rank in ranks:
        assert rank[name].keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(rank[name][key], value, atol=1e-6, rtol=1e-6, msg=lambda t, k=key: f"{k}: {t}")


@pytest.mark.parametrize("name", ["sequence_batch_norm", "frame_batch_norm", "batch_renorm"])
def test_half_a_batch_would_not_do(name: str) -> None:
    """The comparison can fail."""
    expected, half = train(name, JOINT), train(name, SHARES[0])
    assert max(float((half[key] - value).abs().max()) for key, value in expected.items()) > 0.01
