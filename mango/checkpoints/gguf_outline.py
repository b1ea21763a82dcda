"""What a GGUF file becomes, told from its header: configuration, tokenizer and tensors, without a weight being read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from mango.checkpoints.durable import replace_folder, write_file
from mango.checkpoints.exchange import recover
from mango.checkpoints.failures import writing
from mango.checkpoints.gguf import check_gguf, stored_type
from mango.checkpoints.manifest import MANIFEST_NAME
from mango.checkpoints.sources import ModelSource, gguf_inside
from mango.errors import CheckpointError
from mango.tensors import dtype_name

if TYPE_CHECKING:
    import torch

_OUTLINE_NAME = "outline.json"
_LAYOUT_VERSION = 2  # of the outline's folder; a change makes new cache entries


def gguf_file_of(source: ModelSource) -> Path | None:
    """Return the GGUF file on this machine that a source means, or None where it means something else.

    Raises:
        CheckpointError: it lies outside of the source's folder, or is not there.
    """
    path = Path(source.source).expanduser()
    if path.is_file() and path.suffix == ".gguf" and source.gguf_file is None:
        return path
    if path.is_dir() and source.gguf_file is not None and source.revision is None:
        return gguf_inside(path, source.gguf_file)
    return None


def outline_gguf(file: Path, cache: Path) -> tuple[Path, dict[str, tuple[str, tuple[int, ...]]]]:
    """Return what :func:`mango.checkpoints.resolve` would make of a GGUF file.

    The entry in the cache is named by the file's place, size and times, since its hash would read all of it.

    Args:
        file: the file.
        cache: where configuration and tokenizer are kept.

    Returns:
        A folder with configuration and tokenizer; element type and shape of each tensor by name.

    Raises:
        CheckpointError: the ``gguf`` package is missing, the file is no GGUF file, or transformers cannot read it.
    """
    check_gguf(file, cache)
    at = file.stat()
    known = f"{file.resolve()} {at.st_size} {at.st_ino} {at.st_mtime_ns} {at.st_ctime_ns}"
    name = hashlib.sha256(known.encode()).hexdigest()
    folder = cache / "gguf" / f"outline-v{_LAYOUT_VERSION}-{name}"
    with writing(folder):
        folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        recover(folder)
        if not (folder / MANIFEST_NAME).is_file():
            model = _empty_model(file)
            found = {key: (dtype_name(t.dtype), list(t.shape)) for key, t in sorted(_stored(model).items())}
            with replace_folder(folder, is_output=False) as new:
                _write_small_files(file, model, new)
                write_file(new / _OUTLINE_NAME, json.dumps(found))
    tensors = json.loads((folder / _OUTLINE_NAME).read_text("utf-8"))
    return folder, {key: (kind, tuple(shape)) for key, (kind, shape) in tensors.items()}


def _empty_model(file: Path) -> Any:
    """Build the model of a GGUF file on the meta device."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        dtype = stored_type(file)
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    except (ValueError, KeyError, NotImplementedError, IndexError, RuntimeError) as error:
        raise CheckpointError(f"{file}: transformers cannot read this GGUF file ({error})") from error


def _write_small_files(file: Path, model: Any, folder: Path) -> None:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except (ValueError, KeyError, NotImplementedError, IndexError, RuntimeError) as error:
        raise CheckpointError(f"{file}: transformers cannot read this GGUF file ({error})") from error
    config = model.config
    config.architectures = [type(model).__name__]
    config.dtype = model.dtype
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _stored(model: Any) -> dict[str, torch.Tensor]:
    """Return a model's tensors under the names that it is saved with, each of those that are tied once."""
    from transformers.core_model_loading import revert_weight_conversion

    once: dict[int, str] = {}
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if once.setdefault(id(tensor), name) == name:
            state[name] = tensor.detach()
    converted: dict[str, torch.Tensor] = revert_weight_conversion(model, state)
    return converted
