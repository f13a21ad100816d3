"""What a model remembers beside its parameters: buffers, and tensors that it keeps in attributes; and how to put both
back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from asrkit.diagnostics.hooks import is_norm

DEPTH = 4  # containers and objects within each other that are looked into
MOST = 10_000  # of them in all: somebody may keep a corpus in a model
OPAQUE = (nn.Module, nn.Parameter, type)


class Buffers:
    """The buffers of a model as they are now, by module and name: a forward pass may write into them or rebind them."""

    def __init__(self, model: nn.Module | None) -> None:
        self._saved = [
            (module, name, buffer, None if buffer is None else buffer.clone())
            for module in ([] if model is None else model.modules())
            for name, buffer in module._buffers.items()
        ]

    def restore(self, norms_only: bool = False) -> None:
        with torch.no_grad():
            for module, name, buffer, value in self._saved:
                if norms_only and not is_norm(module):
                    continue
                module._buffers[name] = buffer
                if buffer is not None and value is not None:
                    buffer.copy_(value)


# What was there, as (it, its content): the very same object comes back, with the content that it had.
_Copy = tuple[Any, Any]


class Attributes:
    """The attributes of all modules as they are now, and what is in those that are tensors, lists, dicts or plain
    objects: where people keep the last hidden state. What has not changed since is not touched."""

    def __init__(self, model: nn.Module | None) -> None:
        self._seen: set[int] = set()
        modules = [] if model is None else [m for m in model.modules() if not hasattr(m, "_orig_mod")]
        own = set(nn.Module().__dict__)  # parameters, hooks, children, the mode
        self._saved = [
            (m.__dict__, {name: self._copy(value, DEPTH) for name, value in m.__dict__.items() if name not in own}, own)
            for m in modules
        ]

    def restore(self) -> None:
        with torch.no_grad():
            for attributes, saved, own in self._saved:
                for name in [name for name in attributes if name not in own and name not in saved]:
                    del attributes[name]
                for name, value in saved.items():
                    if attributes.get(name) is not value[0]:
                        attributes[name] = value[0]
                    _back(value)

    def _copy(self, value: Any, depth: int) -> _Copy:
        if isinstance(value, OPAQUE) or depth == 0 or id(value) in self._seen or len(self._seen) > MOST:
            return value, None
        if isinstance(value, Tensor):
            return value, value.detach().clone()
        inside = value if isinstance(value, dict | list | tuple) else getattr(value, "__dict__", None)
        if inside is None or callable(value) or (inside is not value and type(value).__module__.startswith("torch.")):
            return value, None
        self._seen.add(id(value))
        if inside is not value:  # a plain object
            return value, self._copy(inside, depth - 1) if isinstance(inside, dict) else None
        if isinstance(value, dict):
            return value, {key: self._copy(one, depth - 1) for key, one in value.items()}
        return value, [self._copy(one, depth - 1) for one in inside]


def _back(saved: _Copy) -> None:
    value, content = saved
    if content is None:
        return
    if isinstance(value, Tensor):
        if not torch.equal(value, content):
            value.copy_(content)
    elif isinstance(value, dict):
        if list(value) != list(content) or any(value[key] is not one for key, (one, _) in content.items()):
            value.clear()
            value.update({key: one for key, (one, _) in content.items()})
        for one in content.values():
            _back(one)
    elif isinstance(value, list | tuple):
        if isinstance(value, list):  # the other kind cannot change, but what is in it can
            value[:] = [one for one, _ in content]
        for one in content:
            _back(one)
    else:
        _back(content)
