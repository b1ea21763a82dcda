"""Lets transformers' Auto classes open fused models, without making ``import mango`` import transformers.

`announce` puts a stand-in for the configuration class into transformers' table of model types, now or as soon as that
table is imported. The first use of the stand-in imports the real classes and registers them.
"""

from __future__ import annotations

import importlib
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

MODEL_TYPE = "mol"

AUTO_CLASSES = {
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "sentence-embedding": "AutoModel",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "image-classification": "AutoModelForImageClassification",
    "image-text-to-text": "AutoModelForImageTextToText",
}
"""The Auto class of each task that a fused model may be for."""
_TABLE = "transformers.models.auto.configuration_auto"


def announce() -> None:
    """Make the model type known to transformers, whether it is imported already or not."""
    table = sys.modules.get(_TABLE)
    if table is not None:
        _add(table)
    elif not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher())


def register() -> Any:
    """Register the real classes with the Auto classes and return the configuration class."""
    import transformers

    fusion = importlib.import_module("mango.fusion")  # by name: this module lies below it
    transformers.AutoConfig.register(MODEL_TYPE, fusion.MolConfig, exist_ok=True)
    for task, name in AUTO_CLASSES.items():
        getattr(transformers, name).register(fusion.MolConfig, fusion.HEADS[task], exist_ok=True)
    return fusion.MolConfig


class _StandIn(type):
    """A class that becomes the real one when anything is asked of it."""

    def __getattr__(cls, name: str) -> Any:
        return getattr(register(), name)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return register()(*args, **kwargs)


def _add(table: ModuleType) -> None:
    if MODEL_TYPE not in table.CONFIG_MAPPING:
        table.CONFIG_MAPPING.register(MODEL_TYPE, _StandIn("MolConfig", (), {"__module__": __name__}))


class _Watcher(MetaPathFinder):
    """Finds one module as Python would, and adds the stand-in when it has been imported."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the module's own spec, with a step after its execution."""
        spec = PathFinder.find_spec(name, path, target) if name == _TABLE else None
        if spec is None or spec.loader is None:
            return None
        loader, execute = spec.loader, spec.loader.exec_module

        def execute_and_add(module: ModuleType) -> None:
            execute(module)
            _add(module)

        setattr(loader, "exec_module", execute_and_add)  # noqa: B010
        sys.meta_path.remove(self)
        return spec
