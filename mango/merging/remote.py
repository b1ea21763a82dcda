"""Models on the Hub, planned by their headers: range requests read these, and no weight is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mango.checkpoints import Checkpoint, ModelSource, admit_hub
from mango.checkpoints.configurations import BOUNDS, CONFIG_NAME
from mango.checkpoints.documents import read_json
from mango.checkpoints.sources import hub_errors
from mango.errors import CheckpointError
from mango.merging.tensor_sources import Remote, Stored, TensorSource
from mango.tensors import ITEM_BYTES

_SMALL_FILES = [
    "*config.json",
    "model.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
    "README.md",
]


def is_hub_id(source: ModelSource) -> bool:
    """Tell whether a source is no local path, so that the Hub must know it."""
    path = Path(source.source).expanduser()
    return not path.exists() and path.suffix != ".gguf" and source.gguf_file is None and source.source.count("/") <= 1


def is_hub_gguf(source: ModelSource) -> bool:
    """Tell whether a source is a GGUF file in a repository of the Hub."""
    return source.gguf_file is not None and is_hub_id(source.model_copy(update={"gguf_file": None}))


def open_remote(source: ModelSource, cache: Path | None) -> tuple[Path, dict[str, Any], dict[str, TensorSource], bool]:
    """Return folder of the small files, configuration, tensors, and whether the weights are still on the Hub.

    Raises:
        CheckpointError: the Hub does not have the model, or cannot be reached.
    """
    from huggingface_hub import HfApi, snapshot_download

    admit_hub(source)
    hub_cache = None if cache is None else cache / "hub"
    with hub_errors(source):
        folder = Path(
            snapshot_download(source.source, revision=source.revision, allow_patterns=_SMALL_FILES, cache_dir=hub_cache)
        )
        if any(folder.glob("*.safetensors")):
            try:
                checkpoint = Checkpoint.open_unhashed(folder)
                local: dict[str, TensorSource] = {info.name: Stored.of(checkpoint, info) for info in checkpoint.infos()}
                return folder, read_json(folder / CONFIG_NAME, BOUNDS), local, False
            except CheckpointError:
                pass  # a part of it was downloaded: what is there and what is not does not matter for a plan
        found = HfApi().get_safetensors_metadata(source.source, revision=source.revision)
    tensors: dict[str, TensorSource] = {}
    for metadata in found.files_metadata.values():
        for name, info in metadata.tensors.items():
            if info.dtype not in ITEM_BYTES:
                raise CheckpointError(f"{source.source}: {name!r} has element type {info.dtype!r}, which is not known")
            start, end = info.data_offsets
            tensors[name] = Remote(name, info.dtype, tuple(info.shape), end - start)
    return folder, read_json(folder / CONFIG_NAME, BOUNDS), dict(sorted(tensors.items())), True
