"""Names of a package that import their module when they are first used, so that a light part costs no heavy library."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


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
