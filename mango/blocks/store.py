"""Reading a block store: what is in it, its tensors, and its blocks as modules."""

from __future__ import annotations

import os.path
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from mango.blocks.hashes import remembered
from mango.blocks.identity import check_unchanged
from mango.blocks.manifest import FORMAT_VERSION, MANIFEST_FILE, Manifest, StoredBlock, StoredModel, StoredTensor
from mango.blocks.mapped import hash_tensors, map_tensors
from mango.checkpoints import check_hashes, recover_folder
from mango.errors import ArchitectureError, CheckpointError, IntegrityError, UnknownNameError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig

    from mango.blocks.modules import BlockShells


class BlockStore:
    """Blocks and edges of models, read when they are first used.

    Where the manifest has the hash of a block, its bytes are checked against it once in a process. Where extraction
    read headers only, the files that a block lies in must be those that were extracted, each time that it is opened.
    Instances may be shared by threads.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._verified: set[tuple[str, int | None]] = set()
        self._hashes: dict[tuple[str, int | None], str] = {}
        self._vouched: set[str] = set()
        self._shells: dict[str, BlockShells] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path | str) -> BlockStore:
        """Open a store; only its manifest is read.

        Raises:
            CheckpointError: there is no store, or its manifest cannot be read.
            IntegrityError: the manifest is damaged or of another format version.
        """
        folder = Path(os.path.realpath(path))
        recover_folder(folder)
        file = folder / MANIFEST_FILE
        try:
            text = file.read_bytes()
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{path}: is no block store, it has no {MANIFEST_FILE}; run extract-blocks"
            ) from error
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from error
        try:
            return cls(folder, Manifest.model_validate_json(text))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the document"
            raise IntegrityError(
                f"{file}: {where}: {first['msg']}; wanted a manifest of format version {FORMAT_VERSION}: "
                "run extract-blocks again"
            ) from error

    def models(self) -> list[str]:
        """Return the names of the models, sorted."""
        return sorted(self.manifest.models)

    def model(self, name: str) -> StoredModel:
        """Return what the manifest says about a model.

        Raises:
            UnknownNameError: the store has no such model.
        """
        try:
            return self.manifest.models[name]
        except KeyError:
            known = ", ".join(self.models())
            raise UnknownNameError(f"{self.folder}: unknown model {name!r}. Known: {known}") from None

    def block(self, model: str, index: int) -> StoredBlock:
        """Return what the manifest says about a block.

        Raises:
            UnknownNameError: the store has no such model or block.
        """
        blocks = self.model(model).blocks
        if not 0 <= index < len(blocks):
            raise UnknownNameError(f"{self.folder}: {model!r} has blocks 0 to {len(blocks) - 1}, none of index {index}")
        return blocks[index]

    def block_tensors(self, model: str, index: int) -> dict[str, torch.Tensor]:
        """Return the tensors of a block, mapped from their file and private to the caller.

        Returns:
            Tensors on the CPU in their stored type, by name inside the block.

        Raises:
            CheckpointError: a file is missing.
            IntegrityError: a file is truncated, or its bytes are not those that were extracted.
            UnknownNameError: the store has no such model or block.
        """
        stored = self.block(model, index)
        owner = f"block {index} of {model!r}"
        prefix = self.model(model).architecture.block_prefix(index)
        mapped = map_tensors(self.folder, stored.tensors, owner=owner)
        tensors = {name.removeprefix(prefix): tensor for name, tensor in mapped.items()}
        self._verify((model, index), tensors, stored.sha256, owner, stored.tensors)
        return tensors

    def edge_tensors(self, model: str) -> dict[str, torch.Tensor]:
        """Return everything of a model that is no block, mapped and private to the caller.

        Returns:
            Tensors on the CPU in their stored type, by full name; a tied head is not among them.

        Raises:
            CheckpointError: a file is missing.
            IntegrityError: a file is truncated, or its bytes are not those that were extracted.
            UnknownNameError: the store has no such model.
        """
        stored = self.model(model)
        owner = f"the edges of {model!r}"
        tensors = map_tensors(self.folder, stored.edges, owner=owner)
        self._verify((model, None), tensors, stored.edges_sha256, owner, stored.edges)
        return tensors

    def block_sha256(self, model: str, index: int) -> str:
        """Return the hash of a block: of its names, types, shapes and bytes, the same wherever it is stored.

        Where extraction took none, the block is read now, and its hash kept for as long as its files do not change.

        Raises:
            CheckpointError: a file is missing.
            IntegrityError: a file is not the one that was extracted.
            UnknownNameError: the store has no such model or block.
        """
        stored = self.block(model, index)
        return stored.sha256 or self._hash(
            (model, index), stored.tensors, lambda: hash_tensors(self.block_tensors(model, index))
        )

    def edges_sha256(self, model: str) -> str:
        """Return the hash of everything of a model that is no block, like :meth:`block_sha256`.

        Raises:
            CheckpointError: a file is missing.
            IntegrityError: a file is not the one that was extracted.
            UnknownNameError: the store has no such model.
        """
        stored = self.model(model)
        return stored.edges_sha256 or self._hash(
            (model, None), stored.edges, lambda: hash_tensors(self.edge_tensors(model))
        )

    def load_block(self, model: str, index: int) -> nn.Module:
        """Return a block as a module of its own class, with its weights and its true place in the model.

        The module is in evaluation mode, its parameters are in their stored type and mapped from the file.

        Raises:
            CheckpointError: a file is missing.
            IntegrityError: a file is truncated, or its bytes are not those that were extracted.
            UnknownNameError: the store has no such model or block.
        """
        tensors = self.block_tensors(model, index)
        with self._lock:
            if model not in self._shells:
                self._shells[model] = self._build_shells(model)
            shells = self._shells[model]
        return shells.fill(index, tensors)

    def config(self, model: str) -> PretrainedConfig:
        """Return the configuration of a model; a new object at each call.

        Raises:
            ArchitectureError: the installed ``transformers`` does not know it.
            UnknownNameError: the store has no such model.
        """
        from mango.blocks.layout import read_config

        return read_config(self.model(model).config, f"{self.folder / MANIFEST_FILE}: {model!r}")

    def tokenizer_folder(self, model: str) -> Path:
        """Return the folder that holds a model's tokenizer.

        Raises:
            CheckpointError: the folder is gone.
            UnknownNameError: the store has no such model.
        """
        folder = Path(os.path.normpath(self.folder / self.model(model).folder))
        if not folder.is_dir():
            raise CheckpointError(
                f"{folder}: missing, and the tokenizer of {model!r} lies in it; "
                "bring the model back or run extract-blocks again"
            )
        return folder

    def table(self) -> list[dict[str, Any]]:
        """Return a row of statistics for each block of each model; every weight is read.

        Returns:
            Rows in the order of models and blocks; see :func:`mango.blocks.statistics.block_row`.

        Raises:
            CheckpointError: a file is missing.
            IntegrityError: a file is truncated, or its bytes are not those that were extracted.
        """
        from mango.blocks.statistics import block_row

        return [
            block_row(
                name,
                self.model(name),
                stored,
                self.block_tensors(name, stored.index),
                sha256=self.block_sha256(name, stored.index),
            )
            for name in self.models()
            for stored in self.model(name).blocks
        ]

    def _build_shells(self, model: str) -> BlockShells:
        from mango.architectures import describe
        from mango.blocks.modules import BlockShells

        config, stored = self.config(model), self.model(model)
        parts = stored.architecture
        if not stored.watched and (found := describe(config, parts.task)) != parts:
            raise ArchitectureError(
                f"{self.folder / MANIFEST_FILE}: {model!r}: extraction took its parts for {parts.architecture} with "
                f"{parts.num_blocks} blocks in {parts.blocks_path}, but the installed transformers builds {found}; run "
                "extract-blocks again with mode copy, which watches the model"
            )
        return BlockShells(config, parts)

    def _verify(
        self,
        key: tuple[str, int | None],
        tensors: dict[str, torch.Tensor],
        wanted: str | None,
        owner: str,
        stored: tuple[StoredTensor, ...],
    ) -> None:
        if wanted is None:
            self._check_files(key[0], stored, owner)
            return
        if key in self._verified:
            return
        found = hash_tensors(tensors)
        if found != wanted:
            files = sorted({tensor.file for tensor in stored})
            where = ", ".join(str(os.path.normpath(self.folder / file)) for file in files)
            raise IntegrityError(
                f"{where}: {owner} has SHA-256 {found[:12]}..., but {wanted[:12]}... was extracted: the file was "
                "changed or damaged; restore it or run extract-blocks again"
            )
        self._verified.add(key)

    def _check_files(self, model: str, stored: tuple[StoredTensor, ...], owner: str) -> None:
        """Refuse files that are not those that were extracted; they have been mapped by now."""
        used = {tensor.file for tensor in stored}
        for file in self.model(model).files:
            if file.file in used:
                check_unchanged(self.folder / file.file, file, owner)
        if model not in self._vouched:
            check_hashes(self.tokenizer_folder(model))  # what a manifest of Mango's says of the model's files
            self._vouched.add(model)

    def _hash(self, key: tuple[str, int | None], stored: tuple[StoredTensor, ...], compute: Callable[[], str]) -> str:
        if key not in self._hashes:
            used = {tensor.file for tensor in stored}
            files = [file for file in self.model(key[0]).files if file.file in used]
            prefix = "" if key[1] is None else self.model(key[0]).architecture.block_prefix(key[1])
            self._hashes[key] = remembered(self.folder, files, stored, prefix, compute)
        return self._hashes[key]
