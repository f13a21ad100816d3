"""Options that reach every depth of a recipe, and only what is there: a misspelled path is an error, not a new key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from asrkit.errors import RecipeError, TrustError, nearest
from asrkit.recipe.vetting import PARSER, Budget, Node, compose

# Schema values: what is below such a key is the business of whoever reads it (`layers`, `text.options`).
ANY = object()
"""Marks a key of the schema whose contents are free; it has no default."""
REQUIRED = object()
"""Marks a key of the schema without a default: a recipe or an option must give it."""

Path = tuple[str | int, ...]

_RECURRENT = ("size", "layers", "dropout", "norm", "per_gate", "cell_norm", "gain")
# What an option may add to a layer of the recipe; the first is what the short form gives, such as 512 in `bigru: 512`.
# Known here, so that a misspelled one is refused before torch is loaded (a test compares them with the layers).
LAYER_OPTIONS: dict[str, tuple[str, ...]] = {
    "conv": ("channels", "kernel", "stride", "padding"),
    "context": ("left", "right", "stride"),
    "linear": ("size", "bias"),
    "dropout": ("p",),
    **dict.fromkeys(("gru", "bigru", "lstm", "bilstm"), _RECURRENT),
    "repeat": ("times", "layers", "residual"),
}


def dotted(path: Sequence[str | int]) -> str:
    """The path as it is written on the command line: `layers.0.conv.kernel`."""
    return ".".join(str(part) for part in path)


def to_node(value: Any, where: str) -> Node:
    """Plain data as nodes; REQUIRED becomes a placeholder."""
    if value is REQUIRED:
        return Node("", "!PLACEHOLDER", where)
    if isinstance(value, Mapping):
        return Node({key: to_node(child, where) for key, child in value.items() if child is not ANY}, "", where)
    if isinstance(value, list | tuple):
        return Node([to_node(child, where) for child in value], "", where)
    return Node(value, "", where)


def merge_defaults(node: Node, known: Mapping[str, Any]) -> None:
    """Add the schema's defaults to a mapping of the recipe, in place; what the recipe says wins.

    An empty section (`training:` with nothing below it) takes all defaults.
    """
    for key, default in known.items():
        present = node.value.get(key)
        if present is None or (isinstance(default, Mapping) and present.value is None and not present.tag):
            if default is not ANY:
                node.value[key] = to_node(default, f"default of {key}")
        elif isinstance(default, Mapping) and isinstance(present.value, dict) and not present.tag:
            merge_defaults(present, default)


def parse_option(path: str, text: str) -> Node:
    """The value of `--path=text`: a YAML scalar or flow collection without tags, anchors or tuple text.

    Raises TrustError for what could run code or stand for something else, RecipeError for what is not a value.
    """
    source = f"--{path}"
    quote = f"put it in quotes: {source}='\"...\"'"
    if not text.strip():
        fix = f"write a value; {source}=null for nothing"
        raise RecipeError(f"{source}= has no value", fix=fix, reason="override_value")
    node = compose(text, source, Budget(nodes=2_000, bytes=0))
    if tagged := next(_tags(node), None):
        fix = "give the value itself; only recipe files may refer to other settings"
        raise TrustError(f"{source}: the tag {tagged} is not allowed in an option", fix=fix, reason="override_tag")
    first = next(event for event in yaml.parse(text, Loader=PARSER) if isinstance(event, yaml.NodeEvent))
    if first.anchor or (isinstance(first, yaml.CollectionStartEvent) and not first.flow_style):
        raise RecipeError(f"{source}={text}: is not a single value", fix=quote, reason="override_value")
    if isinstance(first, yaml.ScalarEvent) and not first.style and first.value != text.strip():
        raise RecipeError(f"{source}={text}: would be cut to {first.value!r}", fix=quote, reason="override_value")
    return node


def _tags(node: Node) -> Any:
    if node.tag:
        yield node.tag
    for _, child in node.children():
        yield from _tags(child)


def apply_option(root: Node, path: str, text: str, known: Mapping[str, Any] | None) -> None:
    """Set `--path=text` in the composed recipe, in place. RecipeError (exit 2) names the part that does not exist."""
    set_value(root, path.split("."), parse_option(path, text), f"--{path}", known)


def set_value(
    root: Node, parts: Sequence[str], value: Node, given: str, known: Mapping[str, Any] | None = None
) -> None:
    """Replace what lies at `parts`.

    A mapping is merged into a mapping key by key, so that none is lost or invented; a section that the schema leaves
    free, and a whole layer, are replaced. A layer may be given options that the recipe does not write: the layer itself
    knows its own, and refuses others.
    """
    parent, schema = root, known or {}
    for depth, part in enumerate(parts[:-1]):
        above, parent = parent, _child(parent, part, parts[:depth], given, schema)
        if _is_layer(parts[: depth + 1]) and isinstance(above.value, dict):
            parent = above.value[part] = _with_options(part, parent)
        below = schema.get(part)
        schema = below if isinstance(below, Mapping) else {}
        if _is_layer(parts[: depth + 1]):
            schema = dict.fromkeys(LAYER_OPTIONS.get(part, ()))
    last = parts[-1]
    option = _is_layer(parts[:-1]) and last in schema
    if (option or schema.get(last) is ANY) and isinstance(parent.value, dict) and not parent.tag:
        parent.value.setdefault(last, value)
    old = _child(parent, last, parts[:-1], given, schema)
    # --spec_augment=null, --features.options='{size: 40}', --layers.4='{bilstm: 128}': these are replaced.
    whole = schema.get(last) is ANY or (parts[0] == "layers" and isinstance(parent.value, list))
    if old is not value and isinstance(old.value, dict) and not old.tag and not whole:
        if not isinstance(value.value, dict):
            raise RecipeError(
                f"{given}: {dotted(parts)} is a section",
                possible=", ".join(f"--{dotted(parts)}.{key}" for key in old.value),
                fix="give one of its keys",
                reason="override_section",
            )
        for key, child in value.value.items():
            set_value(root, [*parts, key], child, given, known)
        return
    parent.value[int(last) if isinstance(parent.value, list) else last] = value


def _is_layer(parts: Sequence[str]) -> bool:
    """Whether this is the path of a layer's options: `layers.4.bigru`, `layers.0.repeat.layers.2.bigru`."""
    return len(parts) >= 3 and parts[0] == "layers" and parts[-2].isdigit() and parts[-3] == "layers"


