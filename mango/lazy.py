"""Modules and names that are imported when they are first used, so that a light part costs no heavy library."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

_importing = threading.RLock()


def lazily(package: str, places: Mapping[str, str]) -> Callable[[str], Any]:
    """Return what a package sets as its ``__getattr__``, so that each public name is imported when it is asked for.

    The package lists the same names in ``__all__`` and, below ``if TYPE_CHECKING``, imports them for type checkers.

    Args:
        package: name of the package.
        places: the module inside the package that defines a name, by name; several names may stand together, with
            spaces between them.

    Returns:
        A function that imports a name, keeps it in the package and returns it. It raises AttributeError for others.
    """
    modules = {name: module for names, module in places.items() for name in names.split()}

    def find(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{modules[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return find


def defer(name: str) -> None:
    """Let ``import name`` cost nothing in this process until something of the module is used.

    For commands that often do without a library which takes a second to import. A module that is imported already, or
    that is not installed, is left alone. The standard library's ``LazyLoader`` is not enough: a second import of the
    same name loads the module.

    Args:
        name: a top-level module, such as ``torch``.
    """
    if name in sys.modules or (spec := importlib.util.find_spec(name)) is None:
        return
    stand_in = _Deferred(name)
    stand_in.__spec__ = spec
    sys.modules[name] = stand_in


class _Deferred(ModuleType):
    """Stands for a module until one of its names is asked for, and hands its names on from then on."""

    def __getattr__(self, name: str) -> Any:
        with _importing:
            if sys.modules.get(self.__name__) is self:
                del sys.modules[self.__name__]
                try:
                    module = importlib.import_module(self.__name__)
                except BaseException:
                    sys.modules[self.__name__] = self
                    raise
                vars(self).update(vars(module))  # so that names are found as fast as in the module itself
        return getattr(sys.modules[self.__name__], name)
