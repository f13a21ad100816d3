"""Exported models against the model itself, under onnxruntime and under sherpa-onnx with its own features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from toy import RATE, make_corpus, tones, toy_recipe

import asrkit
from asrkit import registry
from asrkit.bundle import Bundle, load_bundle, save_bundle
from asrkit.cli import main
from asrkit.decoders import best_paths
from asrkit.errors import NumericError, RecipeError
from asrkit.experiment import train
from asrkit.model import build_model
from asrkit.onnx import TARGETS, export_onnx, token_file
from asrkit.onnx.check import OnnxModel, own_text, sherpa_recognizer, sherpa_text
from asrkit.onnx.int8 import to_int8
from asrkit.recipe import load_recipe
from asrkit.recipe.schema import SCHEMA
from asrkit.tokenizers import CharacterTokenizer, SymbolTokenizer

ENCODERS = sorted(plugin.name for plugin in registry.list_plugins("encoders") if plugin.package == "asrkit")
RECIPES = sorted((Path(__file__).parents[1] / "recipes" / "common_voice_es").glob("model*.yaml"))
STACK = (
    "[{conv: {channels: 4, kernel: [3, 3], stride: [2, 2]}}, {linear: 12}, norm, relu, {bigru: 10}, norm, {lstm: 9}]"
)
GATES = "[{linear: 12}, {bigru: {size: 10, norm: gates}}, {bilstm: {size: 8, norm: input}}]"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path]:
    """(bundle, corpus): a model of the tones on features that sherpa-onnx has too."""
    folder = tmp_path_factory.mktemp("trained")
    corpus = make_corpus(folder / "cv")
    quiet = [(f"training.{key}", 25) for key in ("epochs", "evaluate_every", "checkpoint_every")]
    recipe = toy_recipe(folder, corpus, *quiet, ("features.options.high_hz", -400.0))
    return load_bundle(train(recipe, "", folder / "run", say=lambda _: None).bundle), corpus


def bundle_of(folder: Path, tokenizer: Any = None, **overrides: str) -> Bundle:
    """A model that has seen a little noise in training, so that its statistics are those of something."""
    tokenizer = tokenizer or CharacterTokenizer(" abeiou")
    recipe = toy_recipe(folder, folder, *overrides.items())
    model = build_model(recipe, tokenizer.size)
    model.train()
    for seed in range(4):
        draw = torch.Generator().manual_seed(seed)
        model.acoustic(3 * torch.randn(6, 60 - seed, 16, generator=draw) + 2, torch.tensor([60 - seed] * 4 + [31, 20]))
    save_bundle(folder / "model", model, tokenizer, recipe, {})
    return load_bundle(folder / "model")


def run(data: bytes, x: np.ndarray, lengths: list[int]) -> list[np.ndarray]:
    found = onnxruntime.InferenceSession(data).run(None, {"x": x, "x_lens": np.array(lengths)})
    return [np.asarray(part) for part in found]


@pytest.mark.parametrize("layers", [STACK, GATES], ids=["stack", "gates"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_at_other_lengths(encoder: str, layers: str, tmp_path: Path) -> None:
    """Log-probabilities within 1e-4 and equal labels, at lengths and in batches that the trace has not seen."""
    bundle = bundle_of(tmp_path, encoder=encoder, layers=layers, **{"norm.groups": "2"})
    exported = export_onnx(bundle)
    assert 0 <= exported.difference <= 1e-4
    for lengths in ([203], [75, 140, 38]):
        x = (3 * np.random.default_rng(len(lengths)).standard_normal((len(lengths), max(lengths), 16))).astype("f4")
        found, frames = run(exported.model, x, lengths)
        with torch.no_grad():
            expected, counts = bundle.model.acoustic(torch.from_numpy(x), torch.tensor(lengths))
        assert frames.tolist() == counts.tolist()
        for row, count in enumerate(counts.tolist()):
            np.testing.assert_allclose(found[row, :count], expected[row, :count], atol=1e-4)
        assert best_paths(torch.from_numpy(found), counts) == best_paths(expected, counts)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_models_of_the_question_run_in_sherpa(path: Path, tmp_path: Path) -> None:
    """Their layers export, and their features are sherpa-onnx's; weights as drawn."""
    recipe = load_recipe(path, [("width", "16"), ("encoder", "sequence_batch_norm")], known=SCHEMA)
    tokenizer = CharacterTokenizer(" abeiou")
    save_bundle(tmp_path / "model", build_model(recipe, tokenizer.size), tokenizer, recipe, {})
    exported = export_onnx(load_bundle(tmp_path / "model"))
    assert exported.obstacles == ()
    assert exported.subsampling == (2 if path.stem in ("model2", "model3_conv") else 1)


