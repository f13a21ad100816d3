"""From the input of a recurrent layer to the sums of a scan: the frames are put in the scan's order, then multiplied.

That way round, because a frame is smaller than its gate sums, and what is not there need not be multiplied: neither
padding nor the gates of the other direction.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from asrkit.recurrent.scan_order import ScanOrder


def project(x: Tensor, weight: Tensor, bias: Tensor | None, order: ScanOrder, room: int = 0) -> Tensor:
    """x (B, T, C) without NaN in the padding, weight (D, G, C), bias (D, G) -> x W' + bias, (D, R, G + room).

    The last `room` columns hold nothing: the scan of a GRU keeps a third sum of its own there.
    """
    return _Project.apply(x, weight, bias, order, room)  # type: ignore[no-any-return, no-untyped-call]


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, order: ScanOrder, room: int) -> Tensor:
        count, size, channels = weight.shape
        rows = x.reshape(-1, channels).index_select(0, order.inputs.flatten()).view(count, order.rows, channels)
        sums = x.new_empty(count, order.rows, size + room)
        for d in range(count):
            if bias is None:
                torch.mm(rows[d], weight[d].t(), out=sums[d, :, :size])
            else:
                torch.addmm(bias[d], rows[d], weight[d].t(), out=sums[d, :, :size])
        ctx.save_for_backward(rows, weight)
        ctx.order = order
        return sums

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        order: ScanOrder = ctx.order
        grad = grad[..., : weight.shape[1]]
        dx = dweight = dbias = None
        if ctx.needs_input_grad[0]:
            back = torch.empty_like(rows)
            for d in range(order.directions):
                torch.mm(grad[d], weight[d], out=back[d])
            back = back.flatten(0, 1)
            dx = back.index_select(0, order.frames[0])
            for index in order.frames[1:]:
                dx += back.index_select(0, index)
            dx = dx.view(order.batch, order.length, weight.shape[2])
        if ctx.needs_input_grad[1]:
            dweight = torch.bmm(grad.transpose(1, 2), rows)
        if ctx.needs_input_grad[2]:
            dbias = grad.sum(1)
        return dx, dweight, dbias, None, None
