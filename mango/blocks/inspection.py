"""What is inside a model, from its configuration and the headers of its files, without its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mango.architectures import ComponentMap
from mango.architectures.screening import screen
from mango.architectures.support import Support, support_table
from mango.blocks.quick import quick_layout
from mango.blocks.refusals import refuse_folder
from mango.checkpoints import (
    Checkpoint,
    ModelSource,
    admit_hub,
    check_configuration,
    default_cache,
    parse_json,
    read_configuration,
    resolve,
)
from mango.checkpoints.configurations import BOUNDS
from mango.errors import CheckpointError, UnsafeFileError
from mango.tensors import floating_name, item_bytes


@dataclass(frozen=True)
class Fusion:
    """With whom a model can be fused, and through which adapters.

    Args:
        possible: whether fused models take it, as trunk and as expert; a model that reads images as trunk.
        partners: model types that it can be fused with: those for the same task, and with a model that reads images
            those that write text.
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
        extractable: indices of the blocks that `mango extract` writes into a store: those of the main stack.
        weight_bytes: memory for all weights in ``dtype``, or as stored where the files are at hand.
        cache_bytes_per_token: memory for keys and values of one token in all blocks, in ``dtype``.
        stored: whether the sizes come from the files rather than from the configuration.
        host: whether the conformance suite found that models of this type take other blocks; None where it does not
            know the type.
        guest: whether it fused them as experts, or for tasks without experts found their blocks portable; None
            likewise.
        fusion: with whom it can be fused.
    """

    source: str
    components: ComponentMap
    dtype: str
    num_parameters: int
    block_parameters: tuple[int, ...]
    edge_parameters: int
    extractable: tuple[int, ...]
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

    Of a Hub repository only the configuration is fetched, where the policy admits it. Of a GGUF file the header alone
    is read, and what it says is kept in the cache.

    Args:
        source: where the model is.

    Returns:
        Its parts and sizes.

    Raises:
        ArchitectureError: its blocks cannot be found.
        CheckpointError: the model is missing or cannot be read.
        UnsafeFileError: its configuration selects code, or the policy wants the revision of a Hub repository pinned.
    """
    if source.gguf_file is not None or source.source.endswith(".gguf"):
        from mango.checkpoints.gguf_outline import gguf_file_of, outline_gguf  # imports torch

        file = gguf_file_of(source)
        if file is not None:
            folder, outline = outline_gguf(file, default_cache())
            return _inspect(source.source, read_configuration(folder), None, outline)
    if _is_local(source):
        folder = resolve(source)
        checkpoint = refuse_folder(folder)
        raw = read_configuration(folder)
    else:
        checkpoint = None
        raw = _hub_configuration(source)
        screen(raw, source.source)
    return _inspect(source.source, raw, checkpoint)


def _is_local(source: ModelSource) -> bool:
    return source.gguf_file is not None or Path(source.source).expanduser().exists() or source.source.endswith(".gguf")


def _hub_configuration(source: ModelSource) -> dict[str, Any]:
    """Fetch the configuration of a Hub repository alone, where the policy admits the repository."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        admit_hub(source)
        file = Path(hf_hub_download(source.source, "config.json", revision=source.revision))
    except UnsafeFileError:
        raise
    except (OSError, ValueError, HfHubHTTPError, HFValidationError, CheckpointError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{source.source}: no folder of that name, and no configuration on the Hub: {reason}"
        ) from error
    raw = parse_json(file.read_bytes(), f"{source.source}: config.json", BOUNDS)
    return check_configuration(raw, f"{source.source}: config.json")


def _inspect(
    source: str,
    raw: Mapping[str, Any],
    checkpoint: Checkpoint | None,
    outline: Mapping[str, tuple[str, tuple[int, ...]]] | None = None,
) -> Inspection:
    by_type: dict[str, int] = {}
    for kind, shape in () if outline is None else outline.values():
        by_type[kind] = by_type.get(kind, 0) + math.prod(shape) * item_bytes(kind)
    for info in () if checkpoint is None else checkpoint.infos():
        by_type[info.dtype] = by_type.get(info.dtype, 0) + info.end - info.start
    layout = None if checkpoint is None else quick_layout(checkpoint)
    if layout is not None:
        components = layout.components
        per_block = tuple(sum(math.prod(at.shape) for at in tensors.values()) for _, tensors in layout.blocks)
        edges = sum(math.prod(at.shape) for at in layout.edges.values())
    else:
        components, per_block, edges = _watched(raw, source)
    dtype = max(sorted(by_type), key=by_type.__getitem__) if by_type else floating_name(components.dtype or "float32")
    total = sum(per_block) + edges
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
        edge_parameters=edges,
        extractable=tuple(range(components.num_blocks)),
        weight_bytes=sum(by_type.values()) or total * item_bytes(dtype),
        cache_bytes_per_token=keys_and_values * item_bytes(dtype),
        stored=checkpoint is not None or outline is not None,
        host=None if row is None else row.host,
        guest=None if row is None else row.guest,
        fusion=_fusion(components, row),
    )


def _watched(raw: Mapping[str, Any], where: str) -> tuple[ComponentMap, tuple[int, ...], int]:
    """Return the map of a model, and the parameters of its blocks and edges, by building it without weights."""
    from mango.architectures import build_meta, describe
    from mango.blocks.layout import read_config

    config = read_config(dict(raw), where)
    components = describe(config)
    model = build_meta(config, components.task)
    blocks = model.get_submodule(components.blocks_path)
    per_block = tuple(sum(p.numel() for p in block.parameters()) for block in blocks.children())
    return components, per_block, sum(p.numel() for p in model.parameters()) - sum(per_block)


def _fusion(components: ComponentMap, row: Support | None) -> Fusion:
    if row is None:
        return Fusion(False, (), (), f"model type {components.model_type!r} is not in the support table")
    if not row.fused:
        return Fusion(False, (), (), row.reason or "it was not shown to fuse")
    if row.task != components.task:
        what = f"models of this type are fused for {row.task}, and this is a model for {components.task}"
        return Fusion(False, (), (), what)
    sees = row.task == "image-text-to-text"  # the trunk of a fused model, with experts that write text
    tasks = ("causal-lm", row.task) if sees else (row.task,)
    others = (other for other in support_table().values() if other.fused and other.task in tasks)
    partners = tuple(sorted(other.model_type for other in others))
    width = components.width
    if sees:
        return Fusion(True, partners, (f"experts of width W: from {width} to W and back, images among the rest",), None)
    adapters = (
        "whole, with its own edges: none" + (", nor with its own tokenizer" if row.task == "causal-lm" else ""),
        f"cut, trunk of width {width}: linear or bottleneck, the identity at the start",
        f"cut, trunk of another width W: linear or bottleneck from W to {width} and back, started by ridge regression",
    )
    return Fusion(True, partners, adapters, None)
