"""What a study's file may say: its keys with their defaults, which values they take, and what cannot work together."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from asrkit.errors import RecipeError
from asrkit.recipe import ANY, REQUIRED, load_recipe
from asrkit.recipe.overrides import parse_option
from asrkit.recipe.validation import FLAG, Rule, number, optional, whole
from asrkit.recipe.vetting import Node

STUDY_SCHEMA: dict[str, Any] = {
    "name": None,  # names the study's folder; the file's name where it is missing
    "recipes": REQUIRED,  # files, relative to the study's
    "encoders": REQUIRED,
    "baseline": None,  # the encoder that a report compares every other one with; all pairs where it is missing
    "overrides": ANY,  # dotted path -> value, for every cell
    "axes": ANY,  # name -> value's name -> overrides
    "lr": REQUIRED,  # the grid, the same for every arm; each arm's is chosen on dev
    "lr_seeds": 1,  # with so many of the seeds, the first
    "seeds": [1, 2, 3],
    "test": True,  # the test split is decoded once, with the chosen learning rate
    "keep_checkpoints": False,  # of cells that are done; their models stay in any case
    "budget": {
        "minutes": None,  # of one call; what is not done then is done by the next
        "processes": 1,  # cells at a time
        "threads": 1,  # of each
        "gpus": None,  # cells take turns on so many; null: each sees what this process sees
    },
}
# What the study itself sets in every cell.
RESERVED = {"encoder": "encoders", "seed": "seeds", "training.lr": "lr", "name": "recipes"}
NAME = re.compile(r"[^\W_][\w.+]*(-[\w.+]+)*")
NAMING = "use letters, digits, single - and _ . +, beginning with a letter or digit"


def _names(value: Any) -> bool:
    return _filled(value) and all(isinstance(one, str) and one.strip() for one in value)


def _filled(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and len({json.dumps(one) for one in value}) == len(value)


def _rates(value: Any) -> bool:
    rule = number(0, above=True)
    return _filled(value) and all(rule.accepts(one) for one in value) and len(set(value)) == len(value)


def _seeds(value: Any) -> bool:
    rule = whole(0, 2**63 - 1)
    return _filled(value) and all(rule.accepts(one) for one in value)


def _options(value: Any) -> bool:
    return isinstance(value, Mapping)


RULES: dict[str, Rule] = {
    "recipes": Rule("a list of different files such as [model1.yaml, model3.yaml]", _names),
    "encoders": Rule("a list of different names such as [none, layer_norm]", _names),
    "baseline": Rule("a name such as none", lambda value: isinstance(value, str), nullable=True),
    "overrides": Rule("a mapping such as {width: 96, training.epochs: 12}", _options, nullable=True),
    "axes": Rule('a mapping such as {depth: {"3": {layers.0.repeat.times: 3}}}', _options, nullable=True),
    "lr": Rule("a list of different numbers above 0 such as [5.0e-4, 1.0e-3]", _rates),
    "lr_seeds": whole(1),
    "seeds": Rule("a list of different whole numbers from 0 such as [1, 2, 3]", _seeds),
    "test": FLAG,
    "keep_checkpoints": FLAG,
    "budget.minutes": optional(number(0, above=True)),
    "budget.processes": whole(1),
    "budget.threads": whole(1),
    "budget.gpus": whole(1, nullable=True),
}


def read_definition(path: Path, overrides: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """A study's file with all defaults, checked.

    overrides: (dotted path, YAML text). Those that begin with a key of the study change it, all others come to its
    `overrides:`. Raises RecipeError for a value or a combination that cannot work.
    """
    own = [(key, text) for key, text in overrides if key.split(".")[0] in STUDY_SCHEMA]
    definition = _definition(path, own)
    definition["name"] = str(definition["name"] or path.stem)
    for key, text in overrides:
        if key.split(".")[0] not in STUDY_SCHEMA:
            definition.setdefault("overrides", None)
            definition["overrides"] = {**(definition["overrides"] or {}), key: _data(parse_option(key, text))}
    _check(definition)
    return definition


def _definition(path: Path, overrides: Sequence[tuple[str, str]]) -> dict[str, Any]:
    if path.is_dir():
        raise RecipeError(
            f"{path} is a folder", fix="give the study's file; --output says where it is done", reason="missing_recipe"
        )
    try:
        return load_recipe(path, overrides, known=STUDY_SCHEMA)
    except RecipeError as error:
        if error.reason == "unknown_key":
            what = error.what.replace("is not a key of a recipe", "is not a key of a study")
            raise RecipeError(what, possible=error.possible, fix=error.fix, reason=error.reason) from None
        if error.reason != "missing_value":
            raise
        raise RecipeError(
            f"{path.name} is no whole study: {error.what}",
            fix="a study has recipes:, encoders: and lr:, such as recipes/demo_study.yaml; one recipe is for `asrkit "
            "train`",
            reason="missing_value",
        ) from error


def _data(node: Node) -> Any:
    """What an option holds, as plain data."""
    if isinstance(node.value, dict):
        return {key: _data(child) for key, child in node.value.items()}
    return [_data(child) for child in node.value] if isinstance(node.value, list) else node.value


def _check(definition: dict[str, Any]) -> None:
    for key, rule in RULES.items():
        value: Any = definition
        for part in key.split("."):
            value = value.get(part)
        if not (value is None and key in ("overrides", "axes")):
            rule.check(key, value)
    if not NAME.fullmatch(definition["name"]):
        raise RecipeError(f"name {definition['name']!r} cannot name a folder", fix=NAMING, reason="folder_name")
    _check_axes(definition.get("axes") or {})
    if definition["baseline"] not in (None, *definition["encoders"]):
        raise RecipeError(
            f"baseline = {definition['baseline']!r}, which is no encoder of this study", reason="value",
            possible=", ".join(definition["encoders"]), fix="take one of them, or --baseline=null for all pairs",
        )  # fmt: skip
    if definition["lr_seeds"] > len(definition["seeds"]):
        raise RecipeError(
            f"lr_seeds = {definition['lr_seeds']}, and the number of seeds is {len(definition['seeds'])}",
            reason="value", possible=f"1 to {len(definition['seeds'])}", fix="add seeds, or take fewer lr_seeds",
        )  # fmt: skip
    _check_options(definition)


def _check_axes(axes: Mapping[str, Any]) -> None:
    """Names that can be part of a folder's, and under each of them values with names and settings."""
    example = '{"3": {layers.0.repeat.times: 3}, "5": {layers.0.repeat.times: 5}}'
    for axis, values in axes.items():
        for place, name in [("axes", axis), *((f"axes.{axis}", one) for one in (values if _options(values) else ()))]:
            if not NAME.fullmatch(str(name)):
                raise RecipeError(f"{place}: {name!r} cannot be part of a folder's name", fix=NAMING, reason="value")
        if not _options(values) or not values:
            raise RecipeError(
                f"axes.{axis} = {values!r}", possible=f"a mapping from names of values to settings: {example}",
                fix="name every value of the axis and say what it sets", reason="value",
            )  # fmt: skip
        for value, options in values.items():
            if not (options is None or _options(options)):
                raise RecipeError(
                    f"axes.{axis}.{value} = {options!r}",
                    possible="a mapping from keys of a recipe to values, such as {layers.0.repeat.times: 3}",
                    fix="say which key of the recipe has this value", reason="value",
                )  # fmt: skip


