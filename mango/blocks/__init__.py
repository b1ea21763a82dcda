"""The block store: blocks of pretrained models, where they lie, their hashes, and their return as modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mango.blocks.extraction import declared_licence, extract
from mango.blocks.manifest import FORMAT_VERSION, Manifest, StoredBlock, StoredFile, StoredModel, StoredTensor
from mango.blocks.params import ExtractParams, Mode
from mango.blocks.refusals import refuse_early
from mango.lazy import lazily

if TYPE_CHECKING:
    from mango.blocks.inspection import Inspection, inspect_model
    from mango.blocks.layout import read_config
    from mango.blocks.source_models import load_source
    from mango.blocks.store import BlockStore
else:
    __getattr__ = lazily(
        __name__,
        {
            "Inspection inspect_model": "inspection",
            "read_config": "layout",
            "load_source": "source_models",
            "BlockStore": "store",
        },
    )

__all__ = [
    "FORMAT_VERSION",
    "BlockStore",
    "ExtractParams",
    "Inspection",
    "Manifest",
    "Mode",
    "StoredBlock",
    "StoredFile",
    "StoredModel",
    "StoredTensor",
    "declared_licence",
    "extract",
    "inspect_model",
    "load_source",
    "read_config",
    "refuse_early",
]
