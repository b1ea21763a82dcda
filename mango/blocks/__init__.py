"""The block store: blocks of pretrained models, where they lie, their hashes, and their return as modules."""

from mango.blocks.extraction import declared_licence, extract
from mango.blocks.inspection import Inspection, inspect_model
from mango.blocks.layout import read_config
from mango.blocks.manifest import FORMAT_VERSION, Manifest, StoredBlock, StoredModel, StoredTensor
from mango.blocks.params import ExtractParams, Mode
from mango.blocks.source_models import load_source
from mango.blocks.store import BlockStore

__all__ = [
    "FORMAT_VERSION",
    "BlockStore",
    "ExtractParams",
    "Inspection",
    "Manifest",
    "Mode",
    "StoredBlock",
    "StoredModel",
    "StoredTensor",
    "declared_licence",
    "extract",
    "inspect_model",
    "load_source",
    "read_config",
]
