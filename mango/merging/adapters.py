"""LoRA adapters, added to a model's weights tensor by tensor while these are read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mango.checkpoints import Checkpoint, read_json
from mango.checkpoints.headers import read_header
from mango.errors import CheckpointError, MergeError
from mango.merging.names import translation
from mango.merging.tensor_sources import Adapted, LowRank, Stored, TensorSource

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PART = re.compile(r"^(?P<path>.+)\.lora_(?P<embedding>embedding_)?(?P<part>[AB])(\.\w+)?(\.weight)?$")
_REFUSED = {
    "use_dora": "DoRA rescales the sum by a learned length, which is not LoRA",
    "use_qalora": "its matrices belong to a quantised weight",
    "megatron_config": "its matrices are split over processes",
    "trainable_token_indices": "it replaces single embeddings",
    "target_parameters": "it changes parameters that are no layers' weights",
}


def find_adapter(reference: str, revision: str | None, cache: Path | None) -> Path:
    """Return the local folder of an adapter; one on the Hub is downloaded, which takes little.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(reference).expanduser()
    if path.is_dir():
        folder = path
    elif path.exists():
        raise CheckpointError(f"{path}: is a file; the folder of an adapter was wanted")
    else:
        folder = _download(reference, revision, cache)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: holds no {name}, so it is no LoRA adapter that can be read")
    return folder


def _download(reference: str, revision: str | None, cache: Path | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                reference,
                revision=revision,
                allow_patterns=[CONFIG_NAME, WEIGHTS_NAME],
                cache_dir=None if cache is None else cache / "hub",
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{reference}: no such adapter folder, and none to be had from the Hub ({reason})") from (
            error
        )


def adapted(tensors: Mapping[str, TensorSource], folder: Path) -> dict[str, TensorSource]:
    """Return a model's tensors with an adapter added to those that it changes.

    Args:
        tensors: the model's tensors by name.
        folder: the adapter's folder.

    Returns:
        All tensors by name.

    Raises:
        MergeError: the adapter is of another kind than LoRA, or does not fit the model; one line for each problem.
    """
    config = read_json(folder / CONFIG_NAME)
    _check_kind(folder, config)
    checkpoint = Checkpoint(folder, read_header(folder / WEIGHTS_NAME))
    parts, whole = _sorted(folder, checkpoint)
    weights = [f"{path}.weight" for path in parts]
    places = translation([*weights, *whole], list(tensors))
    result, problems = dict(tensors), []
    for path, found in parts.items():
        name = places[f"{path}.weight"]
        if name not in tensors:
            problems.append(f"{folder}: changes {path}.weight, which the model does not have")
            continue
        try:
            result[name] = _added(folder, config, path, found, tensors[name])
        except MergeError as error:
            problems.append(str(error))
    for name, source in whole.items():
        target = places[name]
        if target not in tensors or tensors[target].shape != source.shape:
            shape = list(tensors[target].shape) if target in tensors else "nothing"
            problems.append(
                f"{folder}: holds a whole {name} of {list(source.shape)}; the model has {shape} of that name"
            )
        else:
            result[target] = source
    if problems:
        raise MergeError("\n".join(problems))
    return result


def _check_kind(folder: Path, config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise MergeError(f"{folder}: is an adapter of kind {config.get('peft_type')!r}; only LORA is added to weights")
    for key, reason in _REFUSED.items():
        if config.get(key):
            raise MergeError(f"{folder}: {CONFIG_NAME} has {key}: {reason}; merge it into its model with peft first")
    if config.get("bias", "none") != "none":
        raise MergeError(f"{folder}: trains biases ({config['bias']!r}); merge it into its model with peft first")
    if config.get("layer_replication"):
        raise MergeError(f"{folder}: repeats layers; merge it into its model with peft first")


def _sorted(folder: Path, checkpoint: Checkpoint) -> tuple[dict[str, dict[str, TensorSource]], dict[str, TensorSource]]:
    """Return the thin matrices by the path of their layer, and weights that take the place of the model's own."""
    parts: dict[str, dict[str, TensorSource]] = {}
    whole: dict[str, TensorSource] = {}
    for info in checkpoint.infos():
        name = info.name.removeprefix(_PREFIX)
        if found := _PART.match(name):
            kind = ("embedding_" if found["embedding"] else "") + found["part"]
            parts.setdefault(found["path"], {})[kind] = Stored.of(checkpoint, info)
        elif "lora_" in name:
            raise MergeError(f"{folder}: {info.name} is no matrix of LoRA; merge it into its model with peft first")
        else:
            name = re.sub(r"\.modules_to_save(\.\w+)?\.", ".", name).replace(".base_layer.", ".")
            whole[name] = Stored.of(checkpoint, info, name)
    return parts, whole


def _added(
    folder: Path, config: Mapping[str, Any], path: str, found: Mapping[str, TensorSource], weight: TensorSource
) -> TensorSource:
    embedding = "embedding_A" in found
    down, up = (found.get(f"embedding_{p}" if embedding else p) for p in "AB")
    if down is None or up is None:
        raise MergeError(f"{folder}: {path} has only one of its two matrices")
    if len(down.shape) != 2 or len(up.shape) != 2 or down.shape[0] != up.shape[1]:
        raise MergeError(f"{folder}: {path} has matrices of {list(down.shape)} and {list(up.shape)}")
    transposed = bool(config.get("fan_in_fan_out")) and not embedding
    wanted = (up.shape[0], down.shape[1])
    shape = wanted[::-1] if transposed or embedding else wanted
    if weight.shape != shape:
        raise MergeError(f"{folder}: changes {path} as {list(shape)}; the model's weight is {list(weight.shape)}")
    rank = down.shape[0]
    alpha = float(_matched(config.get("alpha_pattern"), path, config.get("lora_alpha", rank)))
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Adapted(weight.name, "F32", weight.shape, weight, LowRank(down, up, scale, transposed, embedding))


def _matched(patterns: Any, path: str, default: Any) -> Any:
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return default
