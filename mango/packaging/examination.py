"""Whatever Mango writes or reads, examined: packages, fused models, block stores, and plain model folders."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from mango.blocks import BlockStore
from mango.checkpoints import (
    MANIFEST_NAME,
    Examination,
    check_configuration,
    examine_hashes,
    examine_model,
    has_tokenizer,
    read_json,
    tokenizer_sha256,
)
from mango.errors import CheckpointError, IntegrityError, MangoError
from mango.packaging.manifest import MANIFEST_FILE, verify_package

_STORE_FILE = "manifest.json"


def examine(folder: Path | str) -> Examination:
    """Check everything of a folder; problems are kept, not raised.

    Args:
        folder: a package, a fused model, a block store, a plain model folder, or an output that holds several models.

    Returns:
        What was checked and what is wrong.

    Raises:
        CheckpointError: there is no such folder, or it is none of these.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; check the path or run the stage that writes it")
    kind = kind_of(folder)
    found = Examination(folder, kind)
    examine_hashes(found, folder)
    if kind == "package":
        found.attempt(
            "package", folder / MANIFEST_FILE, lambda: f"{len(verify_package(folder).files)} files as it says"
        )
    if kind == "block store":
        _examine_store(found, folder)
    elif kind == "output":
        for inner in sorted(path.parent for path in folder.glob("*/config.json")):
            examine_model(found, inner)
    else:
        examine_model(found, folder)
    return found


def kind_of(folder: Path) -> str:
    """Return what a folder is, by the files in it.

    Raises:
        CheckpointError: it is nothing that Mango knows.
    """
    if (folder / MANIFEST_FILE).is_file():
        return "package"
    if (folder / "config.json").exists():
        try:
            model_type = read_json(folder / "config.json").get("model_type")
        except MangoError:
            return "model"  # what is wrong with it, the examination says
        return "fused model" if model_type == "mol" else "model"
    if (folder / _STORE_FILE).is_file():
        return "block store"
    if (folder / MANIFEST_NAME).is_file():
        return "output"
    if any(folder.glob("*.safetensors")):
        return "model"
    raise CheckpointError(
        f"{folder}: is no package, model, block store or other output of Mango; it has neither {MANIFEST_FILE}, "
        f"config.json, {_STORE_FILE} nor {MANIFEST_NAME}"
    )


def _examine_store(found: Examination, folder: Path) -> None:
    opened: list[BlockStore] = []

    def look() -> str:
        opened.append(BlockStore.open(folder))
        return f"{len(opened[0].models())} models"

    if not found.attempt("store", folder / _STORE_FILE, look):
        return
    store, file = opened[0], folder / _STORE_FILE
    for name in store.models():
        found.attempt(f"configuration of {name}", file, partial(_configuration, store, name))
        found.attempt(f"edges of {name}", folder, partial(_edges, store, name))
        for block in store.model(name).blocks:
            found.attempt(f"block {block.index} of {name}", folder, partial(_block, store, name, block.index))
        found.attempt(f"tokenizer of {name}", folder, partial(_tokenizer, store, name))


def _edges(store: BlockStore, name: str) -> str:
    return _finite(store.edge_tensors(name), f"{store.folder}: edges of {name!r}")


def _block(store: BlockStore, name: str, index: int) -> str:
    return _finite(store.block_tensors(name, index), f"{store.folder}: block {index} of {name!r}")


def _configuration(store: BlockStore, name: str) -> str:
    check_configuration(store.model(name).config, f"{store.folder / _STORE_FILE}: {name}")
    return type(store.config(name)).__name__


def _finite(tensors: dict[str, torch.Tensor], what: str) -> str:
    for name, tensor in sorted(tensors.items()):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise IntegrityError(f"{what}: tensor {name!r} holds NaN or infinite numbers; extract from sound weights")
    return f"{len(tensors)} tensors as extracted, all finite"


def _tokenizer(store: BlockStore, name: str) -> str:
    folder = store.tokenizer_folder(name)
    digest = tokenizer_sha256(folder) if has_tokenizer(folder) else None
    if digest != store.model(name).tokenizer_sha256:
        raise IntegrityError(f"{folder}: the tokenizer of {name!r} is not the one that was extracted; run it again")
    return f"as extracted, in {folder}" if digest else "none, as extracted"
