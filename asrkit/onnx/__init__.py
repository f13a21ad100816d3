"""A trained model as one ONNX file: features (B, T, F) and lengths (B,) -> log-probabilities (B, T', V) and lengths.

Utterance CMVN is part of the graph. Torch's legacy exporter is used: the newer one freezes the time axis of recurrent
layers. Every file is run at other lengths than it was traced at, against the model, before it is written. Names,
metadata and label file are those of sherpa-onnx's offline CTC models, as far as the model's features are the ones that
sherpa-onnx computes (`sherpa_obstacles`).
"""

from __future__ import annotations

import io
import json
import math
import warnings
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from asrkit import __version__
from asrkit.bundle import Bundle
from asrkit.decoders import best_paths
from asrkit.errors import NumericError, RecipeError, nearest
from asrkit.features import ENERGY_FLOOR, Fbank
from asrkit.model import AcousticModel
from asrkit.recurrent.layer import RecurrentLayer
from asrkit.tokenizers import BLANK_IN_FILE, SPACE_MARK

OPSET = 17
TARGETS = {"zipformer_ctc": "zipformer2_ctc", "wenet_ctc": "wenet_ctc"}  # sherpa-onnx's slots -> its `model_type`
FULL_SCALE = 32768  # of the samples whose features sherpa-onnx gives to WeNet's models
TOLERANCE = 1e-4  # nats, of log-probabilities


@dataclass(frozen=True)
class Exported:
    """`model`: the ONNX file. `tokens`: its labels as sherpa-onnx reads them. `obstacles`: why sherpa-onnx cannot run
    it; empty if it can. `difference`: the largest one of any log-probability to the model's own, in nats."""

    model: bytes
    tokens: bytes
    target: str
    obstacles: tuple[str, ...]
    subsampling: float
    difference: float


