"""What the values of a recipe may be: one table with a rule for every key of the schema, checked before any work.

Nothing here imports torch or a plugin: a misspelled name or an impossible number is found in milliseconds. What a
recipe leaves free (the layers, a plugin's options) is checked by whoever builds from it.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from asrkit import registry
from asrkit.errors import RecipeError, nearest
from asrkit.recipe.schema import DEFECTS

_MISSING = object()
ORDERS = ("bucketed", "ascending", "random", "file")  # as asrkit.batching, which imports torch
_NO_NAME = re.compile(r"[/\\\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Rule:
    """What one key may hold: `accepts(value)`, and `possible` in words. `names`: a plugin's name, of this kind."""

    possible: str
    accepts: Callable[[Any], bool]
    nullable: bool = False
    names: str | None = None
    choices: tuple[str, ...] = ()

    def check(self, key: str, value: Any) -> None:
        """RecipeError (reason `value`, or `unknown_...` for a plugin's name) unless `value` may stand at `key`."""
        if value is None and self.nullable:
            return
        if not self.accepts(value):
            possible = nearest(str(value), self.choices) if self.choices else self.possible
            raise RecipeError(
                f"{key} = {value!r}",
                possible=f"{possible}, or null" if self.nullable else possible,
                fix=_quotes(self, value),
                reason="value",
            )
        if self.names:
            try:
                registry.describe(self.names, value)
            except RecipeError as error:
                raise RecipeError(
                    f"{key}: {error.what}", possible=error.possible, fix=error.fix, reason=error.reason
                ) from error


