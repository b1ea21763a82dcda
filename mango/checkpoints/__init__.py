"""Model folders: where they come from, lazy reading, and writing that survives a crash."""

from __future__ import annotations

from mango.checkpoints.durable import recover_folder, replace_folder, write_file
from mango.checkpoints.failures import saving
from mango.checkpoints.headers import TensorInfo
from mango.checkpoints.manifest import MANIFEST_NAME, sha256_file, verify
from mango.checkpoints.reader import Checkpoint
from mango.checkpoints.sources import ModelSource, resolve
from mango.checkpoints.tokenizers import copy_tokenizer, tokenizer_sha256
from mango.checkpoints.writer import TensorSpec, write_tensors

__all__ = [
    "MANIFEST_NAME",
    "Checkpoint",
    "ModelSource",
    "TensorInfo",
    "TensorSpec",
    "copy_tokenizer",
    "recover_folder",
    "replace_folder",
    "resolve",
    "saving",
    "sha256_file",
    "tokenizer_sha256",
    "verify",
    "write_file",
    "write_tensors",
]