def test_a_prior_of_decoding_and_growing_residuals_are_in_the_file(tmp_path: Path) -> None:
    layers = "[{linear: 8}, {repeat: {times: 2, residual: true, layers: [norm, {bigru: 6}]}}]"
    bundle = bundle_of(tmp_path, layers=layers, **{"ctc.decode_prior": "0.5"})
    plain = export_onnx(bundle)
    bundle.model.acoustic.head.log_prior += torch.linspace(-3, 0, bundle.tokenizer.size)
    weighted = export_onnx(bundle)  # is compared with the model there
    x = (3 * np.random.default_rng(1).standard_normal((1, 90, 16))).astype("f4")
    assert np.abs(run(weighted.model, x, [90])[0] - run(plain.model, x, [90])[0]).max() > 0.1


def test_what_changes_with_its_length_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Frozen(registry.load("encoders", "none")):  # type: ignore[misc]
        def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> Any:
            return super().forward(x * (int(x.shape[1]) / 50), lengths)  # an int is a constant of the trace

    monkeypatch.setattr(registry, "_registered", {})
    asrkit.register_encoder("frozen")(Frozen)
    with pytest.raises(NumericError, match=r"frozen at \[\d+\] frames is off by") as caught:
        export_onnx(bundle_of(tmp_path, encoder="frozen"))
    assert caught.value.reason == "export_differs"


def test_a_norm_inside_a_recurrence_is_refused(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, encoder="layer_norm", layers="[{bigru: {size: 8, norm: recurrent}}]")
    with pytest.raises(RecipeError, match="inside the recurrence") as caught:
        export_onnx(bundle)
    assert caught.value.reason == "export"


@pytest.mark.parametrize("target", TARGETS)
def test_sherpa_writes_the_models_text(trained: tuple[Bundle, Path], tmp_path: Path, target: str) -> None:
    """Its own features, its own decoding, our labels."""
    bundle, _ = trained
    exported = export_onnx(bundle, target)
    assert exported.obstacles == ()
    (tmp_path / "model.onnx").write_bytes(exported.model)
    (tmp_path / "tokens.txt").write_bytes(exported.tokens)
    recognizer = sherpa_recognizer(tmp_path / "model.onnx", tmp_path / "tokens.txt", target, RATE, 16)
    runtime = OnnxModel(exported.model, bundle, target)
    for seed, text in enumerate(["abe iou", "bou abeb oi", "ieu oa", "a"]):
        samples = tones(text, seed)
        mine = own_text(bundle, samples)
        heard, times = sherpa_text(recognizer, samples, RATE)
        assert mine
        assert heard == mine
        assert runtime.text(samples) == mine
        words = asrkit.load(bundle.path).transcribe((samples, RATE)).words
        scale = 1.0 if target == "wenet_ctc" else 4 / exported.subsampling
        assert times[0] == pytest.approx(scale * words[0].start, abs=0.005)
        assert times[-1] == pytest.approx(scale * (words[-1].end - 0.02), abs=0.045 * scale)


