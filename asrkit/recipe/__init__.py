"""Read, vet, override, resolve and save recipes; the only place that touches HyperPyYAML.

HyperPyYAML runs code by design. A recipe here is data: asrkit/recipe/vetting.py turns the text into checked nodes,
asrkit/recipe/overrides.py applies schema and options, and HyperPyYAML then computes the references that are left, one
by one in the order in which they depend on each other. (Given a whole document it takes them in the order of the page:
with `b: !ref <a> * 2` above `a: !ref <c> + 1` and c = 3 it answers 5 instead of 8, and -3 * 2 stays text.)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ruamel.yaml
import yaml
from hyperpyyaml import load_hyperpyyaml
from hyperpyyaml.core import deref, parse_arithmetic

from asrkit.errors import AsrkitError, RecipeError, nearest
from asrkit.recipe.overrides import ANY, REQUIRED, apply_option, check_keys, dotted, merge_defaults, set_value
from asrkit.recipe.references import References
from asrkit.recipe.vetting import REFERENCE, Budget, Node, compose_file, included_path, is_arithmetic

__all__ = ["ANY", "REQUIRED", "difference", "differences", "dump_recipe", "load_recipe", "recipe_hash"]

Place = tuple[str | int, ...]


def load_recipe(
    path: str | Path,
    overrides: Sequence[tuple[str, str]] = (),
    *,
    known: Mapping[str, Any] | None = None,
    trust: bool = False,
) -> dict[str, Any]:
    """A recipe as plain data: dict, list, str, int, float, bool, None.

    Args:
        path: the YAML file. What it includes must lie in its own folder or below.
        overrides: options as (dotted path, YAML text), e.g. ("layers.0.conv.kernel", "5"); later ones win. Every path
            must exist in the recipe or in `known`. They are set before references are resolved.
        known: the schema: nested defaults, with ANY and REQUIRED as markers. The recipe wins over them; a key that is
            neither in the schema nor a top-level constant used by some !ref is an error.
        trust: let HyperPyYAML run the whole recipe, with `!new:`, `!apply:` and all. A trusted recipe is a program
            with your rights, and may hold any object. Options are vetted all the same.

    Raises:
        RecipeError: not valid, misspelled, incomplete (exit 2).
        TrustError: would run code, leave its folder, or fill the memory (exit 7); names tag and line.
        StorageError: cannot be read (exit 5).
    """
    path = Path(path)
    if not path.is_file():
        there = sorted(other.name for other in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        if path.is_dir():
            raise RecipeError(f"{path} is a folder", fix="give a recipe, a .yaml file", reason="missing_recipe")
        raise RecipeError(
            f"no recipe {path}",
            possible=nearest(path.name, there) or None,
            fix="give the path of a .yaml file",
            reason="missing_recipe",
        )
    path = path.resolve()
    reader = _Reader(path.parent, Budget(), trust)
    root = reader.read(path, (), (path,))
    if not isinstance(root.value, dict) or root.tag:
        raise RecipeError(f"{path.name}: is not a mapping", fix="write `key: value` lines", reason="not_a_mapping")
    if known is not None:
        merge_defaults(root, known)
    constants = _constants(root)  # before the options: `--layers=[...]` may take away the last !ref to `width`
    for option, text in overrides:
        apply_option(root, option, text, known)
    _refuse_placeholders(root)
    references = References(root)
    data = _run_trusted(references) if trust else _resolve(references)
    if known is None:
        return data
    return check_keys(data, known, constants | references.constants, {at: node.where for at, node in _walk(root)})


@dataclass
class _Reader:
    """Reads a recipe and what it includes; all files share one budget."""

    root: Path
    budget: Budget
    trust: bool

    def read(self, path: Path, at: Place, stack: tuple[Path, ...]) -> Node:
        return self._expand(compose_file(path, self.budget, trust=self.trust), at, at, stack)

    def _expand(self, node: Node, at: Place, scope: Place, stack: tuple[Path, ...]) -> Node:
        node.scope = scope
        if node.tag.startswith("!include:"):
            return self._include(node, at, scope, stack)
        if isinstance(node.value, dict):
            node.value = {key: self._expand(child, (*at, key), scope, stack) for key, child in node.value.items()}
        elif isinstance(node.value, list):
            node.value = [self._expand(child, (*at, i), scope, stack) for i, child in enumerate(node.value)]
        return node

    def _include(self, node: Node, at: Place, scope: Place, stack: tuple[Path, ...]) -> Node:
        """What the included file holds, with the keys written below the tag as overrides."""
        name = node.tag.removeprefix("!include:")
        path = included_path(name, stack[-1].parent, self.root, node.where, trust=self.trust)
        if path in stack:
            circle = " -> ".join(step.name for step in (*stack, path))
            raise RecipeError(f"{node.where}: files include each other: {circle}", reason="include_cycle")
        content = self.read(path, at, (*stack, path))
        if isinstance(node.value, dict):
            for key, child in node.value.items():
                body = self._expand(child, (*at, key), scope, stack)
                set_value(content, [key], body, f"{node.where}: {name}: {key}")
        return content


def _constants(root: Node) -> set[str]:
    """Top-level names that some !ref of the written recipe uses; faults in it are reported later, with the options."""
    references = References(root)
    with contextlib.suppress(AsrkitError):
        references.check()
    return references.constants


def _walk(node: Node, at: Place = ()) -> Iterator[tuple[Place, Node]]:
    yield at, node
    for key, child in node.children():
        yield from _walk(child, (*at, key))


def _refuse_placeholders(root: Node) -> None:
    missing = [dotted(at) for at, node in _walk(root) if node.tag == "!PLACEHOLDER"]
    if missing:
        verb = "has" if len(missing) == 1 else "have"
        fix = "give " + " ".join(f"--{name}=<value>" for name in missing)
        raise RecipeError(f"{', '.join(missing)} {verb} no value", fix=fix, reason="missing_value")


def _resolve(references: References) -> dict[str, Any]:
    references.check()
    slots: dict[int, tuple[Any, str | int]] = {}
    tree = _plain(references.root, slots)
    for node in references.order:
        container, key = slots[id(node)]
        container[key] = _compute(node, tree)
    return tree


def _plain(node: Node, slots: dict[int, tuple[Any, str | int]]) -> Any:
    """Plain data; where each reference stands in it goes to `slots`."""
    if not isinstance(node.value, dict | list):
        return node.value
    result: Any = {} if isinstance(node.value, dict) else [None] * len(node.value)
    for key, child in node.children():
        slots[id(child)] = result, key
        result[key] = _plain(child, slots)
    return result


def _compute(node: Node, tree: dict[str, Any]) -> Any:
    """One reference whose names are all resolved in `tree`."""
    text = node.value
    names = REFERENCE.findall(text)
    if REFERENCE.fullmatch(text):
        return deref(names[0], tree, copy_mode=True)
    values = [deref(name, tree) for name in names]
    for name, value in zip(names, values, strict=True):
        if value is None or isinstance(value, dict | list):
            what = f"{node.where}: !ref {text!r}: <{name}> is {'null' if value is None else 'not a single value'}"
            raise RecipeError(what, fix="name a number or a text", reason="reference_value")
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if not (numbers and is_arithmetic(text)):
        if set("*()") & set(REFERENCE.sub("", text)):
            raise RecipeError(f"{node.where}: !ref {text!r} needs numbers", reason="reference_value")
        # Joined here: HyperPyYAML would read the result as an expression again, whatever the values hold.
        return REFERENCE.sub(lambda match: str(deref(match[1], tree)), text)
    # HyperPyYAML knows no unary minus; (0-3) is -3 to it.
    sum_of = {name: f"(0{value!r})" if value < 0 else repr(value) for name, value in zip(names, values, strict=True)}
    try:
        result = parse_arithmetic(REFERENCE.sub(lambda match: sum_of[match[1]], text).strip())
    except ArithmeticError as error:
        raise RecipeError(f"{node.where}: !ref {text!r}: {error}", reason="reference_value") from error
    if not isinstance(result, int | float) or not math.isfinite(result):
        fix = "use + - * / // % and parentheses between numbers; write (0 - x) for -x"
        raise RecipeError(f"{node.where}: !ref {text!r} is not a sum of numbers", fix=fix, reason="reference_value")
    return result


def _run_trusted(references: References) -> dict[str, Any]:
    """All that HyperPyYAML can do, run on the composed recipe."""
    for _, node in _walk(references.root):
        if node.is_reference:
            references.constants |= {re.split(r"[.\[]", name)[0] for name in REFERENCE.findall(node.value)}
            try:
                references.targets(node)
            except RecipeError:
                continue  # HyperPyYAML knows more kinds of names, and reports the wrong ones itself
    text = yaml.serialize(_to_yaml(references.root), Dumper=_Dumper, allow_unicode=True)

    class Loader(ruamel.yaml.Loader):
        """Fresh for every recipe: HyperPyYAML registers its constructors on the class it is given, for good."""

    resolvers = ruamel.yaml.resolver.implicit_resolvers  # of all loaders; a second "!tuple" there would hide the first
    known = len(resolvers)
    constructors = yaml.constructor.BaseConstructor, ruamel.yaml.constructor.BaseConstructor
    defaults = [constructor.construct_object.__defaults__ for constructor in constructors]
    try:
        data = load_hyperpyyaml(text, loader=Loader)
    except Exception as error:  # whatever the recipe's own code raises
        raise RecipeError(f"the trusted recipe fails: {type(error).__name__}: {error}", reason="trusted") from error
    finally:  # it leaves the first changed, and where the recipe fails the others too
        del resolvers[known:]
        for constructor, default in zip(constructors, defaults, strict=True):
            constructor.construct_object.__defaults__ = default
    return data


def _to_yaml(node: Node) -> yaml.Node:
    """A node as PyYAML's, for the emitter; values that would read differently without quotes get them."""
    if isinstance(node.value, dict):
        pairs = [(yaml.ScalarNode("tag:yaml.org,2002:str", k), _to_yaml(v)) for k, v in node.value.items()]
        return yaml.MappingNode(node.tag or "tag:yaml.org,2002:map", pairs)
    if isinstance(node.value, list):
        return yaml.SequenceNode(node.tag or "tag:yaml.org,2002:seq", [_to_yaml(child) for child in node.value])
    if node.tag:
        return yaml.ScalarNode(node.tag, node.value)
    return _Dumper("").represent_data(node.value)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that some YAML reader, ours or HyperPyYAML's, takes for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[.0-9]+[eE][-+]?[0-9]+$"), list("-+.0123456789")
)
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?[0-9]+$|0[ox][0-9a-fA-F]+$"), list("-+0123456789")
)
_Dumper.add_implicit_resolver("!tuple", re.compile(r"\(.*\)$", re.DOTALL), ["("])


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = None if text.isprintable() else '"'  # only double quotes keep all kinds of line ends and controls
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def dump_recipe(data: Mapping[str, Any]) -> str:
    """A resolved recipe as YAML, keys in their order; `load_recipe` reads it back to equal data."""
    _refuse_objects(data)
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def recipe_hash(data: Mapping[str, Any]) -> str:
    """sha256 (hexadecimal) of the canonical JSON: sorted keys, no spaces; 1, 1.0 and true are three values."""
    return hashlib.sha256(_json(data).encode()).hexdigest()


