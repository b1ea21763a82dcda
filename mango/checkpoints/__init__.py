"""Model folders: where they come from, lazy reading, and writing that survives a crash."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mango.checkpoints.configurations import check_configuration, read_configuration
from mango.checkpoints.documents import Bounds, parse_json, read_json
from mango.checkpoints.durable import recover_folder, remove_file, replace_folder, replace_folders, write_file
from mango.checkpoints.failures import saving
from mango.checkpoints.hashing import sha256_file
from mango.checkpoints.headers import TensorInfo
from mango.checkpoints.manifest import MANIFEST_NAME, read_manifest, verify
from mango.checkpoints.opening import (
    check_tensors,
    open_config,
    open_model,
    open_tokenizer,
    prepared,
    refuse_other_tensors,
)
from mango.checkpoints.pickles import convert_pickles, read_report, scan_pickles, write_converted
from mango.checkpoints.reader import Checkpoint
from mango.checkpoints.room import check_room, free_bytes, size_of
from mango.checkpoints.sealing import make_durable
from mango.checkpoints.siblings import only_writer
from mango.checkpoints.sources import ModelSource, admit_hub, default_cache, resolve, tier_of_folder
from mango.checkpoints.templates import chat_templates, render_template
from mango.checkpoints.tokenizer_rules import check_tokenizer
from mango.checkpoints.tokenizers import copy_tokenizer, has_tokenizer, tokenizer_sha256
from mango.checkpoints.vouching import check_hashes, known_sha256
from mango.lazy import lazily

if TYPE_CHECKING:
    from mango.checkpoints.examination import Check, Examination, examine_hashes, examine_model
    from mango.checkpoints.values import Wrong, check_values, wrong_values
    from mango.checkpoints.writer import TensorSpec, write_tensors
else:
    __getattr__ = lazily(
        __name__,
        {
            "Check Examination examine_hashes examine_model": "examination",
            "Wrong check_values wrong_values": "values",
            "TensorSpec write_tensors": "writer",
        },
    )

__all__ = [
    "MANIFEST_NAME",
    "Bounds",
    "Check",
    "Checkpoint",
    "Examination",
    "ModelSource",
    "TensorInfo",
    "TensorSpec",
    "Wrong",
    "admit_hub",
    "chat_templates",
    "check_configuration",
    "check_hashes",
    "check_room",
    "check_tensors",
    "check_tokenizer",
    "check_values",
    "convert_pickles",
    "copy_tokenizer",
    "default_cache",
    "examine_hashes",
    "examine_model",
    "free_bytes",
    "has_tokenizer",
    "known_sha256",
    "make_durable",
    "only_writer",
    "open_config",
    "open_model",
    "open_tokenizer",
    "parse_json",
    "prepared",
    "read_configuration",
    "read_json",
    "read_manifest",
    "read_report",
    "recover_folder",
    "refuse_other_tensors",
    "remove_file",
    "render_template",
    "replace_folder",
    "replace_folders",
    "resolve",
    "saving",
    "sha256_file",
    "scan_pickles",
    "size_of",
    "tier_of_folder",
    "tokenizer_sha256",
    "verify",
    "write_converted",
    "write_file",
    "write_tensors",
    "wrong_values",
]
