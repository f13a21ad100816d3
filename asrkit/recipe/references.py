"""What `!ref <name>` names, in which order references depend on each other, and how large they will grow.

Nothing is computed here: circles, unknown names and references that multiply are found on the nodes, beforehand.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from asrkit.errors import RecipeError, TrustError, nearest
from asrkit.recipe.vetting import MAX_BYTES, MAX_NODES, REFERENCE, Budget, Node

MAX_EXPRESSION = 4096  # characters that one !ref may grow to
MAX_CHARACTERS = 4 * MAX_BYTES  # of all values once references are resolved


@dataclass
class References:
    """The references of one composed recipe."""

    root: Node
    constants: set[str] = field(default_factory=set)  # top-level names that some !ref uses
    order: list[Node] = field(default_factory=list)  # dependencies first
    _sizes: dict[int, tuple[int, int] | None] = field(default_factory=dict)  # None: still open

    def check(self) -> None:
        """Fill `order` and `constants`; RecipeError for circles and unknown names, TrustError for bombs."""
        nodes, characters = self._measure(self.root)
        if nodes > MAX_NODES:
            Budget(nodes=0).spend_nodes(nodes, "references")
        if characters > MAX_CHARACTERS:
            raise TrustError(f"references grow to more than {MAX_CHARACTERS >> 20} MiB", reason="too_large")

    def _measure(self, node: Node) -> tuple[int, int]:
        """Values and characters below a node once it is resolved."""
        if id(node) in self._sizes:
            known = self._sizes[id(node)]
            if known is None:
                raise RecipeError(
                    f"{node.where}: references run in a circle", fix="give one a value", reason="reference_cycle"
                )
            return known
        self._sizes[id(node)] = None
        if node.is_reference:
            targets = [self._measure(target) for target in self.targets(node)]
            size = max(count for count, _ in targets), sum(length for _, length in targets)
            if not REFERENCE.fullmatch(node.value):
                size = 1, len(node.value) + size[1]
                if size[1] > MAX_EXPRESSION:
                    what = f"{node.where}: !ref grows to more than {MAX_EXPRESSION} characters"
                    raise TrustError(what, fix="write the value itself", reason="reference")
            self.order.append(node)
        elif isinstance(node.value, dict | list):
            below = [self._measure(child) for _, child in node.children()]
            size = 1 + sum(count for count, _ in below), sum(length for _, length in below)
        else:
            size = 1, len(str(node.value))
        self._sizes[id(node)] = size
        return size

    def targets(self, node: Node) -> list[Node]:
        """The nodes that a reference names. Rewrites its names to start at the top of the composed recipe."""
        targets = []

        def absolute(match: re.Match[str]) -> str:
            scope, keys = self._scope(match[1], node)
            targets.append(self._follow(scope + keys, node))
            path = scope + keys
            self.constants.add(path[0])
            return f"<{path[0]}{''.join(f'[{key}]' for key in path[1:])}>"

        node.value = REFERENCE.sub(absolute, node.value)
        node.scope = ()
        return targets

    def _scope(self, name: str, node: Node) -> tuple[list[str], list[str]]:
        """Where a name is found: in the included file's own contents first, then in those around it."""
        keys = name.replace("]", "").split("[")
        for depth in range(len(node.scope), -1, -1):
            scope = node.scope[:depth]
            if any(isinstance(key, int) for key in scope):
                continue  # a file included into a list item: no reference can name what is below a list
            base: Any = self.root
            for key in scope:
                base = base.value[key]
            if isinstance(base.value, dict) and keys[0] in base.value:
                return [str(key) for key in scope], keys
        raise self._unknown(node, keys[0], self.root)

    def _follow(self, path: list[str], node: Node) -> Node:
        base = self.root
        for key in path:
            while base.is_reference and REFERENCE.fullmatch(base.value):  # <a[k]> where `a: !ref <b>`
                self._measure(base)
                base = self._follow(base.value[1:-1].replace("]", "").split("["), base)
            if not isinstance(base.value, dict) or key not in base.value:
                raise self._unknown(node, key, base)
            base = base.value[key]
        return base

    def _unknown(self, node: Node, key: str, base: Node) -> RecipeError:
        what = f"{node.where}: {node.tag} {node.value!r}: there is no {key!r}"
        if isinstance(base.value, dict):
            return RecipeError(what, possible=nearest(key, base.value), fix="correct it", reason="unknown_reference")
        return RecipeError(what, fix="name keys of mappings; list items cannot be named", reason="unknown_reference")
