"""Recipes as foreign text: YAML -> a tree of checked nodes; nothing is constructed, run or opened that was not allowed.

The text is read event by event, so that size, depth, aliases and tags are judged before anything is built from them.
What may pass is a short list; everything else is refused, because lists of what is bad are never complete.
Plain values follow the YAML 1.2 core schema, as in HyperPyYAML's first pass: `1e-3` is a number, `2024-01-01` is text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from asrkit.errors import RecipeError, StorageError, TrustError

MAX_BYTES = 1 << 20  # of a recipe together with all it includes
MAX_NODES = 20_000  # counted with aliases, includes and references expanded
MAX_DEPTH = 32
MAX_REFERENCE = 500  # characters of one !ref

ALLOWED = "!ref, !copy, !PLACEHOLDER, !include:<file>"
UNTAG = "remove it; `--trust-recipe` runs a recipe as the program it then is"
CORE = {f"tag:yaml.org,2002:{name}": name for name in ("str", "int", "float", "bool", "null", "map", "seq")}
REFERENCE = re.compile(r"<([^<>]*)>")

_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_NULL = ("", "~", "null", "Null", "NULL")
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_YES_NO = re.compile(r"yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF")
_NAME = re.compile(r"[^\W\d][\w-]*(\[[\w -]+\])*")
_ARITHMETIC = re.compile(r"<[^<>]*>|//|[-+*/%()]|[0-9][0-9.]*([eE][-+]?[0-9]+)?|\s+")
_TEXT = re.compile(r"[\w\s./:,@=+%~#-]*")
PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class Node:
    """One value of a recipe before references are resolved.

    `value` is a list of nodes, a dict of nodes or a scalar; for a tagged scalar its text. `scope` is the path of the
    included file's contents in the composed recipe: a `!ref` there looks into its own file first.
    """

    value: Any
    tag: str = ""
    where: str = ""
    scope: tuple[str | int, ...] = ()

    @property
    def is_reference(self) -> bool:
        return self.tag in ("!ref", "!copy")

    def children(self) -> Iterator[tuple[str | int, Node]]:
        if isinstance(self.value, dict):
            yield from self.value.items()
        elif isinstance(self.value, list):
            yield from enumerate(self.value)

    def copy(self) -> Node:
        value = self.value
        if isinstance(value, dict):
            value = {key: child.copy() for key, child in value.items()}
        elif isinstance(value, list):
            value = [child.copy() for child in value]
        return Node(value, self.tag, self.where, self.scope)


@dataclass
class Budget:
    """What a recipe may still spend; shared by all files it includes."""

    bytes: int = MAX_BYTES
    nodes: int = MAX_NODES

    def spend_nodes(self, count: int, where: str) -> None:
        self.nodes -= count
        if self.nodes < 0:
            raise TrustError(
                f"{where}: the recipe has more than {MAX_NODES} values, counted with aliases and references",
                fix="a recipe is a page of settings; put data into files",
                reason="too_many_nodes",
            )


def compose(text: str, source: str, budget: Budget | None = None, *, trust: bool = False) -> Node:
    """Parse one YAML document into nodes and vet it; `trust` keeps foreign tags instead of refusing them.

    Raises TrustError (tag and line) for what is not allowed and RecipeError for what is not valid YAML.
    """
    composer = _Composer(text, source, budget or Budget(), trust)
    try:
        return composer.document()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source} line {mark.line + 1}" if mark else source
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "not readable"
        if "nesting depth" in problem:  # newer releases of libyaml have a limit of their own, and meet it first
            raise TrustError(
                f"{where}: nested deeper than {MAX_DEPTH} levels", fix="flatten it", reason="too_deep"
            ) from error
        raise RecipeError(f"{where}: not valid YAML ({problem})", fix="correct that line", reason="yaml") from error
    except UnicodeEncodeError as error:
        raise RecipeError(f"{source}: holds characters that are not text", reason="yaml") from error


@dataclass
class _Composer:
    text: str
    source: str
    budget: Budget
    trust: bool
    anchors: dict[str, tuple[Node, int] | None] = field(default_factory=dict)  # None while still open

    def document(self) -> Node:
        self.events = yaml.parse(self.text, Loader=PARSER)
        next(self.events)  # the start of the stream
        start = next(self.events)
        if isinstance(start, yaml.StreamEndEvent):
            raise RecipeError(f"{self.source}: is empty", fix="write at least one setting", reason="empty_recipe")
        if start.tags and not self.trust:
            raise self._refuse(f"directive %TAG {next(iter(start.tags))}", self._where(start), "tag_directive")
        node = self._node(next(self.events), 0)
        next(self.events)  # the end of the document
        if not isinstance(next(self.events), yaml.StreamEndEvent):
            raise RecipeError(f"{self.source}: has several documents", fix="remove `---`", reason="several_documents")
        return node

    def _where(self, event: yaml.Event) -> str:
        return f"{self.source} line {event.start_mark.line + 1}"

    def _refuse(self, what: str, where: str, reason: str) -> TrustError:
        return TrustError(f"{where}: {what} is not allowed in a recipe", possible=ALLOWED, fix=UNTAG, reason=reason)

    def _node(self, event: yaml.Event, depth: int) -> Node:
        where = self._where(event)
        if depth > MAX_DEPTH:
            raise TrustError(f"{where}: nested deeper than {MAX_DEPTH} levels", fix="flatten it", reason="too_deep")
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event.anchor, where)
        self.budget.spend_nodes(1, where)
        before = self.budget.nodes
        tag = self._tag(event, where)
        if event.anchor:
            self.anchors[event.anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            node = Node(self._scalar(event, tag, where), "" if tag in CORE else tag, where)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = Node(self._sequence(depth), "" if tag in CORE else tag, where)
        else:
            node = Node(self._mapping(depth), "" if tag in CORE else tag, where)
        self._check_kind(node, tag)
        if event.anchor:
            self.anchors[event.anchor] = (node, before - self.budget.nodes + 1)
        return node

    def _alias(self, name: str, where: str) -> Node:
        anchor = self.anchors.get(name)
        if anchor is None:
            raise RecipeError(f"{where}: *{name} stands for nothing, or for itself", reason="alias")
        self.budget.spend_nodes(anchor[1], where)
        return anchor[0].copy()

    def _tag(self, event: yaml.Event, where: str) -> str:
        tag = event.tag or ""
        if not tag or self.trust:
            return tag
        written = re.sub(r"^&\S+\s+", "", self.text[event.start_mark.index : event.start_mark.index + 200])
        if written.startswith("!<"):
            raise self._refuse(f"verbatim tag !<{tag}>", where, "tag")
        if tag in CORE or tag in ("!ref", "!copy", "!PLACEHOLDER") or tag.startswith("!include:"):
            return tag
        raise self._refuse(f"tag {tag.replace('tag:yaml.org,2002:', '!!')}", where, "tag")

    def _scalar(self, event: yaml.ScalarEvent, tag: str, where: str) -> Any:
        text, plain = event.value, event.style in (None, "")
        if tag in ("!ref", "!copy"):
            if not self.trust:
                check_reference(text, where)
            return text
        if tag.startswith("!include:") and text:
            raise RecipeError(f"{where}: {tag} is followed by {text!r}", fix="write overrides as `key: value` below it")
        if tag and tag not in CORE:
            return text
        if plain and not self.trust and re.fullmatch(r"\(.*\)", text, re.DOTALL):
            raise self._refuse(f"tuple text {text[:60]!r}", where, "tuple")
        return scalar(text, plain, CORE.get(tag, ""), where)

    def _sequence(self, depth: int) -> list[Node]:
        items = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self._node(event, depth + 1))
        return items

    def _mapping(self, depth: int) -> dict[str, Node]:
        items: dict[str, Node] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            where = self._where(event)
            if not isinstance(event, yaml.ScalarEvent) or event.tag:
                raise self._refuse("a key that is not plain text", where, "key")
            key = event.value
            if key == "<<" and event.style in (None, ""):
                raise RecipeError(f"{where}: merge keys `<<` hide where a value is from", fix="use !ref or !include")
            plain = event.style in (None, "") and not _YES_NO.fullmatch(key)
            if not isinstance(scalar(key, plain, "", where), str):
                raise RecipeError(f"{where}: the key {key!r} is not text", fix=f'write "{key}"', reason="key")
            if key in items:
                raise RecipeError(
                    f"{where}: {key!r} is given twice (also {items[key].where})", fix="keep one", reason="duplicate_key"
                )
            self.budget.spend_nodes(1, where)
            items[key] = self._node(next(self.events), depth + 1)
        return items

    def _check_kind(self, node: Node, tag: str) -> None:
        """!ref stands before text; !!map before a mapping: the tag and the shape of the value agree."""
        shape = "seq" if isinstance(node.value, list) else "map" if isinstance(node.value, dict) else "scalar"
        if tag in CORE:
            possible: tuple[str, ...] = (CORE[tag],) if CORE[tag] in ("seq", "map") else ("scalar",)
        elif tag in ("!ref", "!copy", "!PLACEHOLDER"):
            possible = ("scalar",)
        elif tag.startswith("!include:"):
            possible = ("scalar", "map")
        else:
            return
        if shape not in possible:
            raise RecipeError(f"{node.where}: {tag} stands before the wrong kind of value", reason="tag_kind")


def scalar(text: str, plain: bool, tag: str, where: str) -> str | int | float | bool | None:
    """The value of one scalar by the YAML 1.2 core schema; `tag` is a core type such as "int", or "" for none."""
    if tag == "str" or (not plain and not tag):
        return text
    kinds: dict[str, Callable[[], Any]] = {}
    if text in _NULL:
        kinds["null"] = lambda: None
    if text in _BOOL:
        kinds["bool"] = lambda: _BOOL[text]
    if _INT.fullmatch(text):
        kinds["int"] = lambda: int(text, 0 if text[:2] in ("0x", "0o") else 10)
    if _FLOAT.fullmatch(text) or _NOT_FINITE.fullmatch(text):
        kinds["float"] = lambda: float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if tag and tag not in kinds:
        raise RecipeError(f"{where}: {text[:60]!r} is not of type !!{tag}", reason="value")
    if plain and _YES_NO.fullmatch(text):
        raise RecipeError(
            f"{where}: {text} is a truth value to some YAML readers and text to others",
            fix=f'write true or false, or "{text}" in quotes for the word',
            reason="ambiguous",
        )
    if not kinds:
        return text
    kind = tag or next(iter(kinds))
    if len(text) > 64 or (kind == "float" and _FLOAT.fullmatch(text) and math.isinf(float(text))):
        raise RecipeError(f"{where}: the number {text[:20]}... is out of range", reason="value")
    return kinds[kind]()


def check_reference(text: str, where: str) -> list[str]:
    """Names in a !ref, which is `<name>`, `<name[key]>`, arithmetic (+ - * / // %) or plain text around such names.

    Raises TrustError for every other expression. HyperPyYAML would evaluate more: `**`, quoted strings, tuples,
    attributes; each of these has been used to run code or to fill the memory.
    """
    names = REFERENCE.findall(text)
    wrong = None
    if len(text) > MAX_REFERENCE:
        wrong = f"is longer than {MAX_REFERENCE} characters"
    elif not names:
        wrong = "names nothing (write `!ref <name>`)"
    elif bad := [name for name in names if not _NAME.fullmatch(name)]:
        hint = " (write <a[b]> for a.b)" if "." in bad[0] else ""
        wrong = f"has the name <{bad[0]}>{hint}"
    elif "**" in REFERENCE.sub("", text).replace(" ", "") or not (is_arithmetic(text) or _is_text(text)):
        wrong = "is more than names, + - * / // % ( ) and simple text"
    if wrong:
        shown = text if len(text) <= 80 else text[:80] + "..."
        possible = "<name>, <name[key]>, <name> * 2, text/<name>"
        raise TrustError(f"{where}: !ref {shown!r} {wrong}", possible=possible, reason="reference")
    return names


def is_arithmetic(text: str) -> bool:
    """Whether the whole text is names, numbers and operators, with at least one operator or parenthesis."""
    position = 0
    while position < len(text):  # token by token: one nested pattern could be made to take exponential time
        token = _ARITHMETIC.match(text, position)
        if token is None:
            return False
        position = token.end()
    return bool(set("+-*/%(") & set(REFERENCE.sub("", text)))


def _is_text(text: str) -> bool:
    return _TEXT.fullmatch(REFERENCE.sub("", text)) is not None


def compose_file(path: Path, budget: Budget, *, trust: bool) -> Node:
    """Read and compose one recipe file; includes are not yet expanded."""
    try:
        with path.open("rb") as file:
            data = file.read(budget.bytes + 1)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror})", reason="unreadable") from error
    budget.bytes -= len(data)
    if budget.bytes < 0:
        raise TrustError(f"{path.name}: the recipe is larger than {MAX_BYTES >> 20} MiB", reason="too_large")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path.name}: is not UTF-8 text", fix="save it as UTF-8", reason="encoding") from error
    return compose(text, path.name, budget, trust=trust)


def included_path(name: str, folder: Path, root: Path, where: str, *, trust: bool) -> Path:
    """The real path of `!include:name` seen from `folder`; TrustError unless it lies below `root`."""
    try:
        path = (folder / name).resolve()
        inside = path.is_relative_to(root) and not Path(name).is_absolute()
        is_file = (inside or trust) and path.is_file()
    except (OSError, ValueError, RuntimeError):  # too long a name, a NUL, a loop of links
        inside, is_file = True, False
    if not inside and not trust:
        fix = "copy the file into the recipe's own folder and give its relative path"
        raise TrustError(f"{where}: !include:{name} leaves the recipe's folder", fix=fix, reason="include")
    if not is_file:
        raise RecipeError(f"{where}: !include:{name}: no such file", fix=f"look into {root.name}/", reason="include")
    return path
