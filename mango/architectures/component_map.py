"""What a causal language model is made of, as names and sizes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ComponentMap:
    """Where a causal language model keeps its parts, and how wide they are.

    Paths in ``before``, ``after`` and ``blocks`` are relative to the base model; ``embeddings`` and ``head`` are
    relative to the causal language model.

    Args:
        model_type: ``config.model_type``, such as ``"llama"``.
        architecture: class name of the causal language model.
        base_prefix: attribute of the causal language model that holds the base model (``"model"``).
        blocks: path of the block list inside the base model (``"layers"``, ``"h"``, ``"decoder.layers"``).
        block_class: class name of the blocks; several names are sorted and joined with ``"|"``.
        num_blocks: number of blocks.
        width: size of the residual stream that blocks read and write.
        num_heads: query heads of one block.
        num_kv_heads: key and value heads that one block caches.
        head_dim: size of one cached key.
        intermediate_size: inner width of the feed-forward part, where it has a single one.
        vocab_size: rows of the input embedding.
        max_positions: longest sequence that the model declares, or None.
        embeddings: path of the input embedding.
        before: modules with parameters that run before the first block, in the order of their first call.
        after: modules with parameters that run after the last block, in the order of their first call.
        head: path of the output projection, or None.
        tied: whether the output projection is the input embedding's own tensor.
    """

    model_type: str
    architecture: str
    base_prefix: str
    blocks: str
    block_class: str
    num_blocks: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int | None
    vocab_size: int
    max_positions: int | None
    embeddings: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    head: str | None
    tied: bool

    @property
    def blocks_path(self) -> str:
        """Path of the block list inside the causal language model (``"model.layers"``)."""
        return f"{self.base_prefix}.{self.blocks}"

    def block_prefix(self, index: int) -> str:
        """Return the prefix of one block's tensors in the state dict, with its closing dot."""
        return f"{self.blocks_path}.{index}."

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values that JSON can hold."""
        return asdict(self)