def _json(value: Any) -> str:
    _refuse_objects(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _refuse_objects(value: Any, at: Place = ()) -> None:
    children: Any = ()
    if isinstance(value, Mapping):
        children = value.items()
    elif isinstance(value, list | tuple):
        children = enumerate(value)
    elif not (value is None or isinstance(value, str | int | float)):
        what = f"{dotted(at) or 'the recipe'} is a {type(value).__name__}, not data"
        raise RecipeError(what, fix="name a registered class instead of building it in the recipe", reason="not_data")
    for key, child in children:
        _refuse_objects(child, (*at, key))


_ABSENT = object()
ABSENT = "(absent)"  # in what `differences` says


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What differs, as (dotted path, old value, new value) with values as JSON or ABSENT, in the order of `old`."""
    found: list[tuple[str, str, str]] = []

    def compare(a: Any, b: Any, at: Place) -> None:
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            for key in dict.fromkeys([*a, *b]):
                compare(a.get(key, _ABSENT), b.get(key, _ABSENT), (*at, key))
        elif isinstance(a, list) and isinstance(b, list):
            for i in range(max(len(a), len(b))):
                compare(a[i] if i < len(a) else _ABSENT, b[i] if i < len(b) else _ABSENT, (*at, i))
        else:
            texts = [ABSENT if value is _ABSENT else _json(value) for value in (a, b)]
            if texts[0] != texts[1]:
                found.append((dotted(at), texts[0], texts[1]))

    compare(old, new, ())
    return found


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Key-by-key lines such as "training.lr: 0.001 -> 0.002"."""
    return [f"{path}: {before} -> {after}" for path, before, after in differences(old, new)]