def test_what_sherpa_cannot_run_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = bundle_of(tmp_path)  # the toy's mel filters go up to half of the sample rate
    assert export_onnx(bundle).obstacles == ("features.high_hz = 4000.0, sherpa-onnx has 3600.0",)
    with pytest.raises(RecipeError, match=r"wenet_ctc: features\.high_hz"):
        export_onnx(bundle, "wenet_ctc")
    with pytest.raises(RecipeError, match="zipformer_ctc"):
        export_onnx(bundle, "zipformer")
    cepstra = bundle_of(tmp_path / "mfcc", features="{name: mfcc, options: {size: 16, num_mels: 20}}")
    assert "mfcc" in export_onnx(cepstra).obstacles[0]
    assert main(["export", "onnx", str(bundle.path), "--output", str(tmp_path / "m.onnx")]) == 0
    assert "sherpa-onnx cannot run it: features.high_hz" in capsys.readouterr().out


def test_labels_are_joined_to_the_models_text() -> None:
    for tokenizer in (CharacterTokenizer(" añz"), SymbolTokenizer(["vcl", "d", "aa"])):
        lines = [line.rsplit(" ", 1) for line in token_file(tokenizer).decode().splitlines()]
        assert [int(number) for _, number in lines] == list(range(tokenizer.size))
        assert lines[0][0] == "<blk>"
        ids = [1, 2, 1, 3]
        joined = "".join(lines[i][0].replace("\u2581", " ") for i in ids).strip()
        assert joined == tokenizer.decode(ids).strip()


def test_int8_rounds_every_weight_to_its_nearest(trained: tuple[Bundle, Path]) -> None:
    bundle, _ = trained
    exported = export_onnx(bundle)
    small = to_int8(exported.model)
    model = onnx.load_model_from_string(small)
    onnx.checker.check_model(model)
    assert {p.key: p.value for p in model.metadata_props}["subsampling_factor"] == "2"
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    recurrent = bundle.model.acoustic.encoder.stack.layers[4].recurrent.layers[0]  # type: ignore[index,union-attr]
    stored = [name for name in tensors if name.endswith(".int8")]
    assert len(stored) == 4  # W and R of both directions
    found = [tensors[name] * tensors[name.removesuffix("int8") + "scale"][:, None] for name in stored]
    for weight in (*recurrent.weight_input, *recurrent.weight_recurrent):
        gates = weight.detach().numpy().reshape(3, 16, -1)[[1, 0, 2]].reshape(48, -1)  # ONNX has update before reset
        nearest = min(found, key=lambda rows: np.abs(rows - gates).max() if rows.shape == gates.shape else np.inf)
        assert np.abs(nearest - gates).max() <= np.abs(gates).max() / 127 / 2 * 1.001
    assert not [n for n in model.graph.node if n.op_type == "MatMul"]
    x = (3 * np.random.default_rng(0).standard_normal((1, 150, 16))).astype("f4")
    exact, rounded = (run(data, x, [150])[0] for data in (exported.model, small))
    assert 1e-4 < np.abs(exact - rounded).max() < 1.0
    assert (exact.argmax(-1) == rounded.argmax(-1)).mean() > 0.9


def test_the_command_compares_programs_on_real_clips(
    trained: tuple[Bundle, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, corpus = trained
    output = tmp_path / "out" / "toy.onnx"
    command = ["export", "onnx", str(bundle.path.parent), "--output", str(output)]
    assert main([*command, "--int8"]) == 2
    assert "int8_reference" in capsys.readouterr().err
    table = ["--reference", str(corpus / "train.tsv"), "--first", "5"]
    assert main([*command, "--int8", *table, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["clips"] == 5
    programs = {one.pop("program"): one for one in facts["programs"]}
    assert list(programs) == [
        "asrkit", "onnxruntime float32", "onnxruntime int8", "sherpa-onnx float32", "sherpa-onnx int8",
    ]  # fmt: skip
    for exact in ("onnxruntime float32", "sherpa-onnx float32"):
        assert programs[exact] == programs["asrkit"]
    assert sorted(path.name for path in output.parent.iterdir()) == ["toy.int8.onnx", "toy.onnx", "toy.tokens.txt"]
    assert main([*command, *table]) == 0
    assert "from_zipformer_ctc(" in capsys.readouterr().out
