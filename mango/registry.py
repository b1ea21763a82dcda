"""Typed registries: one for each kind of part, filled by decorators and by entry points.

A built-in part registers with a decorator. Another package registers through the entry-point group
``mango.<kind>``; entry points are looked at on the first look-up that needs them, never on import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from pydantic import BaseModel

from mango.config import near
from mango.errors import ConfigError, UnknownNameError

T = TypeVar("T")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """One registered part: its name, the part, and the model that validates its parameters."""

    name: str
    part: T
    params: type[BaseModel]


class Registry(Generic[T]):
    """The parts of one kind, by name.

    Args:
        kind: plural, as in the entry-point group ``mango.<kind>`` (``"routers"``).
        noun: what a message calls one part (``"router"``).
    """

    def __init__(self, kind: str, noun: str) -> None:
        self.kind = kind
        self.noun = noun
        self._entries: dict[str, Entry[T]] = {}
        self._loaded_entry_points = False

    def register(self, name: str, params: type[BaseModel]) -> Callable[[T], T]:
        """Return a decorator that registers a part under ``name`` with its parameter model.

        Args:
            name: what a configuration calls the part.
            params: model of the part's own parameters.

        Returns:
            The decorator; it gives the part back unchanged.

        Raises:
            ConfigError: the name is taken.
        """
        if name in self._entries:
            raise ConfigError(f"{self.noun} {name!r} is registered twice: choose another name")

        def decorate(part: T) -> T:
            self._entries[name] = Entry(name, part, params)
            return part

        return decorate

    def _load_entry_points(self) -> None:
        if self._loaded_entry_points:
            return
        self._loaded_entry_points = True
        for point in sorted(entry_points(group=f"mango.{self.kind}"), key=lambda p: p.name):
            try:
                point.load()  # importing the module runs its register() decorators
            except (ImportError, AttributeError) as error:
                package = point.dist.name if point.dist else "a package"
                raise ConfigError(
                    f"{self.noun} {point.name!r} of {package} cannot be imported from {point.value!r}: {error}"
                ) from error

    def entry(self, name: str) -> Entry[T]:
        """Return the entry called ``name``.

        Args:
            name: what a configuration calls the part.

        Returns:
            The part and its parameter model.

        Raises:
            UnknownNameError: nothing of that name is registered; the message lists near and known names.
        """
        if name not in self._entries:
            self._load_entry_points()
        if name not in self._entries:
            hint = near(name, self.names()) or "."
            raise UnknownNameError(f"unknown {self.noun} {name!r}{hint} Known: {', '.join(self.names())}")
        return self._entries[name]

    def __getitem__(self, name: str) -> T:
        return self.entry(name).part

    def names(self) -> list[str]:
        """Return all known names, sorted, those of entry points included."""
        self._load_entry_points()
        return sorted(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self.names()
