"""What a model is made of, as names and sizes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Stack:
    """A run of blocks of one model: where it is, how wide it is, and how data flows through it.

    Args:
        role: what it does in the model: ``decoder``, ``encoder``, ``vision``, ``text``, ``audio`` and so on; the stages
            of one tower have a number behind a dot, and so have two stacks of the same role.
        path: path of the block list inside the model.
        root: path of the part whose forward pass runs the blocks; empty where it is the model itself.
        block_class: class name of the blocks; several names are sorted and joined with ``"|"``.
        num_blocks: number of blocks.
        width: size of the stream that blocks read and write; 0 where they differ.
        isotropic: whether every block returns a stream of the shape that it is given, the same for all.
        num_heads: query heads of one block, or 0 where blocks have none or differ.
        num_kv_heads: key and value heads of one block, or 0.
        head_dim: size of one head, or 0.
        attention: what each block mixes tokens with: ``full``, ``sliding``, ``chunked``, ``linear``, ``ssm``, ``conv``
            or ``none``, joined by ``+`` where a block has several.
        order: indices of the blocks in the order in which they run; longer than ``num_blocks`` where blocks run again.
        carried: names of the arguments that take more than the stream from one block to the next.
        before: modules with parameters that run before the first block, relative to ``root``.
        after: modules with parameters that run after the last block, relative to ``root``.
        between: modules with parameters that run between blocks, relative to ``root``.
    """

    role: str
    path: str
    root: str
    block_class: str
    num_blocks: int
    width: int
    isotropic: bool
    num_heads: int
    num_kv_heads: int
    head_dim: int
    attention: tuple[str, ...]
    order: tuple[int, ...]
    carried: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    between: tuple[str, ...]

    def block_prefix(self, index: int) -> str:
        """Return the prefix of one block's tensors in the model's state dict, with its closing dot."""
        return f"{self.path}.{index}."


@dataclass(frozen=True)
class ComponentMap:
    """Where a model keeps its parts, and how wide they are.

    The fields up to ``tied`` are about its main stack: of a causal language model the only one, otherwise the longest.
    Paths in ``before``, ``after`` and ``blocks`` are relative to the base model; the others are relative to the whole
    model.

    Args:
        model_type: ``config.model_type``, such as ``"llama"``.
        architecture: class name of the model.
        base_prefix: attribute of the model that holds the base model (``"model"``); empty where it is the base model.
        blocks: path of the block list inside the base model (``"layers"``, ``"h"``, ``"decoder.layers"``).
        block_class: class name of the blocks; several names are sorted and joined with ``"|"``.
        num_blocks: number of blocks.
        width: size of the residual stream that blocks read and write.
        num_heads: query heads of one block; 0 where it has none.
        num_kv_heads: key and value heads that one block caches; 0 where it caches none.
        head_dim: size of one cached key; 0 where there is none.
        intermediate_size: inner width of the feed-forward part, where it has a single one.
        vocab_size: rows of the input embedding; 0 where the model takes no tokens.
        max_positions: longest sequence that the model declares, or None.
        embeddings: path of the input embedding; empty where there is none.
        before: modules with parameters that run before the first block, in the order of their first call.
        after: modules with parameters that run after the last block, in the order of their first call.
        head: path of the output projection, or None.
        tied: whether the output projection is the input embedding's own tensor.
        task: what the model is built for, one of :data:`mango.architectures.TASKS`.
        family: ``causal``, ``masked``, ``seq2seq``, ``text``, ``vision``, ``multimodal``, ``audio`` or ``other``.
        dtype: element type that the configuration declares (``"bfloat16"``), or None.
        position_embeddings: modules that make positions, inside or outside of the main stack's first block.
        final_norm: the norm after the last block of the main stack, or None.
        stacks: every stack of blocks, the main one first.
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
    task: str = "causal-lm"
    family: str = "causal"
    dtype: str | None = None
    position_embeddings: tuple[str, ...] = ()
    final_norm: str | None = None
    stacks: tuple[Stack, ...] = ()

    @property
    def blocks_path(self) -> str:
        """Path of the main block list inside the model (``"model.layers"``)."""
        return f"{self.base_prefix}.{self.blocks}" if self.base_prefix else self.blocks

    def block_prefix(self, index: int) -> str:
        """Return the prefix of one block's tensors in the state dict, with its closing dot."""
        return f"{self.blocks_path}.{index}."

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values that JSON can hold."""
        return asdict(self)
