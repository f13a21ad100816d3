"""A smaller ONNX file: matrix products in 8-bit integers, weights of recurrent layers stored in 8 bits.

Matrix products become onnxruntime's dynamic ones (8-bit weights, activations measured and rounded at run time).
onnxruntime has no 8-bit GRU, so recurrent weights are stored as 8-bit rows with a scale each and become floats again
when the file is loaded: a quarter of the size, the speed as before. What it costs has to be measured (asrkit export).
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np


def to_int8(data: bytes) -> bytes:
    """The ONNX file of an exported model -> one with 8-bit weights; the metadata stay."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _fold_constants(data, folder / "folded.onnx")
        logging.disable(logging.WARNING)  # it advises a preprocessing that this has had
        try:
            quantize_dynamic(
                folder / "folded.onnx",
                folder / "int8.onnx",
                op_types_to_quantize=["MatMul"],
                per_channel=True,
                weight_type=QuantType.QInt8,
            )
        finally:
            logging.disable(logging.NOTSET)
        model = onnx.load(folder / "int8.onnx")
    _store_recurrent_weights(model)
    given = onnx.load_model_from_string(data)
    del model.metadata_props[:]
    model.metadata_props.extend(given.metadata_props)
    used = {node.domain for node in model.graph.node}  # onnxruntime declares all that it knows, and readers refuse some
    kept = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    return model.SerializeToString()  # type: ignore[no-any-return]


def _fold_constants(data: bytes, target: Path) -> None:
    """Write the file with everything computed that does not depend on the input, in standard operators."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _store_recurrent_weights(model: Any) -> None:
    """W (D, G, C) and R (D, G, H) of GRU and LSTM nodes as 8-bit rows (D G, C), their scales (D G,), and a reshape."""
    from onnx import helper, numpy_helper

    graph = model.graph
    floats = {tensor.name: tensor for tensor in graph.initializer}
    nodes, done = [], set()
    for node in graph.node:
        for name in node.input[1:3] if node.op_type in ("GRU", "LSTM") else ():
            if name not in floats or name in done:
                continue
            done.add(name)
            weight = numpy_helper.to_array(floats[name])
            rows, scale = _rounded(weight.reshape(-1, weight.shape[-1]))
            parts = {"int8": rows, "scale": scale, "shape": np.array(weight.shape, dtype=np.int64)}
            graph.initializer.extend(numpy_helper.from_array(value, f"{name}.{part}") for part, value in parts.items())
            graph.initializer.remove(floats[name])
            nodes.append(
                helper.make_node("DequantizeLinear", [f"{name}.int8", f"{name}.scale"], [f"{name}.rows"], axis=0)
            )
            nodes.append(helper.make_node("Reshape", [f"{name}.rows", f"{name}.shape"], [name]))
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend(nodes + rest)


def _rounded(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """rows (N, C) float32 -> int8 (N, C) and the scale (N,) that gives them back: the largest of a row is 127."""
    scale = np.maximum(np.abs(rows).max(1), np.finfo(np.float32).tiny * 127) / 127
    return np.rint(rows / scale[:, None]).astype(np.int8), scale.astype(np.float32)
