"""Merge documents over the models of the fixtures, and what reads a result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mango.checkpoints import ModelSource

Family = dict[str, ModelSource]
MakeModel = Callable[..., Path]


def document(method: str, *names: str, **parameters: Any) -> dict[str, Any]:
    data = {"merge_method": method, "models": [{"model": name} for name in names], "parameters": parameters}
    if method != "linear":
        data["base_model"] = names[0] if method == "slerp" else "base"
    return data


def weights(source: ModelSource | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(source.source if isinstance(source, ModelSource) else source) / "model.safetensors")


DOCUMENTS: dict[str, dict[str, Any]] = {
    "linear": {
        "merge_method": "linear",
        "models": [{"model": n, "parameters": {"weight": w}} for n, w in (("a", 1.0), ("b", 2.0), ("c", 0.5))],
    },
    "task_arithmetic": document("task_arithmetic", "a", "b", "c", weight=1.0, **{"lambda": 0.4}),
    "ties": document("ties", "a", "b", "c", weight=1.0, density=0.3),
    "slerp": document("slerp", "a", "b", t=0.3),
}
