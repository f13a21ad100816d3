"""A study file -> its cells: what is trained, with which settings, and what may not differ between the arms.

A study file is read like a recipe (asrkit.recipe: vetted, plain data). An arm is a recipe, one value of every further
axis, and an encoder; a cell is an arm with a learning rate and a seed: one run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from asrkit.errors import RecipeError
from asrkit.recipe import ANY, REQUIRED, load_recipe
from asrkit.recipe.overrides import parse_option
from asrkit.recipe.schema import SCHEMA as RECIPE_SCHEMA
from asrkit.recipe.validation import FLAG, Rule, number, optional, validate, whole
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
# A cell draws no pictures of its own; both can be switched on in `overrides`.
QUIET = (("training.tensorboard", "false"), ("training.curves", "false"))
NAME = re.compile(r"[^\W_][\w.+]*(-[\w.+]+)*")
PICKS = ("training.tensorboard", "training.curves", "training.checkpoint_minutes", "data.root", "data.cache")
"""Settings that are no part of a cell's identity: where the data lie (their hashes are compared), what is drawn."""


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


def _axes(value: Any) -> bool:
    return _options(value) and all(
        NAME.fullmatch(axis) and _options(values) and values and all(map(NAME.fullmatch, values))
        and all(options is None or _options(options) for options in values.values())
        for axis, values in value.items()
    )  # fmt: skip