def _quotes(rule: Rule, value: Any) -> str | None:
    """What to say where the value would do with quotes, or without them; None where it would not."""
    if isinstance(value, str):
        for kind in (int, float):
            with contextlib.suppress(ValueError):
                if rule.accepts(kind(value)):
                    return f"write {value.strip()} without quotes"
    elif isinstance(value, int | float) and not isinstance(value, bool) and rule.accepts(str(value)):
        return f"write '\"{value}\"', a text, in quotes"
    return None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_name(value: Any) -> bool:
    """The name of one folder, which stays below `runs/` whatever a recipe calls itself."""
    if isinstance(value, str):
        return bool(value.strip()) and not value.startswith(".") and len(value) <= 100 and not _NO_NAME.search(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def _is_replacements(value: Any) -> bool:
    return _is_mapping(value) and all(key and isinstance(text, str) for key, text in value.items())


def _is_betas(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(_is_number(b) and 0 <= b < 1 for b in value)


def _is_speeds(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(_is_number(s) and 0.5 <= s <= 2 for s in value)


def _is_decibels(value: Any) -> bool:
    two = isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value))
    return two and -100 <= value[0] <= value[1] <= 100


def _is_device(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", value) is not None


def _is_places(value: Any) -> bool:
    rule = whole(1)
    return (
        isinstance(value, list)
        and bool(value)
        and len(set(map(str, value))) == len(value)
        and all(map(rule.accepts, value))
    )


def _is_defects(value: Any) -> bool:
    known = isinstance(value, list) and all(isinstance(name, str) and name in DEFECTS for name in value)
    return known and len(set(value)) == len(value)


def whole(low: int, high: int | None = None, nullable: bool = False) -> Rule:
    """A whole number from `low` (to `high`); true and 3.0 are none."""
    words = f"a whole number from {low}" + (f" to {high}" if high is not None else "")

    def accepts(value: Any) -> bool:
        right = isinstance(value, int) and not isinstance(value, bool)
        return right and value >= low and (high is None or value <= high)

    return Rule(words, accepts, nullable)


def number(low: float, high: float | None = None, *, above: bool = False, below: bool = False) -> Rule:
    """A finite number from `low` (`above`: itself excluded), to `high` (`below`: itself excluded)."""
    words = f"a number {'above' if above else 'from'} {low:g}"
    if high is not None:
        words += f" {'and below' if below else 'to'} {high:g}"

    def accepts(value: Any) -> bool:
        if not _is_number(value) or (value <= low if above else value < low):
            return False
        return high is None or (value < high if below else value <= high)

    return Rule(words, accepts)


def optional(rule: Rule) -> Rule:
    """The same rule, or null."""
    return Rule(rule.possible, rule.accepts, True, rule.names, rule.choices)


def one_of(*choices: str) -> Rule:
    """One of these words."""
    return Rule(", ".join(choices), lambda value: isinstance(value, str) and value in choices, choices=choices)


def plugin(kind: str) -> Rule:
    """A name that `asrkit plugins --kind KIND` prints."""
    return Rule(f"a name of kind {kind}, see `asrkit plugins`", _is_text, names=kind)


FLAG = Rule("true or false", lambda value: isinstance(value, bool))
TEXT = Rule("a text", _is_text)
OPTIONS = Rule("a mapping such as {size: 80}", _is_mapping, nullable=True)
SHARE = number(0, 1)
DECIBELS = Rule("two numbers [low, high] from -100 to 100", _is_decibels)

# Every key of asrkit.recipe.schema.SCHEMA; tests/test_validation.py counts them.
RULES: dict[str, Rule] = {
    "name": Rule("a name of a folder: no slashes, no dot at its beginning", _is_name, nullable=True),
    "encoder": plugin("encoders"),
    "seed": whole(0, 2**63 - 1),
    "layers": Rule("a list such as [norm, {bigru: 512}, {dropout: 0.2}]", lambda value: isinstance(value, list)),
    "data.root": optional(TEXT),
    "data.format": optional(plugin("corpora")),
    "data.language": optional(TEXT),
    "data.train": TEXT,
    "data.dev": optional(TEXT),
    "data.test": optional(TEXT),
    "data.column": optional(TEXT),
    "data.reported": one_of("keep", "drop"),
    "data.segments": one_of("all", "no_benchmark"),
    "data.hours": optional(number(0, above=True)),
    "data.subset_seed": whole(0),
    "data.max_utterances": whole(1, nullable=True),
    "data.max_seconds": number(0, above=True),
    "data.on_truncated": one_of("drop", "keep"),
    "data.max_bad": SHARE,
    "data.allow_shared_speakers": FLAG,
    "data.sample_rate": whole(1),
    "data.licence": optional(TEXT),
    "data.cache": TEXT,
    "text.rules": plugin("text"),
    "text.tokenizer": plugin("tokenizers"),
    "text.options": OPTIONS,
    "text.unknown": one_of("error", "drop", "map"),
    "text.map": Rule('a mapping from text to text such as {"%": " por ciento"}', _is_replacements, nullable=True),
    "features.name": plugin("features"),
    "features.options": OPTIONS,
    "cmvn.mode": one_of("utterance", "global", "none"),
    "cmvn.std": FLAG,
    "augment.speed": Rule("a list of speeds from 0.5 to 2 such as [0.9, 1.0, 1.1]", _is_speeds, nullable=True),
    "augment.noise.share": SHARE,
    "augment.noise.snr_db": DECIBELS,
    "augment.noise.folder": optional(TEXT),
    "augment.gain_db": optional(DECIBELS),
    "spec_augment": Rule("a mapping such as {freq_masks: 2, time_masks: 2}", _is_mapping, nullable=True),
    "norm.eps": number(0, above=True),
    "norm.affine": FLAG,
    "norm.momentum": Rule("a number above 0 to 1", number(0, 1, above=True).accepts),
    "norm.min_count": whole(1),
    "norm.max_steps": whole(1),
    "norm.allow_batch_of_one": FLAG,
    "norm.masked": FLAG,
    "norm.groups": whole(1),
    "norm.gain": number(0, above=True),
    "norm.renorm_r": number(1),
    "norm.renorm_d": number(0),
    "norm.renorm_warmup": whole(0),
    "norm.batch": one_of("update", "micro"),
    "ctc.blank_bias": Rule("a number from -20 to 20", number(-20, 20).accepts),
    "ctc.label_prior": SHARE,
    "ctc.decode_prior": SHARE,
    "ctc.intermediate.weight": number(0, 1, below=True),
    "ctc.intermediate.after": Rule(
        "a list of different whole numbers from 1 such as [4, 8]", _is_places, nullable=True
    ),
    "decoder.name": plugin("decoders"),
    "decoder.options": OPTIONS,
    "defects": Rule(f"a list of {', '.join(DEFECTS)}", _is_defects),
    "training.epochs": whole(1),
    "training.optimizer": one_of("adam", "adamw", "sgd"),
    "training.lr": number(0, above=True),
    "training.weight_decay": number(0),
    "training.betas": Rule("a list of two numbers from 0 and below 1 such as [0.9, 0.999]", _is_betas),
    "training.momentum": number(0, 1, below=True),
    "training.schedule": one_of("constant", "onecycle", "warmup"),
    "training.warmup_share": SHARE,
    "training.hold_share": SHARE,
    "training.final_share": SHARE,
    "training.anneal": one_of("cosine", "linear"),
    "training.clip": optional(number(0, above=True)),
    "training.batch_frames": whole(1, nullable=True),
    "training.batch_size": whole(1, nullable=True),
    "training.order": one_of(*ORDERS),
    "training.first_epoch": optional(one_of(*ORDERS)),
    "training.accumulation": whole(1),
    "training.precision": one_of("fp32", "bf16", "fp16"),
    "training.device": Rule("auto, cpu, cuda, cuda:0, cuda:1, ...", _is_device),
    "training.early_stopping": whole(1, nullable=True),
    "training.evaluate_every": whole(1),
    "training.max_nonfinite": whole(1),
    "training.workers": whole(0),
    "training.worker_timeout": number(0, above=True),
    "training.checkpoint_every": whole(1),
    "training.checkpoint_minutes": number(0),
    "training.keep_last": whole(1),
    "training.keep_best": whole(1),
    "training.tensorboard": FLAG,
    "training.curves": FLAG,
}

# Below the free sections, where the options are the same for everyone.
INNER_RULES: dict[str, Rule] = {
    "spec_augment.freq_masks": whole(0),
    "spec_augment.freq_width": whole(0),
    "spec_augment.time_masks": whole(0),
    "spec_augment.time_width": whole(0),
    "spec_augment.time_share": SHARE,
    "spec_augment.fill": Rule("a number", _is_number),
}


def validate(recipe: Mapping[str, Any]) -> None:
    """Check types, ranges, choices and names of a resolved recipe; keys that it lacks are not asked for.

    Raises RecipeError (exit 2) with key, value and what is possible: reason `value`, `unknown_...` for a name that no
    installed package offers, `layers` for a recipe without layers, `batch` without a size of batches. Imports no
    plugin.
    """
    for key, rule in (RULES | INNER_RULES).items():
        value = _look_up(recipe, key)
        if value is not _MISSING and not (key == "layers" and not value):
            rule.check(key, value)
    if not recipe.get("layers"):
        raise RecipeError(
            "the recipe has no layers", fix="add `layers:`, see recipes/demo.yaml for an example", reason="layers"
        )
    if all(_look_up(recipe, f"training.{key}") is None for key in ("batch_frames", "batch_size")):
        raise RecipeError(
            "neither training.batch_frames nor training.batch_size is set", fix="set one of them", reason="batch"
        )


def _look_up(recipe: Mapping[str, Any], key: str) -> Any:
    value: Any = recipe
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _MISSING
        value = value[part]
    return value