def _with_options(layer: str, node: Node) -> Node:
    """`bigru: 512`, or `bigru: !ref <width>`, as `bigru: {size: ...}`: what a short form stands for."""
    if isinstance(node.value, dict | list) and not node.tag:
        return node
    return Node({LAYER_OPTIONS[layer][0]: node}, "", node.where) if layer in LAYER_OPTIONS else node


def _child(node: Node, part: str, before: Sequence[str], given: str, known: Mapping[str, Any]) -> Node:
    """The node below; RecipeError with the nearest key where there is none."""
    place = dotted(before) or "the recipe"
    if node.is_reference:
        fix = "override what it refers to, or write its keys in the recipe"
        raise RecipeError(f"{given}: {place} is a reference to {node.value}", fix=fix, reason="override_reference")
    if node.tag == "!PLACEHOLDER" or not isinstance(node.value, dict | list):
        raise RecipeError(f"{given}: {place} has no keys", fix=f"give --{place}=... itself", reason="unknown_key")
    if isinstance(node.value, list):
        if part.isascii() and part.isdigit() and len(part) < 9 and int(part) < len(node.value):
            return node.value[int(part)]
        possible = f"0 to {len(node.value) - 1}" if node.value else "none, it is empty"
        raise RecipeError(f"{given}: {place} has no item {part!r}", possible=possible, reason="unknown_key")
    if part not in node.value:
        if known.get(part) is ANY:
            whole = dotted([*before, part])
            raise RecipeError(
                f"{given}: {whole} is not set", fix=f"give it whole: --{whole}='{{...}}'", reason="unknown_key"
            )
        raise RecipeError(
            f"{given}: {part!r} is not a key of {place}",
            possible=nearest(part, {*node.value, *known}),
            fix="correct the name; options set what a recipe has, they add nothing",
            reason="unknown_key",
        )
    return node.value[part]


def check_keys(
    data: Mapping[str, Any], known: Mapping[str, Any], free: set[str], where: Mapping[Path, str], at: Path = ()
) -> dict[str, Any]:
    """Resolved data completed with the defaults; RecipeError for a key that the schema does not know.

    `free` are top-level constants (`width`) that some !ref uses; `where` says which line a path comes from.
    """
    result: dict[str, Any] = {}
    for key, value in data.items():
        path = (*at, key)
        line = f"{where[path]}: " if path in where else ""
        default = known.get(key, ANY)
        if key not in known and (at or key not in free or isinstance(value, dict | list)):
            raise RecipeError(
                f"{line}{key!r} is not a key of {dotted(at) or 'a recipe'}",
                possible=nearest(key, known),
                fix="correct or remove it",
                reason="unknown_key",
            )
        if default is ANY or default is REQUIRED:
            result[key] = value
        elif isinstance(default, Mapping) != isinstance(value, Mapping):
            kind = "a section with keys" if isinstance(default, Mapping) else "a single value or a list"
            raise RecipeError(f"{line}{dotted(path)} must be {kind}, it is {value!r}", reason="section")
        elif isinstance(value, Mapping):
            result[key] = check_keys(value, default, free, where, path)
        else:
            result[key] = value
    return result