def _check_options(definition: dict[str, Any]) -> None:
    """Refuse settings that the study makes itself, those that no cell would have, and two axes that set one thing."""
    axes = definition.get("axes") or {}
    places = {"overrides": set(definition.get("overrides") or {})}
    for axis, values in axes.items():
        places[f"axes.{axis}"] = {key for options in values.values() for key in options or {}}
    for place, keys in places.items():
        for key in keys & set(RESERVED):
            raise RecipeError(
                f"{place} sets {key}, which the study sets itself", fix=f"use `{RESERVED[key]}:`", reason="reserved"
            )
    for axis, values in axes.items():
        for key in places["overrides"].intersection(*(options or {} for options in values.values())):
            raise RecipeError(
                f"overrides sets {key}, and no cell would have it: every value of axes.{axis} sets it too",
                fix=f"leave it out, or take other values into axes.{axis}",
                reason="axes_overlap",
            )
    names = [place for place in places if place != "overrides"]
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            for a, b in product(places[one], places[other]):
                if f"{a}.".startswith(f"{b}.") or f"{b}.".startswith(f"{a}."):
                    raise RecipeError(
                        f"{one} and {other} both set {min(a, b, key=len)}",
                        fix="make one axis of them, or let each set keys of its own",
                        reason="axes_overlap",
                    )
