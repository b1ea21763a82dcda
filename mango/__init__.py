"""Mango composes new language models out of pretrained ones, reproducibly.

``import mango`` is cheap, and from then on ``AutoModelForCausalLM.from_pretrained`` opens fused models: the heavy
libraries load when one is opened, or when a room of the package is imported.
"""

from __future__ import annotations

import importlib
from typing import Any

from mango.auto import announce

__all__ = ["__version__", "merge"]

__version__ = "0.1.0"

merge: Any
"""Merge models; see :func:`mango.merging.api.merge`. It is looked up when it is first used."""

announce()


def __getattr__(name: str) -> Any:
    if name == "merge":
        return importlib.import_module("mango.merging.api").merge  # by name: the rooms lie below this package
    raise AttributeError(f"module 'mango' has no attribute {name!r}")
