"""What a foreign model must be before anything of it is built: a config within bounds, tensors that fit it.

All of this looks at config.json and at the header of model.safetensors alone (1 MiB at most each); the architecture is
built of torch's meta tensors, which have shapes and no numbers. So a config that asks for more than its own file holds
costs neither memory nor time.
"""

from __future__ import annotations

import json
import math
import re
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from asrkit import registry
from asrkit.encoders import Encoder
from asrkit.errors import AsrkitError, RecipeError, TrustError
from asrkit.features import CMVN
from asrkit.layers import Layer
from asrkit.model import AcousticModel, build_encoder, build_features
from asrkit.recipe.schema import DEFECTS, SCHEMA
from asrkit.recipe.validation import RULES

MAX_HEADER = 1 << 20  # bytes
RATES = (2_000, 192_000)  # samples per second
MAX_LABELS = 1 << 17
MAX_LAYERS = 2_000  # entries of `layers:`, repeats counted out
MAX_WIDTH = 1 << 17  # features that one layer may give
MAX_NUMBER = 1 << 16  # any number of `layers:` that has no bound of its own
BOUNDS = {"times": 200, "layers": 200, "channels": 8192, "kernel": 512, "stride": 64, "padding": 256, "left": 256}
BOUNDS["right"] = BOUNDS["left"]
FEATURE_BOUNDS = {"size": 2_048, "num_mels": 2_048, "window_ms": 1_000, "hop_ms": 1_000}
MAX_WHOLE = 1 << 40  # what a whole number of `norm:` may be that has no bound of its own
NORM_BOUNDS = {"min_count": 1 << 20, "max_steps": 1 << 20}
MAX_FILTERS = 1 << 21  # mel filters times samples per window
TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
BYTES = {name: kind.itemsize for kind, name in TYPES.items()}
_DISTRIBUTION = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")

Header = dict[str, tuple[str, list[int]]]


def read_json(text: bytes) -> Any:
    """JSON of a stranger: a key that stands twice is refused, since readers disagree about which one counts.

    Raises ValueError (not JSON, not UTF-8, `Foreign`) or RecursionError.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise Foreign("a key stands twice")
        return found

    return json.loads(text, object_pairs_hook=unique)


class Foreign(ValueError):
    """Why a config cannot be one that asrkit wrote; becomes a TrustError that names the file."""


def shown(value: object, limit: int = 60) -> str:
    """Foreign text for a message: quoted, without control characters, cut."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def not_a_model(what: Path, why: object) -> TrustError:
    """The refusal of a folder that is not what `save_bundle` writes."""
    if isinstance(why, Exception) and not isinstance(why, Foreign):
        text = why.what if isinstance(why, AsrkitError) else f"{type(why).__name__}: {why}"
        why = text if text.isprintable() and len(text) < 200 else shown(text, 200)
    return TrustError(
        f"{what} is not an asrkit model ({why})",
        fix="use the asrkit that its config.json names; otherwise do not use this model",
        reason="config",
    )


def missing_plugin(path: Path, encoder: dict[str, Any]) -> TrustError:
    """What to do about an encoder that is not installed. The package's name is foreign text that someone may paste."""
    package = encoder["package"]
    if package == "(this process)":
        fix = "it came from a file: give it with --plugin FILE.py (in Python, import the file before asrkit.load)"
    elif _DISTRIBUTION.fullmatch(package):
        fix = f"pip install {package}  (asrkit installs nothing by itself)"
    else:
        fix = "ask its author which package offers it; what config.json names is no name of a package"
    return TrustError(
        f"{path} needs the encoder {shown(encoder['name'])} of {shown(package)} {shown(encoder['version'])}",
        fix=fix,
        reason="missing_plugin",
    )


def check_config(config: dict[str, Any]) -> None:
    """Raise Foreign unless every section that loading reads has the schema's keys and types, within bounds."""
    _need(config, "format", int)
    if not 0 <= _need(config, "seed", int) < 1 << 63:
        raise Foreign("seed is not one of torch's")
    for key in ("name", "package", "version"):
        _need(_need(config, "encoder", dict), key, str, "encoder.")
    for key in ("name", "file"):
        _need(_need(config, "tokenizer", dict), key, str, "tokenizer.")
    files = _need(config, "files", dict)
    if "model.safetensors" not in files or not all(isinstance(digest, str) for digest in files.values()):
        raise Foreign("files has no hash of model.safetensors, or one that is no text")
    expected = _need(config, "self_check", dict)
    labels = _need(expected, "labels", list, "self_check.")
    if not all(_is(label, int) for label in labels):
        raise Foreign("self_check.labels are not integers")
    _need(expected, "mean", float, "self_check.")
    _need(expected, "frames", int, "self_check.")
    _check_recipe(_need(config, "recipe", dict))


