"""GGUF files become ordinary model folders, once, in a cache."""

from __future__ import annotations

import importlib.util
import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from mango.checkpoints.durable import replace_folder
from mango.checkpoints.exchange import recover
from mango.checkpoints.failures import writing
from mango.checkpoints.hashing import sha256_file
from mango.checkpoints.manifest import MANIFEST_NAME
from mango.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_LAYOUT_VERSION = 1  # of the converted folder; a change makes new cache entries
_MAGIC = b"GGUF"
_log = logging.getLogger(__name__)


def convert_gguf(file: Path, cache: Path) -> Path:
    """Return the folder of a GGUF file's model in the cache; convert it there if it is not there yet.

    The entry is named by the file's SHA-256. Quantised weights become bfloat16, since the file holds no more than
    that; float16 and float32 weights keep their type. The model's class and tokenizer come from transformers.

    Raises:
        CheckpointError: the ``gguf`` package is missing, the file is no GGUF file, or transformers cannot read it.
    """
    file = Path(file)
    check_gguf(file, cache)
    folder = cache / "gguf" / f"v{_LAYOUT_VERSION}-{sha256_file(file)}"
    with writing(folder):
        folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        recover(folder)
        if not (folder / MANIFEST_NAME).is_file():
            _log.info("converting %s into %s", file, folder)
            with replace_folder(folder) as new:
                _convert(file, new)
    return folder


def check_gguf(file: Path, cache: Path) -> None:
    """Refuse what is no GGUF file or cannot be read here, and make the cache.

    Raises:
        CheckpointError: the ``gguf`` package is missing, or the file is no GGUF file.
    """
    with writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
        with file.open("rb") as stream:
            magic = stream.read(len(_MAGIC))
    if magic != _MAGIC:
        raise CheckpointError(f"{file}: does not start as a GGUF file does; download it again")
    if importlib.util.find_spec("gguf") is None:
        raise CheckpointError(f"{file}: reading GGUF files needs the gguf package; run: pip install gguf")


def stored_type(file: Path) -> torch.dtype:
    """Return the type in which most of a GGUF file's elements are kept here, as its header tells."""
    import torch
    from gguf import GGMLQuantizationType, GGUFReader

    elements: Counter[GGMLQuantizationType] = Counter()
    for tensor in GGUFReader(file).tensors:
        elements[tensor.tensor_type] += int(tensor.n_elements)
    plain = {GGMLQuantizationType.F32: torch.float32, GGMLQuantizationType.F16: torch.float16}
    return plain.get(elements.most_common(1)[0][0], torch.bfloat16) if elements else torch.bfloat16


def _plain_weights() -> dict[str, Any]:
    """Return what tells transformers to unpack quantised weights; releases without the option always do."""
    import transformers

    option = getattr(transformers, "GgufConfig", None)
    return {} if option is None else {"quantization_config": option(dequantize=True)}


def _convert(file: Path, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        dtype = stored_type(file)
        loading: Any = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=dtype, output_loading_info=True, **_plain_weights()
        )
        loaded, report = loading
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except (ValueError, KeyError, NotImplementedError, IndexError, RuntimeError) as error:
        raise CheckpointError(f"{file}: transformers cannot read this GGUF file ({error})") from error
    if wrong := sorted({*report["missing_keys"], *report["unexpected_keys"]}):
        raise CheckpointError(f"{file}: its tensors are not those of {type(loaded).__name__} (first: {wrong[0]})")
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # else saving is refused: the weights are plain now
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    model.load_state_dict(loaded.state_dict(), strict=True, assign=True)
    model.tie_weights()
    if loaded.generation_config is not None:
        model.generation_config = loaded.generation_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
