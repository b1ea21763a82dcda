"""A merge inside a merge: its tensors are computed when the outer one asks for them, and no file is written."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mango.merging.combining import combine_whole
from mango.merging.outputs import OutputTensor
from mango.merging.tensor_sources import TensorSource, total_read


@dataclass(frozen=True, eq=False)
class Merged(TensorSource):
    """A tensor that an inner merge makes.

    Attributes:
        output: what it is made of.
        written: the type in which the inner document would write it.
    """

    output: OutputTensor
    written: str

    def load(self) -> torch.Tensor:
        """Merge the inner tensors."""
        return combine_whole(self.output)

    @property
    def kept_dtype(self) -> str:
        """The type in which the inner document would write it."""
        return self.written

    @property
    def held_bytes(self) -> int:
        """The result, and what its own sources hold meanwhile."""
        return super().held_bytes + sum(source.held_bytes for source in self.output.inputs)

    @property
    def read_bytes(self) -> int:
        """What the inner merge reads."""
        return total_read(self.output.inputs)