class Graph(nn.Module):
    """What is traced. With `full_scale`, features of samples with that full scale become those of full scale 1: log-mel
    moves by 2 ln(full_scale), and the floor that Kaldi puts under energies is put where it would have been."""

    def __init__(self, acoustic: AcousticModel, full_scale: int = 1) -> None:
        super().__init__()
        self.acoustic, self.shift = acoustic, 2 * math.log(full_scale)

    def forward(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, F), x_lens (B,) frames -> log-probabilities (B, T', V), frames (B,)."""
        if self.shift:
            x = (x - self.shift).clamp(min=math.log(ENERGY_FLOOR))
        return self.acoustic(x, x_lens)  # type: ignore[no-any-return]


def export_onnx(bundle: Bundle, target: str = "zipformer_ctc") -> Exported:
    """Export a model on the CPU for one of sherpa-onnx's slots, `TARGETS`.

    Raises RecipeError (`export_target`; `export`: a norm inside a recurrence, or an encoder that torch cannot export),
    NumericError (`export_differs`) where the file does not give the model's numbers at every length.
    """
    if target not in TARGETS:
        raise RecipeError(f"target {target!r}", possible=nearest(target, TARGETS), reason="export_target")
    obstacles = sherpa_obstacles(bundle)
    if target == "wenet_ctc" and obstacles:
        raise RecipeError(
            f"a model for sherpa-onnx's wenet_ctc: {'; '.join(obstacles)}",
            possible="zipformer_ctc, for other programs than sherpa-onnx",
            reason="export_target",
        )
    _refuse_loops(bundle)
    graph = Graph(bundle.model.acoustic, FULL_SCALE if target == "wenet_ctc" else 1).eval()
    ratio = bundle.model.frame_seconds / bundle.model.features.frame_seconds
    data = _with_metadata(_trace(bundle, graph), _metadata(bundle, target, ratio))
    return Exported(data, token_file(bundle.tokenizer), target, tuple(obstacles), ratio, _verify(bundle, graph, data))


def sherpa_obstacles(bundle: Bundle) -> list[str]:
    """Why sherpa-onnx, which computes the features itself, would give this model others than it was trained on."""
    features = bundle.model.features
    if not isinstance(features, Fbank):
        return [f"its features are {bundle.config['recipe']['features']['name']}, sherpa-onnx's CTC models take fbank"]
    nyquist = features.sample_rate / 2
    fixed = {
        "window_ms": (features.window_size / features.sample_rate * 1000, 25.0),
        "hop_ms": (features.hop / features.sample_rate * 1000, 10.0),
        "low_hz": (features.low_hz, 20.0),
        "high_hz": (features.high_hz, nyquist - 400),
        "preemphasis": (features.preemphasis, 0.97),
        "window": (features.window_name, "povey"),
        "snip_edges": (features.snip_edges, False),
        "remove_dc": (features.remove_dc, True),
        "log": (features.log, True),
    }
    return [
        f"features.{key} = {have!r}, sherpa-onnx has {want!r}" for key, (have, want) in fixed.items() if have != want
    ]


def token_file(tokenizer: Any) -> bytes:
    """`label id` lines, blank first, a leading U+2581 for a space: what sherpa-onnx joins to the model's own text."""
    mark = SPACE_MARK if tokenizer.name == "symbols" else ""  # sherpa-onnx puts nothing between labels
    labels = [BLANK_IN_FILE] + [mark + label.replace(" ", SPACE_MARK) for label in tokenizer.labels[1:]]
    return "".join(f"{label} {i}\n" for i, label in enumerate(labels)).encode()


def _refuse_loops(bundle: Bundle) -> None:
    for layer in bundle.model.acoustic.modules():
        if isinstance(layer, RecurrentLayer) and layer.in_recurrence:
            raise RecipeError(
                f"a norm inside the recurrence ({layer.placement}) is a loop over frames, and ONNX's recurrent layers "
                "have no place for it",
                possible="norm: input or gates in recurrent layers, or `norm` as a layer",
                fix="train such a model to export it",
                reason="export",
            )


def _lengths(bundle: Bundle) -> tuple[list[int], list[list[int]]]:
    """Frames to trace at, and the batches to try: all long enough for an output frame."""
    encoder = bundle.model.acoustic.encoder
    least = next((t for t in range(1, 1 << 16) if int(encoder.num_frames(t)) >= 1), 1)
    return [least + 56, least + 41], [[least + 130], [least + 90, least + 63, least], [least + 17] * 2]


def _batch(bundle: Bundle, graph: Graph, frames: list[int]) -> tuple[Tensor, Tensor]:
    """Noise like log-mel energies (B, T, F), and noise in its padding too: nothing of that may be heard."""
    draw = torch.Generator().manual_seed(sum(frames))
    shape = len(frames), max(frames), bundle.model.features.size
    return 3 * torch.randn(shape, generator=draw) - 6 + graph.shift, torch.tensor(frames)


def _trace(bundle: Bundle, graph: Graph) -> bytes:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise RecipeError(
            f"exporting needs onnx and onnxruntime ({error})",
            fix="pip install 'asrkit[export]'",
            reason="missing_extra",
        ) from error
    file = io.BytesIO()
    axes = {"x": {0: "N", 1: "T"}, "x_lens": {0: "N"}, "log_probs": {0: "N", 1: "T_out"}, "log_probs_len": {0: "N"}}
    # Where it fails, torch prints the whole graph on standard output, asked or not.
    with mock.patch.object(torch._C, "_jit_onnx_log", create=True), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # what they fear is measured in `_verify`
        try:
            torch.onnx.export(
                graph,
                _batch(bundle, graph, _lengths(bundle)[0]),
                file,  # type: ignore[arg-type]
                dynamo=False,
                input_names=["x", "x_lens"],
                output_names=["log_probs", "log_probs_len"],
                dynamic_axes=axes,
                opset_version=OPSET,
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            why = str(error).strip().splitlines()[0]
            raise RecipeError(
                f"torch cannot export the encoder {bundle.config['encoder']['name']}: {why}",
                fix="`asrkit plugins check NAME` shows what its export lacks",
                reason="export",
            ) from error
    return file.getvalue()


def _metadata(bundle: Bundle, target: str, ratio: float) -> dict[str, str]:
    """What sherpa-onnx asks for, and where the model came from."""
    config, features = bundle.config, bundle.model.features
    return {
        "model_type": TARGETS[target],
        "vocab_size": str(bundle.tokenizer.size),
        "subsampling_factor": str(round(ratio)),
        "version": "1",
        "comment": f"asrkit {__version__}, {config.get('name')} with {config['encoder']['name']}",
        "sample_rate": str(features.sample_rate),
        "feature_dim": str(features.size),
        "frame_seconds": repr(bundle.model.frame_seconds),
        "features": json.dumps(config["recipe"]["features"]),
        "weights_sha256": config["files"]["model.safetensors"],
    }


def _with_metadata(data: bytes, metadata: dict[str, str]) -> bytes:
    import onnx

    model = onnx.load_model_from_string(data)
    _dissolve_aliases(model.graph)
    for key, value in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    return model.SerializeToString()  # type: ignore[no-any-return]


def _dissolve_aliases(graph: Any) -> None:
    """Use a tensor where the exporter uses an Identity of it: equal ones become aliases, which onnxruntime may lose."""
    tensors = {tensor.name for tensor in graph.initializer}
    alias = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Identity" and n.input[0] in tensors}
    nodes = [node for node in graph.node if node.output[0] not in alias]
    for node in nodes:
        for place, name in enumerate(node.input):
            node.input[place] = alias.get(name, name)
    del graph.node[:]
    graph.node.extend(nodes)


def session(data: bytes) -> Any:
    """An onnxruntime session on one thread of the CPU; what it would print is in its exceptions."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def run(session: Any, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
    """x (B, T, F), x_lens (B,) -> log-probabilities (B, T', V), frames (B,) by onnxruntime."""
    log_probs, frames = session.run(None, {"x": x.numpy(), "x_lens": x_lens.numpy()})
    return torch.from_numpy(log_probs), torch.from_numpy(frames)


def _verify(bundle: Bundle, graph: Graph, data: bytes) -> float:
    """The largest difference of a log-probability to the model's; NumericError where it or a text is off."""
    name, largest = bundle.config["encoder"]["name"], 0.0
    try:
        ready = session(data)
        for frames in _lengths(bundle)[1]:
            x, lengths = _batch(bundle, graph, frames)
            with torch.no_grad():
                expected, counts = graph(x, lengths)
            found, found_counts = run(ready, x, lengths)
            where = f"the export of {name} at {frames} frames"
            if found_counts.tolist() != counts.tolist() or found.shape != expected.shape:
                raise _differs(f"{where} gives {found_counts.tolist()} frames instead of {counts.tolist()}")
            real = torch.arange(expected.shape[1]) < counts[:, None]
            off = (found - expected).abs().amax(-1)[real]
            largest = max(largest, float(off.max()))
            if not largest <= TOLERANCE:
                raise _differs(f"{where} is off by {largest:.2g} nats")
            if best_paths(found, counts)[0] != best_paths(expected, counts)[0]:
                raise _differs(f"{where} gives another text")
    except NumericError:
        raise
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise _differs(f"the export of {name} does not run: {str(error).splitlines()[0]}") from error
    return largest


def _differs(what: str) -> NumericError:
    return NumericError(
        what, possible=f"log-probabilities within {TOLERANCE:g}", fix="report it", reason="export_differs"
    )
