"""Model folders: where they come from, lazy reading, and writing that survives a crash."""

from __future__ import annotations

from mango.checkpoints.durable import recover_folder, remove_file, replace_folder, replace_folders, write_file
from mango.checkpoints.failures import saving
from mango.checkpoints.headers import TensorInfo
from mango.checkpoints.manifest import MANIFEST_NAME, sha256_file, verify
from mango.checkpoints.reader import Checkpoint
from mango.checkpoints.room import check_room, free_bytes, size_of
from mango.checkpoints.siblings import only_writer
from mango.checkpoints.sources import ModelSource, resolve
from mango.checkpoints.tokenizers import copy_tokenizer, tokenizer_sha256
from mango.checkpoints.writer import TensorSpec, write_tensors

__all__ = [
    "MANIFEST_NAME",
    "Checkpoint",
    "ModelSource",
    "TensorInfo",
    "TensorSpec",
    "check_room",
    "copy_tokenizer",
    "free_bytes",
    "only_writer",
    "recover_folder",
    "remove_file",
    "replace_folder",
    "replace_folders",
    "resolve",
    "saving",
    "sha256_file",
    "size_of",
    "tokenizer_sha256",
    "verify",
    "write_file",
    "write_tensors",
]