def _check_recipe(recipe: dict[str, Any]) -> None:
    for part in ("data", "text", "features", "cmvn", "norm"):
        section, known = _need(recipe, part, dict, "recipe."), SCHEMA[part]
        for key, value in section.items():
            if key not in known:
                raise Foreign(f"recipe.{part} has the unknown key {shown(key)}")
            if isinstance(known[key], bool | int | float | str) and not _is(value, type(known[key])):
                raise Foreign(f"recipe.{part}.{key} = {shown(value)}")
    if not all(isinstance(name, str) and name in DEFECTS for name in _need({"defects": [], **recipe}, "defects", list)):
        raise Foreign(f"recipe.defects = {shown(recipe['defects'])}")
    ctc = _need({"ctc": {}, **recipe}, "ctc", dict, "recipe.")
    if not set(ctc) <= {"decode_prior"} or not 0 <= _need({"decode_prior": 0.0, **ctc}, "decode_prior", float) <= 1:
        raise Foreign(f"recipe.ctc = {shown(ctc)}")
    rate = _need(recipe["data"], "sample_rate", int, "recipe.data.")
    if not RATES[0] <= rate <= RATES[1]:
        raise Foreign(f"recipe.data.sample_rate = {shown(rate)}, possible are {RATES[0]} to {RATES[1]}")
    _check_norm(recipe["norm"])
    registry.describe("text", _need(recipe["text"], "rules", str, "recipe.text."))
    registry.describe("features", _need(recipe["features"], "name", str, "recipe.features."))
    _check_features(recipe["features"].get("options"), rate)
    if not isinstance(recipe.get("layers"), list | None):
        raise Foreign("recipe.layers is not a list")
    if _count(recipe.get("layers"), "layers") > MAX_LAYERS:
        raise Foreign(f"recipe.layers are more than {MAX_LAYERS}")


def _check_norm(norm: dict[str, Any]) -> None:
    """The rules of a recipe, and bounds where these leave a number open."""
    for key, value in norm.items():
        if isinstance(value, int) and value > NORM_BOUNDS.get(key, MAX_WHOLE):
            raise Foreign(f"recipe.norm.{key} = {shown(value)}")
        try:
            RULES[f"norm.{key}"].check(f"norm.{key}", value)
        except RecipeError as error:
            raise Foreign(f"recipe.norm.{key} = {shown(value)}, possible: {error.possible}") from error


def _check_features(options: Any, rate: int) -> None:
    if not isinstance(options, dict | None):
        raise Foreign("recipe.features.options is not a mapping")
    options = options or {}
    for key, value in options.items():  # of any extractor: a guest's options are bounded as numbers
        if not isinstance(value, str | int | float | None):
            raise Foreign(f"recipe.features.options.{shown(key)} is neither a number nor a word")
        if not isinstance(value, str | None) and not abs(value) <= FEATURE_BOUNDS.get(key, RATES[1]):
            raise Foreign(f"recipe.features.options.{key} = {shown(value)}")
    defaults = {"hop_ms": 10.0, "window_ms": 25.0, "size": 80, "num_mels": 23}
    hop, window, size, mels = (_need({**defaults, **options}, key, float, "recipe.features.") for key in defaults)
    filters = max(size, mels)
    if not hop >= 1 or rate * window / 1000 * filters > MAX_FILTERS:
        raise Foreign(f"recipe.features: {filters} filters on windows of {window} ms every {hop} ms")


def _count(value: Any, key: str) -> int:
    """How many layers a part of `layers:` stands for; raises Foreign for a number that no layer needs."""
    if isinstance(value, dict):
        many = [value.get(name) for name in ("times", "layers")]
        times = math.prod(max(1, number) for number in many if isinstance(number, int))
        return times * max(1, sum(_count(inner, name) for name, inner in value.items()))
    if isinstance(value, list):
        return sum(_count(inner, key) for inner in value)
    if isinstance(value, int | float) and not abs(value) <= BOUNDS.get(key, MAX_NUMBER):
        raise Foreign(f"recipe.layers: {shown(key)} = {shown(value)}")
    return int(isinstance(value, str))  # a layer without options; numbers are no layers


def _need(section: dict[str, Any], key: str, kind: type, where: str = "") -> Any:
    if not _is(section.get(key), kind):
        raise Foreign(f"missing or malformed: {where}{key}")
    return section[key]


