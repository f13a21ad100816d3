"""Check of the export: ONNX by torch's legacy exporter where onnx and onnxruntime are installed, else a trace."""

from __future__ import annotations

import importlib.util
import io
import warnings
from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor

from asrkit.encoders import Encoder
from asrkit.testing.case import Case

TRACED, TRIED = (12, 9), ((19, 4, 11), (7, 7, 6))  # a trace that has frozen its length or batch fails at the others
OPSET = 17


def check_export(case: Case) -> None:
    """Exported at one length, it gives the right numbers at two others."""
    encoder = case.trained()
    how = _onnx if onnx_installed() else _trace
    name = "ONNX" if how is _onnx else "a trace"
    case.notes.append("as ONNX" if how is _onnx else "as a trace; with asrkit[export] installed, as ONNX")
    with case.refusable(f"in the stack {case.stack!r} {name}"):
        try:
            exported = how(encoder, *case.batch(TRACED))
            for lengths in TRIED:
                batch = case.batch(lengths)
                expected = case.evaluate(*batch)
                y, frames = exported(*batch)
                shape = f"{name} made at {TRACED[0]} frames gives {tuple(y.shape)} for {list(lengths)}"
                case.require(y.shape == expected.y.shape, f"{shape} instead of {tuple(expected.y.shape)}")
                case.require(frames.tolist() == expected.lengths, f"{name} gives the lengths {frames.tolist()}")
                case.close(y, expected.y, 1e-4, f"{name} made at {TRACED[0]} frames is at {lengths[0]} frames off by")
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            case.fail(f"{name} made at {TRACED[0]} frames does not work: {_gist(error)}")


def _gist(error: Exception) -> str:
    """The line that says what happened: the first, or below TorchScript's own traceback the last."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1 if "TorchScript interpreter" in lines[0] else 0][:200]


def onnx_installed() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("onnx", "onnxruntime"))


Exported = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def _trace(encoder: Encoder, x: Tensor, lengths: Tensor) -> Exported:
    with torch.no_grad():
        traced: Exported = torch.jit.trace(encoder, (x, lengths), check_trace=False)  # type: ignore[no-untyped-call]
    return traced


def _onnx(encoder: Encoder, x: Tensor, lengths: Tensor) -> Exported:
    import onnxruntime

    file = io.BytesIO()
    # Where it fails, torch prints the whole graph on standard output, asked or not.
    with mock.patch.object(torch._C, "_jit_onnx_log", create=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they fear is measured by the check
        torch.onnx.export(
            encoder,
            (x, lengths),
            file,  # type: ignore[arg-type]
            dynamo=False,
            input_names=["x", "lengths"],
            output_names=["y", "frames"],
            dynamic_axes={"x": {0: "B", 1: "T"}, "lengths": {0: "B"}},
            opset_version=OPSET,
        )
    onnxruntime.set_default_logger_severity(4)  # what it would print is in the exception
    session = onnxruntime.InferenceSession(file.getvalue())

    def run(x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        try:
            y, frames = session.run(None, {"x": x.numpy(), "lengths": lengths.numpy()})
        except Exception as error:  # its exceptions have no common base
            raise RuntimeError(str(error)) from error
        return torch.from_numpy(y), torch.from_numpy(frames)

    return run
