"""The schema of a block store's ``manifest.json``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from mango.architectures import ComponentMap
from mango.blocks.params import Mode
from mango.config import Frozen

MANIFEST_FILE = "manifest.json"
FORMAT_VERSION: Literal[2] = 2
Sha256 = Field(pattern=r"^[0-9a-f]{64}$")


class StoredTensor(Frozen):
    """Where one tensor lies.

    Args:
        name: its full name in the causal language model's state dict.
        dtype: safetensors name of the element type (``"BF16"``).
        shape: its extents.
        file: the safetensors file: absolute, or relative to the store's folder.
        start: offset of its first byte in the file.
        end: offset behind its last byte in the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int = Field(ge=0)
    end: int = Field(ge=0)


class StoredFile(Frozen):
    """A weight file as extraction found it; what tells whether it still is the same without reading it.

    Args:
        file: the safetensors file: absolute, or relative to the store's folder.
        size: its size in bytes.
        modified_ns: when its content was last changed, in nanoseconds since 1970.
        changed_ns: when its content, name or rights were last changed, likewise; no program can set it.
        inode: its number in the file system.
        header_sha256: hash of its safetensors header.
        sha256: hash of the whole file, where the source itself says it (a manifest of Mango's, the Hub's cache); None
            where nothing does.
    """

    file: str
    size: int = Field(ge=0)
    modified_ns: int
    changed_ns: int
    inode: int
    header_sha256: str = Sha256
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")


class StoredBlock(Frozen):
    """One block of one model.

    Args:
        index: its place in the model, from 0.
        class_name: its class in ``transformers``.
        num_parameters: elements of its tensors.
        num_bytes: bytes of its tensors.
        sha256: hash of names inside the block, types, shapes and bytes; the same wherever the block is stored. None
            where extraction read headers only: then :meth:`BlockStore.block_sha256` takes it when it is asked for.
        tensors: its tensors, sorted by name.
    """

    index: int = Field(ge=0)
    class_name: str
    num_parameters: int
    num_bytes: int
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    tensors: tuple[StoredTensor, ...]


class StoredModel(Frozen):
    """One model: where it came from, its parts, its blocks, and everything that is no block.

    Args:
        source: what the parameters called it: a folder, a Hub id or a GGUF file.
        revision: commit of the Hub repository, where it came from one.
        folder: its tokenizer and weights: absolute, or relative to the store's folder.
        licence: what its model card declares, or None.
        mode: whether its tensors are referred to or copied.
        architecture: the map of its parts.
        config: content of its ``config.json``.
        tokenizer_sha256: identity of its vocabulary; None where its folder holds no tokenizer.
        blocks: its blocks in order.
        edges: embeddings, norms and head, sorted by name; a tied head has no second copy.
        edges_sha256: hash of the edges, made like that of a block, or None likewise.
        watched: whether the map was found by watching the model. One that an outline gave is compared with what
            watching says before a block is first built.
        files: the weight files as extraction found them, where it read headers only; else none.
    """

    source: str
    revision: str | None
    folder: str
    licence: str | None
    mode: Mode
    architecture: ComponentMap
    config: dict[str, Any]
    tokenizer_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    blocks: tuple[StoredBlock, ...]
    edges: tuple[StoredTensor, ...]
    edges_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    watched: bool = True
    files: tuple[StoredFile, ...] = ()


class Manifest(Frozen):
    """Everything that a block store knows, apart from the bytes of its tensors."""

    format_version: Literal[2] = FORMAT_VERSION
    models: dict[str, StoredModel]
