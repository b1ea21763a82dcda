"""Which tensors of a loaded object are the state dict, and what each is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

USUAL_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "module", "weights", "params", "net")
"""Keys under which training programs keep a state dict, in the order in which they are tried."""

_DEEPEST = 8


def select(
    value: Any, is_tensor: Callable[[Any], bool], parts_of: Callable[[Any], Mapping[Any, Any] | None]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Find the state dict in an object that a checkpoint holds.

    A mapping with tensors in it is taken as it is; else the first usual key that holds one; else tensors at any
    depth, with names joined by dots. A list of tensors is named by position, a lone tensor ``tensor``.

    Args:
        value: what the checkpoint holds.
        is_tensor: tells tensors.
        parts_of: returns the state dict of a module, and None for all else.

    Returns:
        Tensors by name, and what else stood among them.
    """
    value = _down(value, is_tensor, parts_of)
    if is_tensor(value):
        return {"tensor": value}, {}
    chosen: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    nested = not (isinstance(value, Mapping) and any(is_tensor(item) for item in value.values()))
    _flatten(value, "", nested, is_tensor, parts_of, chosen, rest, 0)
    return chosen, rest


def _down(value: Any, is_tensor: Callable[[Any], bool], parts_of: Callable[[Any], Any]) -> Any:
    for _ in range(_DEEPEST):
        value = _plain(value, parts_of)
        if not isinstance(value, Mapping) or any(is_tensor(item) for item in value.values()):
            return value
        for key in USUAL_KEYS:
            inner = _plain(value.get(key), parts_of)
            if _holds(inner, is_tensor, parts_of, 0):
                value = inner
                break
        else:
            return value
    return value


def _plain(value: Any, parts_of: Callable[[Any], Any]) -> Any:
    parts = parts_of(value)
    return value if parts is None else parts


def _holds(value: Any, is_tensor: Callable[[Any], bool], parts_of: Callable[[Any], Any], depth: int) -> bool:
    if is_tensor(value):
        return True
    value = _plain(value, parts_of)
    items = list(value.values()) if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return depth < _DEEPEST and any(_holds(item, is_tensor, parts_of, depth + 1) for item in items)


def _flatten(
    value: Any,
    prefix: str,
    nested: bool,
    is_tensor: Callable[[Any], bool],
    parts_of: Callable[[Any], Any],
    chosen: dict[str, Any],
    rest: dict[str, Any],
    depth: int,
) -> None:
    value = _plain(value, parts_of)
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, item in pairs:
        name = f"{prefix}{key}"
        item = _plain(item, parts_of)
        if is_tensor(item):
            if name in chosen:
                raise ValueError(f"holds two tensors called {name!r}")
            chosen[name] = item
        elif nested and depth < _DEEPEST and isinstance(item, Mapping | list | tuple):
            _flatten(item, f"{name}.", nested, is_tensor, parts_of, chosen, rest, depth + 1)
        else:
            rest[name] = item
