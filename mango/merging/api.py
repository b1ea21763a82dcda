"""``mango.merge``: merge models from Python, into a folder or into memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, overload

import torch

from mango.merging.document import MergeDocument
from mango.merging.engine import MergeReport, merge_tensors
from mango.merging.engine import merge as merge_into
from mango.merging.inputs import ModelValue
from mango.merging.loading import load_document

Recipe = MergeDocument | Mapping[str, Any] | Path | str


@overload
def merge(
    document: Recipe, out: Path | str, models: Mapping[str, ModelValue] | None = ..., **options: Any
) -> MergeReport: ...


@overload
def merge(
    document: Recipe, out: None = ..., models: Mapping[str, ModelValue] | None = ..., **options: Any
) -> dict[str, torch.Tensor]: ...


def merge(
    document: Recipe,
    out: Path | str | None = None,
    models: Mapping[str, ModelValue] | None = None,
    **options: Any,
) -> MergeReport | dict[str, torch.Tensor]:
    """Merge models by a document, into a folder or into memory.

    Args:
        document: a merge document, the same as a mapping, or the path of a YAML file.
        out: folder of the merged checkpoint; without it, the merged tensors are returned and nothing is written.
        models: the models that the document names: places, state dicts, or modules.
        options: further arguments of :func:`mango.merging.merge` or :func:`mango.merging.merge_tensors`.

    Returns:
        What was done, or the tensors by name.

    Raises:
        ConfigError: the document is wrong.
        MergeError: the models do not fit together, or the result has elements that are not finite.
        CheckpointError: a model is damaged, or the result cannot be written; an older version is intact.
    """
    loaded = load_document(document) if isinstance(document, Path | str) else document
    if out is None:
        return merge_tensors(loaded, models, **options)
    return merge_into(loaded, out, models, **options)
