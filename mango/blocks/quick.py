"""Which tensors of a checkpoint are which block and which are edges, from headers and an outline alone."""

from __future__ import annotations

from dataclasses import dataclass

from mango.architectures import ComponentMap
from mango.architectures.outlines import outline
from mango.checkpoints import Checkpoint, TensorInfo


@dataclass(frozen=True)
class Layout:
    """Where the tensors of one checkpoint lie, by their names in the model.

    Args:
        components: map of the model's parts.
        blocks: for each block, its class and its tensors by full name, sorted.
        edges: everything else by full name, sorted.
    """

    components: ComponentMap
    blocks: tuple[tuple[str, dict[str, TensorInfo]], ...]
    edges: dict[str, TensorInfo]


def quick_layout(checkpoint: Checkpoint) -> Layout | None:
    """Return the layout of a checkpoint that an outline of its type fits, or None where the model has to be watched.

    Args:
        checkpoint: an opened model folder.
    """
    raw = checkpoint.config()
    if raw.get("quantization_config") is not None:
        return None
    found = outline(raw, {info.name: info.shape for info in checkpoint.infos()})
    if found is None:
        return None
    at = {name: checkpoint.info(stored) for name, stored in sorted(found.names.items())}
    parts = found.components
    blocks: list[dict[str, TensorInfo]] = [{} for _ in range(parts.num_blocks)]
    edges: dict[str, TensorInfo] = {}
    inside = f"{parts.blocks_path}."
    for name, info in at.items():
        if name.startswith(inside):
            blocks[int(name.removeprefix(inside).partition(".")[0])][name] = info
        else:
            edges[name] = info
    return Layout(parts, tuple((found.block_class, tensors) for tensors in blocks), edges)
