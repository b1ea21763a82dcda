"""What is inside a model, from its configuration and the headers of its files, without its weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from mango.architectures import ComponentMap, build_meta, describe
from mango.architectures.support import Support, support_table
from mango.architectures.tasks import CAUSAL
from mango.blocks.layout import read_config
from mango.checkpoints import Checkpoint, ModelSource, resolve
from mango.errors import CheckpointError
from mango.tensors import dtype_name, item_bytes, parse_dtype


@dataclass(frozen=True)
class Fusion:
    """With whom a model can be fused, and through which adapters.

    Args:
        possible: whether fused models take it, as trunk and as expert.
        partners: model types that it can be fused with, where they share its tokenizer.
        adapters: what stands between it and a trunk, for each way to cut it.
        reason: why not, or None.
    """

    possible: bool
    partners: tuple[str, ...]
    adapters: tuple[str, ...]
    reason: str | None


@dataclass(frozen=True)
class Inspection:
    """What a model is made of.

    Args:
        source: where it is.
        components: map of its parts.
        dtype: safetensors name of the type that most of its bytes have: in its files, else as its configuration says.
        num_parameters: all of its parameters; a tied head counts once.
        block_parameters: parameters of each block.
        edge_parameters: parameters of everything that is no block.
        weight_bytes: memory for all weights in ``dtype``, or as stored where the files are at hand.
        cache_bytes_per_token: memory for keys and values of one token in all blocks, in ``dtype``.
        stored: whether the sizes come from the files rather than from the configuration.
        host: whether the conformance suite found that models of this type take other blocks; None where it does not
            know the type.
        guest: whether it found that their blocks run in other models; None likewise.
        fusion: with whom it can be fused.
    """

    source: str
    components: ComponentMap
    dtype: str
    num_parameters: int
    block_parameters: tuple[int, ...]
    edge_parameters: int
    weight_bytes: int
    cache_bytes_per_token: int
    stored: bool
    host: bool | None
    guest: bool | None
    fusion: Fusion

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values that JSON can hold."""
        return asdict(self)


def inspect_model(source: ModelSource) -> Inspection:
    """Return what is inside a model; no weight is loaded.

    Of a Hub repository only the configuration is fetched. A GGUF file is converted once into the cache, as for every
    other use of it.

    Args:
        source: where the model is.

    Returns:
        Its parts and sizes.

    Raises:
        ArchitectureError: its blocks cannot be found.
        CheckpointError: the model is missing or cannot be read.
    """
    if _is_local(source):
        folder = resolve(source)
        has_weights = any(folder.glob("*.safetensors"))
        checkpoint = Checkpoint.open(folder) if has_weights else None
        raw = checkpoint.config() if checkpoint else _config_of(str(folder), None)
    else:
        checkpoint = None
        raw = _config_of(source.source, source.revision)
    config = read_config(raw, source.source)
    return _inspect(source.source, config, checkpoint)


def _is_local(source: ModelSource) -> bool:
    return source.gguf_file is not None or Path(source.source).expanduser().exists() or source.source.endswith(".gguf")


def _config_of(source: str, revision: str | None) -> dict[str, Any]:
    try:
        raw, _ = PretrainedConfig.get_config_dict(source, revision=revision)
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{source}: no folder of that name, and no configuration on the Hub: {reason}") from error
    if "model_type" not in raw:
        raise CheckpointError(f"{source}: holds no config.json with a model type, so it is no model")
    return dict(raw)


def _inspect(source: str, config: PretrainedConfig, checkpoint: Checkpoint | None) -> Inspection:
    components = describe(config)
    model = build_meta(config, components.task)
    blocks = model.get_submodule(components.blocks_path)
    per_block = tuple(sum(p.numel() for p in block.parameters()) for block in blocks.children())
    total = sum(p.numel() for p in model.parameters())
    if checkpoint is not None:
        by_type: dict[str, int] = {}
        for info in checkpoint.infos():
            by_type[info.dtype] = by_type.get(info.dtype, 0) + info.end - info.start
        dtype = max(sorted(by_type), key=by_type.__getitem__)
        weight_bytes = sum(by_type.values())
    else:
        declared = config.dtype if config.dtype is not None else "float32"
        dtype = dtype_name(parse_dtype(str(declared)))
        weight_bytes = total * item_bytes(dtype)
    caching = sum(
        bool({"full", "sliding", "chunked"} & set(kind.split("+"))) for kind in components.stacks[0].attention
    )
    keys_and_values = 2 * components.num_kv_heads * components.head_dim * caching
    row = support_table().get(components.model_type)
    return Inspection(
        source=source,
        components=components,
        dtype=dtype,
        num_parameters=total,
        block_parameters=per_block,
        edge_parameters=total - sum(per_block),
        weight_bytes=weight_bytes,
        cache_bytes_per_token=keys_and_values * item_bytes(dtype),
        stored=checkpoint is not None,
        host=None if row is None else row.host,
        guest=None if row is None else row.guest,
        fusion=_fusion(components, row),
    )


def _fusion(components: ComponentMap, row: Support | None) -> Fusion:
    if components.task != CAUSAL:
        what = f"fused models are causal language models so far, and this is a model for {components.task}"
        return Fusion(False, (), (), what)
    if row is None:
        return Fusion(False, (), (), f"model type {components.model_type!r} is not in the support table")
    if not row.cached_decode:
        return Fusion(False, (), (), row.reason or "decoding with a cache was not shown to equal decoding without")
    partners = tuple(sorted(other.model_type for other in support_table().values() if other.cached_decode))
    width = components.width
    adapters = (
        "whole, with its own edges: none",
        f"cut, trunk of width {width}: linear or bottleneck, the identity at the start",
        f"cut, trunk of another width W: linear or bottleneck from W to {width} and back, started by ridge regression",
    )
    return Fusion(True, partners, adapters, None)
