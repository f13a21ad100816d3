"""A study file -> its cells: what is trained, with which settings, and what may not differ between the arms.

A study file is read like a recipe (asrkit.recipe: vetted, plain data). An arm is a recipe, one value of every further
axis, and an encoder; a cell is an arm with a learning rate and a seed: one run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from asrkit.errors import RecipeError, nearest
from asrkit.recipe import load_recipe, recipe_hash
from asrkit.recipe.schema import SCHEMA as RECIPE_SCHEMA
from asrkit.recipe.validation import validate
from asrkit.study.definition import NAME, STUDY_SCHEMA, read_definition

# A cell draws no pictures of its own; both can be switched on in `overrides`.
QUIET = (("training.tensorboard", "false"), ("training.curves", "false"))
PICKS = ("training.tensorboard", "training.curves", "training.checkpoint_minutes", "data.root", "data.cache")
"""Settings that are no part of a cell's identity: where the data lie (their hashes are compared), what is drawn."""


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
    definition = read_definition(path, overrides)
    sources, cells = {}, []
    for name in definition["recipes"]:
        file = (path.parent / name).resolve()
        if file.stem in sources or not NAME.fullmatch(file.stem):
            raise RecipeError(
                f"recipes: {name!r}: {file.stem!r} names another recipe of this study, or cannot name a folder",
                fix="give every recipe a file name of its own: letters, digits, single - and _ . +",
                reason="recipe_name",
            )
        found = _cells(definition, file, {key for key, _ in overrides})
        sources[file.stem] = file.read_text(encoding="utf-8")
        cells += found
    return Study(definition["name"], path, definition, sources, cells)


def _cells(definition: dict[str, Any], file: Path, typed: set[str]) -> list[Cell]:
    """All cells of one recipe. typed: the overrides that are options of the command line."""
    axes = definition.get("axes") or {}
    base = list(QUIET) + _pairs(definition.get("overrides"))
    found = []
    contexts: dict[str, dict[str, str]] = {}
    for values in product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        options = base + [pair for axis, value in chosen.items() for pair in _pairs(axes[axis][value])]
        for encoder in definition["encoders"]:
            for lr, seed in product(definition["lr"], definition["seeds"]):
                own = _pairs({"encoder": encoder, "training.lr": lr, "seed": seed})
                try:
                    settings = load_recipe(file, [*options, *own], known=RECIPE_SCHEMA)
                except RecipeError as error:
                    if error.reason == "unknown_key":
                        _explain_key(definition, file, typed)
                    raise
                settings["name"] = settings["name"] or file.stem
                found.append(Cell(file.stem, chosen, encoder, float(lr), seed, settings))
            validate(found[-1].settings)
            _check_settings(found[-1].settings, file, definition["test"])
        _check_new(contexts, found[-1], file)
    return found


def _check_new(contexts: dict[str, dict[str, str]], cell: Cell, file: Path) -> None:
    """Two contexts with the same settings would be trained twice, and compared as if they were two."""
    key = recipe_hash(common(cell.settings))
    before = contexts.setdefault(key, cell.axes)
    if before is not cell.axes:
        same = " and ".join(", ".join(f"{axis} {value}" for axis, value in one.items()) for one in (before, cell.axes))
        raise RecipeError(
            f"axes: with {file.name}, {same} are the same settings",
            fix="let every value of an axis change something, or take one of them out", reason="axes_same",
        )  # fmt: skip


def _explain_key(definition: dict[str, Any], file: Path, typed: set[str]) -> None:
    """Raise RecipeError (`unknown_key`) that says where in the study the key is that a recipe does not have; nothing
    where none of them is it."""
    axes = definition.get("axes") or {}
    places = [("", {key: value}) for key, value in (definition.get("overrides") or {}).items()]
    places += [(f"axes.{axis}.{value}", options) for axis in axes for value, options in axes[axis].items()]
    for place, options in places:
        try:
            load_recipe(file, [*QUIET, *_pairs(options)], known=RECIPE_SCHEMA)
        except RecipeError as error:
            if error.reason != "unknown_key":
                continue
            option = not place and set(options) <= typed
            what = error.what if option else f"{place or 'overrides'}: {error.what.removeprefix('--')}"
            what += f" (in {file.name})" if len(definition["recipes"]) > 1 else ""
            also = nearest(next(iter(options)).split(".")[0], STUDY_SCHEMA)
            possible = f"{error.possible}; keys of a study: {also}" if option else error.possible
            raise RecipeError(what, possible=possible, fix=error.fix, reason="unknown_key") from None


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