def _is(value: Any, kind: type) -> bool:
    """isinstance, but true is no number, a whole number will do for a float, and a float is finite."""
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind is float:
        return isinstance(value, int | float) and abs(value) < math.inf
    return isinstance(value, kind)


def read_header(file: Path) -> Header:
    """Tensor name -> (type, shape) of a safetensors file whose declared sizes add up to its real one, else
    TrustError."""
    real = file.stat().st_size
    with file.open("rb") as stream:
        first = stream.read(8)
        size = struct.unpack("<Q", first)[0] if len(first) == 8 else MAX_HEADER + 1
        if size > MAX_HEADER or size + 8 > real:
            raise _no_header(file, "its length is wrong")
        text = stream.read(size)
    try:
        header = read_json(text)
        header.pop("__metadata__", None)
        tensors = {name: _entry(name, entry) for name, entry in header.items()}
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise _no_header(file, error if isinstance(error, Foreign) else type(error).__name__) from error
    declared = sum(BYTES[kind] * math.prod(shape) for kind, shape in tensors.values())
    if 8 + size + declared != real:
        raise TrustError(
            f"{file} is {real} bytes long, its header declares {8 + size + declared}",
            fix="copy the whole folder again; if that does not help, do not use it",
            reason="tensor_file",
        )
    return tensors


def _entry(name: str, entry: dict[str, Any]) -> tuple[str, list[int]]:
    kind, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    good = isinstance(shape, list) and len(shape) <= 16 and all(_is(n, int) and 0 <= n < 1 << 48 for n in shape)
    if kind not in BYTES or not good or end - start != BYTES[kind] * math.prod(shape):
        raise Foreign(f"{shown(name)} has no possible type, shape or place")
    return kind, shape


def _no_header(file: Path, why: object) -> TrustError:
    return TrustError(f"{file} has no sane header ({why})", fix="do not use it", reason="tensor_file")


def check_architecture(recipe: dict[str, Any], num_labels: int, header: Header, path: Path) -> None:
    """Raise TrustError unless the header has exactly the tensors of the architecture, which is not allocated.

    Raises Foreign, or whatever the constructors say, for a config that builds nothing.
    """
    if not 2 <= num_labels <= MAX_LABELS:
        raise Foreign(f"{num_labels} labels")
    features = build_features(recipe)
    acoustic = _shapes(recipe, features.size, num_labels)
    encoder = acoustic.encoder
    assert isinstance(encoder, Encoder)
    widest = max(module.output_size for module in encoder.modules() if isinstance(module, Layer | Encoder))
    frames = features.num_frames(features.sample_rate)
    if widest > MAX_WIDTH or encoder.num_frames(frames) > 4 * frames + 1000:
        raise Foreign("recipe.layers give more features or frames than any model has")
    _compare(header, acoustic.state_dict(), path)


class _NoNumbers(TorchFunctionMode):
    """New tensors have shapes and no memory. Counting tensors (arange, linspace) stay real: constructors read them."""

    FACTORIES = frozenset({torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.eye})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in self.FACTORIES and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _shapes(recipe: dict[str, Any], size: int, num_labels: int) -> AcousticModel:
    def build() -> AcousticModel:
        prior = (recipe.get("ctc") or {}).get("decode_prior", 0.0)
        return AcousticModel(CMVN(size=size, **recipe["cmvn"]), None, build_encoder(recipe, size), num_labels, prior)

    try:
        with _NoNumbers():
            return build()
    except (RuntimeError, AsrkitError) as error:
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        if not isinstance(root, RuntimeError) or "meta" not in str(root):
            raise
    return build()  # a guest's constructor looks at its numbers, so it has to get some


def _compare(header: Header, expected: dict[str, Tensor], path: Path) -> None:
    problems = [f"{name} is missing" for name in expected if name not in header]
    problems += [f"{shown(name)} is not in this architecture" for name in header if name not in expected]
    for name, tensor in expected.items():
        wanted = (TYPES.get(tensor.dtype, "?"), list(tensor.shape))
        if name in header and header[name] != wanted:
            kind, shape = header[name]
            problems.append(f"{name} has shape {shape} and type {kind}, the architecture {wanted[1]} and {wanted[0]}")
    if problems:
        raise TrustError(
            f"{path}/model.safetensors does not fit its config: {problems[0]} ({len(problems)} differences)",
            fix="use the model with the asrkit and plugin versions named in config.json",
            reason="tensor_shapes",
        )
