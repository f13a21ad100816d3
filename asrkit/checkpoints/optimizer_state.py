"""An optimizer's state as flat tensors and JSON data, and back: what a checkpoint keeps of it, without pickle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from asrkit.errors import StorageError


def optimizer_to_tensors(state_dict: Mapping[str, Any]) -> tuple[dict[str, Tensor], Any]:
    """Split an optimizer's `state_dict()` into flat tensors and JSON data, without pickle and without losing a bit.

    Tensors keep dtype and shape. In the JSON data {"tensor": name} stands for a tensor, {"tuple": [...]} for a tuple
    and {"dict": [[key, value], ...]} for a dict, whose keys may be numbers.
    """
    tensors: dict[str, Tensor] = {}

    def encode(value: Any, at: str) -> Any:
        if isinstance(value, Tensor):
            tensors[at] = value
            return {"tensor": at}
        if isinstance(value, Mapping):
            return {"dict": [[key, encode(child, f"{at}.{key}" if at else str(key))] for key, child in value.items()]}
        if isinstance(value, tuple):
            return {"tuple": [encode(child, f"{at}.{index}") for index, child in enumerate(value)]}
        if isinstance(value, list):
            return [encode(child, f"{at}.{index}") for index, child in enumerate(value)]
        if value is None or isinstance(value, str | int | float):
            return value
        raise StorageError(f"optimizer state {at} is a {type(value).__name__}", fix="report it", reason="state")

    structure = encode(state_dict, "")
    return tensors, structure


def optimizer_from_tensors(tensors: Mapping[str, Tensor], structure: Any) -> dict[str, Any]:
    """The `state_dict` that `optimizer_to_tensors` was given. Raises StorageError where a tensor is missing, and for a
    structure that it never gives."""
    try:
        state = _decoded(tensors, structure)
    except (ValueError, TypeError, RecursionError) as error:
        raise StorageError(f"the optimizer's state is damaged ({error})", reason="damaged") from error
    if not isinstance(state, dict):
        raise StorageError("the optimizer's state is damaged", reason="damaged")
    return state


def _decoded(tensors: Mapping[str, Tensor], structure: Any) -> Any:
    if isinstance(structure, list):
        return [_decoded(tensors, child) for child in structure]
    if not isinstance(structure, Mapping):
        return structure
    ((kind, value),) = structure.items()
    if kind == "tensor":
        if value not in tensors:
            raise StorageError(f"optimizer tensor {value!r} is missing", reason="damaged")
        return tensors[value]
    if kind == "tuple":
        return tuple(_decoded(tensors, child) for child in value)
    return {key: _decoded(tensors, child) for key, child in value}
