"""Numbers about a block that show damage at a glance: norms, extremes, and values that are no numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mango.blocks.manifest import StoredBlock, StoredModel

_CHUNK_ELEMENTS = 1 << 22
_ATTENTION = re.compile(r"attn|attention")
_FEED_FORWARD = re.compile(r"mlp|ffn|feed_?forward|moe|expert|(^|\.)fc_?\d")


@dataclass(frozen=True)
class Moments:
    """Sums over the finite elements of tensors, from which the statistics follow."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    max_abs: float = 0.0
    num_nonfinite: int = 0

    def __add__(self, other: Moments) -> Moments:
        """Return the sums over both."""
        return Moments(
            self.count + other.count,
            self.total + other.total,
            self.squares + other.squares,
            max(self.max_abs, other.max_abs),
            self.num_nonfinite + other.num_nonfinite,
        )

    @property
    def norm(self) -> float:
        """The Frobenius norm."""
        return math.sqrt(self.squares)

    @property
    def mean(self) -> float:
        """The mean, 0 without elements."""
        return self.total / self.count if self.count else 0.0

    @property
    def std(self) -> float:
        """The standard deviation of the elements themselves (divided by their number), 0 without elements."""
        return math.sqrt(max(0.0, self.squares / self.count - self.mean**2)) if self.count else 0.0


def moments(tensors: Iterable[torch.Tensor]) -> Moments:
    """Return the sums over the finite elements of tensors.

    Args:
        tensors: tensors of any shape and real type on the CPU; read in pieces, summed in float64.

    Returns:
        The sums; elements that are infinite or no number are only counted.
    """
    result = Moments()
    for tensor in tensors:
        for piece in torch.split(tensor.detach().reshape(-1), _CHUNK_ELEMENTS):
            values = piece.to(torch.float64)
            finite = values[torch.isfinite(values)]
            if finite.numel():
                result += Moments(
                    finite.numel(), finite.sum().item(), finite.square().sum().item(), finite.abs().max().item()
                )
            result += Moments(num_nonfinite=values.numel() - finite.numel())
    return result


def block_row(
    model: str, stored: StoredModel, block: StoredBlock, tensors: Mapping[str, torch.Tensor], *, sha256: str
) -> dict[str, Any]:
    """Return the statistics of one block.

    Norms are Frobenius norms. Attention and feed-forward parts are told apart by the words in their tensors' names;
    a part that has no such tensor has no norm.

    Args:
        model: the model's name in the store.
        stored: what the manifest says about the model.
        block: what the manifest says about the block.
        tensors: its tensors by name inside the block.
        sha256: its hash.

    Returns:
        Plain values by column.
    """
    attention = [tensor for name, tensor in tensors.items() if _ATTENTION.search(name)]
    feed_forward = [
        tensor for name, tensor in tensors.items() if _FEED_FORWARD.search(name) and not _ATTENTION.search(name)
    ]
    everything = moments(tensors.values())
    architecture = stored.architecture
    return {
        "model": model,
        "source": stored.source,
        "index": block.index,
        "block_class": block.class_name,
        "width": architecture.width,
        "num_heads": architecture.num_heads,
        "num_kv_heads": architecture.num_kv_heads,
        "head_dim": architecture.head_dim,
        "num_parameters": block.num_parameters,
        "dtype": "|".join(sorted({tensor.dtype for tensor in block.tensors})),
        "norm": everything.norm,
        "attention_norm": moments(attention).norm if attention else None,
        "mlp_norm": moments(feed_forward).norm if feed_forward else None,
        "max_abs": everything.max_abs,
        "mean": everything.mean,
        "std": everything.std,
        "num_nonfinite": everything.num_nonfinite,
        "sha256": sha256,
        "bytes": block.num_bytes,
    }
