"""From log-probabilities to label sequences. A decoder is a plugin; greedy is built in, and so is asrkit.beam."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asrkit import registry
from asrkit.ctc import BLANK
from asrkit.errors import RecipeError, TrustError, nearest
from asrkit.tokenizers import Tokenizer

FOREIGN_NUMBER = 10_000  # the largest option that a stranger's model may ask for


@dataclass(frozen=True)
class Hypothesis:
    """One decoded label sequence.

    labels: ids without blanks. score: log-probability of the path, in nats; of a search, what it maximizes. starts,
    ends: first frame and the frame after the last of each label, in encoder frames. confidences: per label, the highest
    posterior among its frames.
    """

    labels: tuple[int, ...]
    score: float
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    confidences: tuple[float, ...]


class Decoder:
    """Contract: `decoder(log_probs (B, T', V), lengths (B,)) -> one n-best list of hypotheses per utterance`.

    The keyword arguments of `__init__` are the options that recipes and `--decoder-options` may give; one called
    `tokenizer` gets that of the model. Those named in `files` are paths.
    """

    files: tuple[str, ...] = ()

    asrkit_api = 1

    def __call__(self, log_probs: Tensor, lengths: Tensor) -> list[list[Hypothesis]]:
        raise NotImplementedError


class GreedyDecoder(Decoder):
    """The best label of every frame, repeats merged, blanks removed (best-path decoding, Graves et al. 2006, section
    3.2)."""

    def __call__(self, log_probs: Tensor, lengths: Tensor) -> list[list[Hypothesis]]:
        best, path = log_probs.max(-1)
        best, path, lengths = best.cpu(), path.cpu(), lengths.cpu()
        return [[collapse(path[i, :length], best[i, :length])] for i, length in enumerate(lengths.tolist())]


def collapse(path: Tensor, best: Tensor) -> Hypothesis:
    """One path (T',) and its log-probabilities (T',) -> labels with their frames, and the path's score."""
    if path.numel() == 0:
        return Hypothesis((), 0.0, (), (), ())
    labels, counts = torch.unique_consecutive(path, return_counts=True)
    ends = counts.cumsum(0)
    starts = ends - counts
    kept = [
        (label, start, end)
        for label, start, end in zip(labels.tolist(), starts.tolist(), ends.tolist(), strict=True)
        if label != BLANK
    ]
    confidences = tuple(float(best[start:end].max().exp()) for _, start, end in kept)
    return Hypothesis(
        labels=tuple(label for label, _, _ in kept),
        score=float(best.sum()),
        starts=tuple(start for _, start, _ in kept),
        ends=tuple(end for _, _, end in kept),
        confidences=confidences,
    )


def best_paths(log_probs: Tensor, lengths: Tensor) -> tuple[list[list[int]], int]:
    """Greedy labels of a batch, and how many of its real frames are blank: the cheap half of GreedyDecoder for
    training."""
    path = log_probs.argmax(-1).cpu()
    lengths = lengths.cpu()
    sequences, blanks = [], 0
    for i, length in enumerate(lengths.tolist()):
        frames = path[i, :length]
        blanks += int((frames == BLANK).sum())
        sequences.append([label for label in torch.unique_consecutive(frames).tolist() if label != BLANK])
    return sequences, blanks


def build_decoder(
    decoder: str | Mapping[str, Any] | Decoder, tokenizer: Tokenizer, inside: Path | None = None
) -> Decoder:
    """The decoder of a name, of settings {name, options} as recipes have them, or the one given.

    inside: paths among the options must lie in this folder, and are relative to it: a foreign model may bring a
    language model, but not name files of its reader. Raises RecipeError for an unknown name or option, TrustError
    (`decoder_file`) for a path that leaves the folder.
    """
    if inside is not None:
        _check_foreign(decoder, inside)
    elif not isinstance(decoder, str | Mapping):
        return decoder
    settings: Mapping[str, Any] = decoder if isinstance(decoder, Mapping) else {"name": decoder}
    cls, options, parameters = check_options(settings)
    if inside is not None:
        options |= {key: _inside(inside, str(options[key])) for key in getattr(cls, "files", ()) if key in options}
    if "tokenizer" in parameters:
        options["tokenizer"] = tokenizer
    return cls(**options)


def check_options(settings: Mapping[str, Any]) -> tuple[type, dict[str, Any], Mapping[str, inspect.Parameter]]:
    """The class of settings {name, options}, the options that are not null, and the parameters of the class.

    Raises RecipeError: `unknown_key` for another setting, `unknown_decoder`, or `unknown_option` for an option that is
    no parameter.
    """
    for key in settings:
        if key not in ("name", "options"):
            raise RecipeError(
                f"decoder setting {key!r}", possible=nearest(key, ("name", "options")), reason="unknown_key"
            )
    name = settings.get("name", "greedy")
    cls = registry.load("decoders", name)
    options = {key: value for key, value in (settings.get("options") or {}).items() if value is not None}
    parameters = inspect.signature(cls).parameters if cls.__init__ is not object.__init__ else {}
    offered = sorted(parameters.keys() - {"tokenizer"})
    open_ended = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    for option in options:
        if option not in offered and not open_ended:
            raise RecipeError(
                f"decoder {name!r} has no option {option!r}",
                possible=nearest(option, offered) if offered else "no options at all",
                fix=None if offered else "take a decoder that has, such as beam",
                reason="unknown_option",
            )
    return cls, options, parameters


def _check_foreign(settings: Any, folder: Path) -> None:
    """TrustError (`decoder`) unless these are a name with numbers, texts or tables of them, within bounds."""
    settings = {"name": settings} if isinstance(settings, str) else settings
    right = isinstance(settings, Mapping) and isinstance(settings.get("name", "greedy"), str)
    options = (settings.get("options") or {}) if right else {}
    right = right and isinstance(options, Mapping) and all(map(_is_plain, options.values()))
    if not right:
        raise TrustError(
            f"{folder}: the decoder of this model is not a name with options",
            fix="do not use it, or say yourself how to decode: --decoder greedy",
            reason="decoder",
        )


def _is_plain(value: Any, depth: int = 0) -> bool:
    if isinstance(value, Mapping | list) and not depth:
        inner = [*value, *value.values()] if isinstance(value, Mapping) else value
        return len(inner) <= FOREIGN_NUMBER and all(_is_plain(one, 1) for one in inner)
    if isinstance(value, int | float):
        return abs(value) <= FOREIGN_NUMBER
    return value is None or (isinstance(value, str) and len(value) <= FOREIGN_NUMBER)


def _inside(folder: Path, name: str) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise TrustError(
            f"{folder} names a file outside of itself for its decoder: {name!r}",
            fix="say yourself how to decode: --lm FILE, --decoder-options FILE or --decoder greedy",
            reason="decoder_file",
        )
    return path
