"""CTCModel: waveforms -> features -> encoder -> log-probabilities, and how a recipe becomes one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from asrkit import registry
from asrkit.ctc import BLANK, CTCHead
from asrkit.defects import defects_of, features_section, install
from asrkit.encoders import Encoder, NormOptions
from asrkit.errors import AsrkitError, RecipeError
from asrkit.features import CMVN, FeatureExtractor
from asrkit.features.augment import SpecAugment
from asrkit.objective import Objective, make_objective
from asrkit.randomness import kept_generators


class AcousticModel(nn.Module):
    """Features (B, T, F) and lengths (B,) -> log-probabilities (B, T', V) and lengths (B,): all that is trained."""

    def __init__(
        self,
        cmvn: CMVN,
        spec_augment: SpecAugment | None,
        encoder: Encoder,
        num_labels: int,
        decode_prior: float = 0.0,
    ) -> None:
        super().__init__()
        self.cmvn = cmvn
        self.spec_augment = spec_augment or nn.Identity()
        self.encoder = encoder
        self.head = CTCHead(encoder.output_size, num_labels, decode_prior)
        self.objective: Objective | None = None  # what the recipe adds to the CTC loss

    def forward(
        self, features: Tensor, lengths: Tensor, statistics: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """statistics: what CMVN takes where `features` are windows of longer utterances."""
        features = self.cmvn(features, lengths, statistics)
        if isinstance(self.spec_augment, SpecAugment):
            features = self.spec_augment(features, lengths)
        encoded, lengths = self.encoder(features, lengths)
        return self.head(encoded), lengths


class CTCModel(nn.Module):
    """The whole way: waveforms (B, S) and lengths (B,) in samples -> log-probabilities (B, T', V) and lengths (B,)."""

    def __init__(self, features: FeatureExtractor, acoustic: AcousticModel) -> None:
        super().__init__()
        self.features = features
        self.acoustic = acoustic

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        features, lengths = self.features(waveforms, lengths)
        return self.acoustic(features, lengths)

    def num_frames(self, samples: Any) -> Any:
        """Samples -> T', exact, for an integer or an integer tensor."""
        return self.acoustic.encoder.num_frames(self.features.num_frames(samples))

    @property
    def frame_seconds(self) -> float:
        """Seconds between two output frames."""
        # A difference, so that edges do not count, over a number of frames that every product of usual strides divides.
        start = 720720
        frames, count = start**2, self.acoustic.encoder.num_frames
        return self.features.frame_seconds * (frames / (count(start + frames) - count(start)))


def build_features(recipe: dict[str, Any]) -> FeatureExtractor:
    """The feature extractor that the recipe's `features:` and `data.sample_rate` describe."""
    section = features_section(recipe)
    options = dict(section.get("options") or {})
    return _construct("features", section["name"], sample_rate=recipe["data"]["sample_rate"], **options)


CONTRACT = "a subclass of asrkit.Encoder: forward(x (B, T, F), lengths (B,)), num_frames(T), output_size = D"


def encoder_class(name: str) -> type[Encoder]:
    """The class registered as encoder `name`. Raises RecipeError (`encoder_contract`) if it is no asrkit.Encoder."""
    cls = registry.load("encoders", name)
    if not (isinstance(cls, type) and issubclass(cls, Encoder)):
        raise RecipeError(f"encoders: {name} is {cls!r}", possible=CONTRACT, reason="encoder_contract")
    return cls


def build_encoder(recipe: dict[str, Any], input_size: int) -> Encoder:
    """The encoder plugin that the recipe names, over its `layers:`.

    Raises RecipeError (`encoder_contract`) for a class that is no Encoder or has no output size, `plugin_option` for
    options that it does not take, `broken_plugin` for any other exception of its constructor.
    """
    cls = encoder_class(recipe["encoder"])
    norm = {key: value for key, value in recipe["norm"].items() if key != "batch"}
    layers = recipe.get("layers") or []
    encoder = _construct("encoders", recipe["encoder"], input_size=input_size, layers=layers, norm=NormOptions(**norm))
    size = getattr(encoder, "output_size", None)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise RecipeError(
            f"encoders: {recipe['encoder']} ({cls.__module__}.{cls.__qualname__}) has output_size = {size!r}",
            possible=CONTRACT,
            fix="set output_size in its __init__",
            reason="encoder_contract",
        )
    return encoder


def build_model(recipe: dict[str, Any], num_labels: int) -> CTCModel:
    """The model of a resolved recipe, its weights drawn from the recipe's seed alone.

    All encoders of one recipe and seed start from the same weights outside their norms.
    """
    with kept_generators():
        torch.default_generator.manual_seed(recipe["seed"])  # weights are drawn on the CPU; GPUs are left alone
        features = build_features(recipe)
        cmvn = _construct_cmvn(recipe["cmvn"], features.size)
        augment = _construct_augment(recipe.get("spec_augment"))
        section = recipe.get("ctc") or {}  # a recipe of before it, or a saved model, has none
        encoder = build_encoder(recipe, features.size)
        acoustic = AcousticModel(cmvn, augment, encoder, num_labels, float(section.get("decode_prior") or 0.0))
        acoustic.objective = make_objective(section, encoder, num_labels)
    install(acoustic, defects_of(recipe), recipe["seed"])
    if bias := section.get("blank_bias"):
        with torch.no_grad():
            acoustic.head.linear.bias[BLANK] += bias
    return CTCModel(features, acoustic)


def _construct(kind: str, name: str, **options: Any) -> Any:
    cls = registry.load(kind, name)
    full_name = f"{getattr(cls, '__module__', '?')}.{getattr(cls, '__qualname__', cls)}"
    try:
        return cls(**options)
    except AsrkitError:
        raise
    except TypeError as error:
        raise RecipeError(
            f"{kind}: {name} does not take these options ({error})",
            fix=f"see `help({full_name})` for what it takes",
            reason="plugin_option",
        ) from error
    except Exception as error:
        raise RecipeError(
            f"{kind}: {name} ({full_name}) cannot be built: {type(error).__name__}: {error}",
            fix="mend or leave out the plugin; with --debug you see where it fails",
            reason="broken_plugin",
        ) from error


def _construct_cmvn(options: dict[str, Any], size: int) -> CMVN:
    try:
        return CMVN(size=size, **options)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"cmvn: {error}", possible="mode: utterance, global or none", reason="cmvn") from error


def _construct_augment(options: dict[str, Any] | None) -> SpecAugment | None:
    if not options:
        return None
    try:
        return SpecAugment(**options)
    except TypeError as error:
        raise RecipeError(f"spec_augment: {error}", reason="spec_augment") from error


def parameter_count(module: nn.Module) -> int:
    """Trainable numbers of a module."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
