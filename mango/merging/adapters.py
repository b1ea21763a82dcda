"""LoRA adapters, added to a model's weights tensor by tensor while these are read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mango.checkpoints import Checkpoint, ModelSource, read_json
from mango.checkpoints.headers import read_header
from mango.checkpoints.sources import hub_errors
from mango.errors import CheckpointError, MergeError
from mango.merging.names import translation
from mango.merging.tensor_sources import Adapted, LowRank, Replaced, Shifted, Stored, TensorSource

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PART = re.compile(r"^(?P<path>.+)\.lora_(?P<embedding>embedding_)?(?P<part>[AB])(\.(?!bias$)\w+)?(\.weight)?$")
_BIAS = re.compile(r"^(?P<path>.+)\.lora_(?P<part>B)(\.\w+)?\.bias$")
_LENGTHS = re.compile(r"^(?P<path>.+)\.lora_(?P<part>magnitude_vector)(\.\w+)?(\.weight)?$")
_REFUSED = {
    "use_qalora": "its matrices belong to a quantised weight",
    "megatron_config": "its matrices are split over processes",
    "trainable_token_indices": "it replaces single embeddings",
    "target_parameters": "it changes parameters that are no layers' weights",
    "alora_invocation_tokens": "it works behind some tokens alone",
    "arrow_config": "it chooses between adapters while it runs",
    "use_bdlora": "its matrices are split in blocks",
}
_STARTS_IN_WEIGHTS = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to start training that take a part out of the model's weights, which the adapter does not hold."""


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

    with hub_errors(ModelSource(source=reference, revision=revision)):
        return Path(
            snapshot_download(
                reference,
                revision=revision,
                allow_patterns=[CONFIG_NAME, WEIGHTS_NAME],
                cache_dir=None if cache is None else cache / "hub",
            )
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
    changed = [f"{path}.{kind}" for path, found in parts.items() for kind in _KINDS if _changes(kind, found)]
    places = translation([*changed, *whole], list(tensors))
    result, problems = dict(tensors), []
    for name, source in whole.items():  # first, since an embedding may be stored whole beside what is added to it
        target = places[name]
        if target not in tensors or tensors[target].shape != source.shape:
            shape = list(tensors[target].shape) if target in tensors else "nothing"
            problems.append(
                f"{folder}: holds a whole {name} of {list(source.shape)}; the model has {shape} of that name"
            )
        else:
            result[target] = Replaced(target, source.dtype, source.shape, source, tensors[target].kept_dtype)
    for path, found in parts.items():
        for kind, change in _KINDS.items():
            if not _changes(kind, found):
                continue
            name = places[f"{path}.{kind}"]
            if name not in tensors:
                problems.append(f"{folder}: changes {path}.{kind}, which the model does not have")
                continue
            try:
                result[name] = change(folder, config, path, found, result[name])
            except MergeError as error:
                problems.append(str(error))
    if problems:
        raise MergeError("\n".join(problems))
    return result


def _changes(kind: str, found: Mapping[str, TensorSource]) -> bool:
    return kind == "weight" or "bias" in found


def _check_kind(folder: Path, config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise MergeError(f"{folder}: is an adapter of kind {config.get('peft_type')!r}; only LORA is added to weights")
    for key, reason in _REFUSED.items():
        if config.get(key):
            raise MergeError(f"{folder}: {CONFIG_NAME} has {key}: {reason}; merge it into its model with peft first")
    start = str(config.get("init_lora_weights"))
    if start.startswith(_STARTS_IN_WEIGHTS):
        raise MergeError(
            f"{folder}: {CONFIG_NAME} has init_lora_weights: {start}, which takes a part out of the model's weights "
            "that the adapter does not hold; merge it into its model with peft first"
        )
    if config.get("layer_replication"):
        raise MergeError(f"{folder}: repeats layers; merge it into its model with peft first")


def _sorted(folder: Path, checkpoint: Checkpoint) -> tuple[dict[str, dict[str, TensorSource]], dict[str, TensorSource]]:
    """Return the thin matrices by the path of their layer, and weights that take the place of the model's own."""
    parts: dict[str, dict[str, TensorSource]] = {}
    whole: dict[str, TensorSource] = {}
    for info in checkpoint.infos():
        name = info.name.removeprefix(_PREFIX)
        if found := _BIAS.match(name) or _LENGTHS.match(name):
            kind = "bias" if found["part"] == "B" else "lengths"
            parts.setdefault(found["path"], {})[kind] = Stored.of(checkpoint, info)
        elif found := _PART.match(name):
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
    lengths = found.get("lengths")
    if lengths is not None and (embedding or lengths.num_elements != wanted[0]):
        raise MergeError(f"{folder}: scales {path} to lengths of {list(lengths.shape)}: only rows of a layer have them")
    if bool(config.get("use_dora")) != (lengths is not None):
        words = "no lengths" if lengths is None else "lengths"
        raise MergeError(f"{folder}: {path} has {words}, and use_dora is {bool(config.get('use_dora'))}")
    change = LowRank(down, up, _scale(config, path, down.shape[0]), transposed, embedding, lengths)
    return Adapted(weight.name, "F32", weight.shape, weight, change)


def _shifted(
    folder: Path, config: Mapping[str, Any], path: str, found: Mapping[str, TensorSource], bias: TensorSource
) -> TensorSource:
    change, down = found["bias"], found.get("A")
    if down is None or change.shape != bias.shape:
        raise MergeError(f"{folder}: changes the bias of {path} as {list(change.shape)}; it is {list(bias.shape)}")
    return Shifted(bias.name, "F32", bias.shape, bias, change, _scale(config, path, down.shape[0]))


def _scale(config: Mapping[str, Any], path: str, rank: int) -> float:
    alpha = float(_matched(config.get("alpha_pattern"), path, config.get("lora_alpha", rank)))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _matched(patterns: Any, path: str, default: Any) -> Any:
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return default


_KINDS = {"weight": _added, "bias": _shifted}
"""What an adapter may add to in a layer, and how."""
