"""`simple_rms_norm` does what its formula says, and keeps the promises of every asrkit encoder."""

import torch
from simple_rms_norm import SimpleRMSNorm

from asrkit.testing import parametrize_with_checks


@parametrize_with_checks(["simple_rms_norm"])
def test_contract(encoder, check):
    check(encoder)


def test_formula():
    """Worked by hand: the root mean square of (7, 1) is 5; the second frame is padding."""
    norm = SimpleRMSNorm(2, eps=1e-12, gain=2.0, affine=True)
    y = norm(torch.tensor([[[7.0, 1.0], [9.0, 9.0]]]), torch.tensor([[True, False]]))
    torch.testing.assert_close(y, torch.tensor([[[2.8, 0.4], [0.0, 0.0]]]))
