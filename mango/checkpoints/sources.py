"""Where a model comes from: a folder, the Hugging Face Hub, or a GGUF file."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pydantic import Field

from mango.checkpoints.durable import recover_folder
from mango.checkpoints.gguf import convert_gguf
from mango.config import Frozen
from mango.errors import CheckpointError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_FILES = [
    "*.safetensors",
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template*",
    "additional_chat_templates/*.jinja",
]


class ModelSource(Frozen):
    """Where a model is.

    Attributes:
        source: a model folder, a ``.gguf`` file, or the id of a Hub repository.
        revision: branch, tag or commit of the Hub repository; pin a commit for results that can be repeated.
        gguf_file: the file to take, inside the folder or repository, when that holds GGUF files.
    """

    source: str = Field(min_length=1)
    revision: str | None = None
    gguf_file: str | None = Field(default=None, pattern=r"\.gguf$")


def default_cache() -> Path:
    """Return the folder for converted models: ``$MANGO_CACHE``, else ``~/.cache/mango``."""
    return Path(os.environ.get("MANGO_CACHE") or Path.home() / ".cache" / "mango")


def resolve(source: ModelSource, cache: Path | None = None) -> Path:
    """Return the local folder of a model, with ``config.json`` and safetensors weights.

    A folder is returned as it is. A Hub repository is downloaded: safetensors, configuration and tokenizer files
    only, never code or pickles. A GGUF file is converted once into the cache.

    Args:
        source: where the model is.
        cache: where converted GGUF files and downloads are kept; by default :func:`default_cache` for conversions
            and the Hub's own cache for downloads.

    Raises:
        CheckpointError: the model is missing, cannot be downloaded or cannot be converted.
    """
    path = Path(source.source).expanduser()
    recover_folder(path)
    if path.is_file() and path.suffix == ".gguf":
        if source.gguf_file is not None:
            raise CheckpointError(f"{path}: is a GGUF file already; leave out gguf_file: {source.gguf_file}")
        return convert_gguf(path, cache or default_cache())
    if path.is_dir():
        if source.revision is not None:
            raise CheckpointError(
                f"{path}: a local folder has no revision {source.revision!r}; leave out revision, or rename the folder "
                "if the Hub repository of that name is meant"
            )
        if source.gguf_file is not None:
            return convert_gguf(_inside(path, source.gguf_file), cache or default_cache())
        if not (path / "config.json").is_file():
            raise CheckpointError(f"{path}: holds no config.json, so it is no model folder")
        return path
    if path.is_file():
        raise CheckpointError(f"{path}: is a file; a model folder, a .gguf file or a Hub id was wanted")
    if path.suffix == ".gguf" or not _HUB_ID.fullmatch(source.source):
        raise CheckpointError(f"{source.source}: no such model folder or file; check the path in the models section")
    return _from_hub(source, cache)


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise CheckpointError(f"{folder}: gguf_file {name!r} lies outside of it")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such GGUF file")
    return path


def _from_hub(source: ModelSource, cache: Path | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    hub_cache = None if cache is None else cache / "hub"
    wanted = _HUB_FILES if source.gguf_file is None else [source.gguf_file]
    try:
        folder = Path(
            snapshot_download(source.source, revision=source.revision, allow_patterns=wanted, cache_dir=hub_cache)
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        at = f" at revision {source.revision!r}" if source.revision else ""
        raise CheckpointError(
            f"{source.source}: there is no such folder, and no model of that name{at} could be had from the Hub "
            f"({reason}). Check the name, the network and, for a gated model, the access token"
        ) from error
    if source.gguf_file is not None:
        return convert_gguf(_inside(folder, source.gguf_file), cache or default_cache())
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{source.source}: the Hub repository holds no config.json, so it is no model")
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{source.source}: the Hub repository holds no safetensors weights; pickles are not read")
    return folder