RULES: dict[str, Rule] = {
    "recipes": Rule("a list of different files such as [model1.yaml, model3.yaml]", _names),
    "encoders": Rule("a list of different names such as [none, layer_norm]", _names),
    "baseline": Rule("a name such as none", lambda value: isinstance(value, str), nullable=True),
    "overrides": Rule("a mapping such as {width: 96, training.epochs: 12}", _options, nullable=True),
    "axes": Rule('a mapping such as {depth: {"3": {layers.0.repeat.times: 3}}}', _axes, nullable=True),
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


@dataclass(frozen=True)
class Cell:
    """One run of a study; `settings` is its resolved recipe."""

    recipe: str
    axes: dict[str, str]
    encoder: str
    lr: float
    seed: int
    settings: dict[str, Any] = field(repr=False)

    @property
    def arm(self) -> str:
        """What learning rates are chosen for, and what a report compares."""
        return "--".join([self.context, self.encoder])

    @property
    def context(self) -> str:
        """Arms of one context differ in their encoder only."""
        return "--".join([self.recipe, *(f"{axis}-{value}" for axis, value in self.axes.items())])

    @property
    def group(self) -> str:
        """Cells of one group start from the same weights and see the same batches."""
        return f"{self.context}--seed-{self.seed}"

    @property
    def id(self) -> str:
        """The name of the cell's folder."""
        return f"{self.arm}--lr-{self.lr!r}--seed-{self.seed}"


@dataclass(frozen=True)
class Study:
    """A study that has been read: `definition` is its file with all defaults, `cells` all that it could train."""

    name: str
    file: Path
    definition: dict[str, Any]
    sources: dict[str, str] = field(repr=False)
    cells: list[Cell] = field(repr=False)

    @property
    def arms(self) -> dict[str, list[Cell]]:
        """The cells of every arm, in the order of the file."""
        found: dict[str, list[Cell]] = {}
        for cell in self.cells:
            found.setdefault(cell.arm, []).append(cell)
        return found

    @property
    def tuning_seeds(self) -> list[int]:
        """The seeds that learning rates are chosen with."""
        return self.definition["seeds"][: self.definition["lr_seeds"]]


def load_study(path: str | Path, overrides: Sequence[tuple[str, str]] = ()) -> Study:
    """Read a study and resolve the recipe of every cell.

    overrides: (dotted path, YAML text). Those that begin with a key of the study change the study, such as
    ("budget.minutes", "60"); all others are settings of the recipes, after the ones in `overrides:`.

    Raises RecipeError for a value or a combination that cannot work, and as `asrkit.recipe.load_recipe` does.
    """
    path = Path(path)
    own = [(key, text) for key, text in overrides if key.split(".")[0] in STUDY_SCHEMA]
    definition = _definition(path, own)
    definition["name"] = str(definition["name"] or path.stem)
    for key, text in overrides:
        if key.split(".")[0] not in STUDY_SCHEMA:
            definition.setdefault("overrides", None)
            definition["overrides"] = {**(definition["overrides"] or {}), key: _data(parse_option(key, text))}
    _check(definition)
    sources, cells = {}, []
    for name in definition["recipes"]:
        file = (path.parent / name).resolve()
        if file.stem in sources or not NAME.fullmatch(file.stem):
            raise RecipeError(
                f"recipes: {name!r}: {file.stem!r} names another recipe of this study, or cannot name a folder",
                fix="give every recipe a file name of its own: letters, digits, single - and _ . +",
                reason="recipe_name",
            )
        found = _cells(definition, file)
        sources[file.stem] = file.read_text(encoding="utf-8")
        cells += found
    return Study(definition["name"], path, definition, sources, cells)


def _definition(path: Path, overrides: Sequence[tuple[str, str]]) -> dict[str, Any]:
    if path.is_dir():
        raise RecipeError(
            f"{path} is a folder", fix="give the study's file; --output says where it is done", reason="missing_recipe"
        )
    try:
        return load_recipe(path, overrides, known=STUDY_SCHEMA)
    except RecipeError as error:
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
        fix = "use letters, digits, single - and _ . +, beginning with a letter or digit"
        raise RecipeError(f"name {definition['name']!r} cannot name a folder", fix=fix, reason="folder_name")
    if definition["baseline"] not in (None, *definition["encoders"]):
        raise RecipeError(
            f"baseline = {definition['baseline']!r}, which is no encoder of this study", reason="value",
            possible=", ".join(definition["encoders"]), fix="take one of them, or --baseline=null for all pairs",
        )  # fmt: skip
    if definition["lr_seeds"] > len(definition["seeds"]):
        raise RecipeError(
            f"lr_seeds = {definition['lr_seeds']} of {len(definition['seeds'])} seeds", reason="value",
            possible=f"1 to {len(definition['seeds'])}",
        )  # fmt: skip
    _check_options(definition)


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


def _cells(definition: dict[str, Any], file: Path) -> list[Cell]:
    """All cells of one recipe."""
    axes = definition.get("axes") or {}
    base = list(QUIET) + _pairs(definition.get("overrides"))
    found = []
    for values in product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        options = base + [pair for axis, value in chosen.items() for pair in _pairs(axes[axis][value])]
        for encoder in definition["encoders"]:
            for lr, seed in product(definition["lr"], definition["seeds"]):
                own = _pairs({"encoder": encoder, "training.lr": lr, "seed": seed})
                settings = load_recipe(file, [*options, *own], known=RECIPE_SCHEMA)
                settings["name"] = settings["name"] or file.stem
                found.append(Cell(file.stem, chosen, encoder, float(lr), seed, settings))
            validate(found[-1].settings)
            _check_settings(found[-1].settings, file, definition["test"])
    return found


def _pairs(options: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Settings as options of a command line; JSON is YAML."""
    return [(key, json.dumps(value, ensure_ascii=False)) for key, value in (options or {}).items()]


def _check_settings(settings: dict[str, Any], file: Path, test: bool) -> None:
    """What a recipe must have for its cells to be compared."""
    problem = None
    if settings["data"]["dev"] is None:
        problem = ("data.dev is null; learning rates are chosen on dev", "name a dev split")
    elif test and settings["data"]["test"] is None:
        problem = ("data.test is null", "name a test split, or set `test: false` in the study")
    elif settings["training"]["early_stopping"] is not None:
        problem = (
            "training.early_stopping gives arms different numbers of updates",
            "add `training.early_stopping: null` to the study's overrides; the best epoch is kept all the same",
        )
    if problem:
        raise RecipeError(f"{file.name}: {problem[0]}", fix=problem[1], reason="study_recipe")


def identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that make a cell what it is: all but those in PICKS."""
    result = json.loads(json.dumps(settings))
    for key in PICKS:
        section, name = key.split(".")
        result[section].pop(name, None)
    return result


def common(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The identity without what the arms of a context may differ in: encoder and learning rate."""
    result = identity(settings)
    result.pop("encoder")
    result["training"].pop("lr")
    return result
