"""Where an input tensor comes from: a file, memory, an adapter on top of another tensor, or zeros."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mango.checkpoints import Checkpoint, TensorInfo
from mango.merging.devices import staged, to_device
from mango.tensors import dtype_name, item_bytes, torch_dtype


@dataclass(frozen=True)
class TensorSource(ABC):
    """One tensor of an input model, not read yet.

    Attributes:
        name: its name in the model.
        dtype: the safetensors name of its element type.
        shape: its extents.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @abstractmethod
    def load(self) -> torch.Tensor:
        """Return the tensor on the CPU; one that lies in a file is mapped, and read when it is used."""

    def load_to(self, device: torch.device) -> torch.Tensor:
        """Return the tensor on a device; what does not come from a file is loaded and copied."""
        return to_device(self.load(), device)

    @property
    def num_elements(self) -> int:
        """The number of its elements."""
        size = 1
        for extent in self.shape:
            size *= extent
        return size

    @property
    def kept_dtype(self) -> str:
        """The type in which a merge writes it when the document names none."""
        return self.dtype

    @property
    def held_bytes(self) -> int:
        """Memory that loading it takes, beyond the file's own pages."""
        return self.num_elements * item_bytes(self.dtype)

    @property
    def read_bytes(self) -> int:
        """Bytes that are read from files for it."""
        return 0


@dataclass(frozen=True)
class Stored(TensorSource):
    """A tensor in a safetensors file."""

    checkpoint: Checkpoint
    info: TensorInfo

    @classmethod
    def of(cls, checkpoint: Checkpoint, info: TensorInfo, name: str | None = None) -> Stored:
        """Return the source of a checkpoint's tensor, under its own name or another."""
        return cls(name or info.name, info.dtype, info.shape, checkpoint, info)

    def load(self) -> torch.Tensor:
        """Map the tensor."""
        return self.checkpoint.tensor(self.info.name)

    def load_to(self, device: torch.device) -> torch.Tensor:
        """Map the tensor, or read it into an accelerator's memory: pages that are not mapped need not be unmapped."""
        dtype = torch_dtype(self.dtype)
        if device.type == "cpu" or not dtype.is_floating_point:
            return super().load_to(device)

        def fill(start: int, stage: torch.Tensor) -> None:
            self.checkpoint.read_into(self.info.name, start, stage.numpy().data)

        return staged(self.shape, dtype, device, fill)

    @property
    def held_bytes(self) -> int:
        """None: the bytes are the file's."""
        return 0

    @property
    def read_bytes(self) -> int:
        """The tensor's size."""
        return self.info.end - self.info.start


@dataclass(frozen=True)
class Remote(TensorSource):
    """A tensor whose header is known and whose bytes are on the Hub or in a file of another form: enough to plan."""

    num_bytes: int

    @classmethod
    def of(cls, name: str, dtype: str, shape: tuple[int, ...]) -> Remote:
        """Return the source of a tensor by its header."""
        return cls(name, dtype, shape, math.prod(shape) * item_bytes(dtype))

    def load(self) -> torch.Tensor:
        """Refuse: a plan made of headers is opened again after the download."""
        raise AssertionError(f"{self.name} was not opened with its weights")

    @property
    def read_bytes(self) -> int:
        """The tensor's size."""
        return self.num_bytes


@dataclass(frozen=True, eq=False)
class Held(TensorSource):
    """A tensor that the caller holds in memory."""

    tensor: torch.Tensor

    @classmethod
    def of(cls, name: str, tensor: torch.Tensor) -> Held:
        """Return the source of a tensor in memory."""
        return cls(name, dtype_name(tensor.dtype), tuple(tensor.shape), tensor)

    def load(self) -> torch.Tensor:
        """Return the caller's tensor."""
        return self.tensor.detach().to("cpu")

    @property
    def held_bytes(self) -> int:
        """None: the caller holds it anyway."""
        return 0


@dataclass(frozen=True)
class Zeros(TensorSource):
    """A bias that a model does not have, which is the same as one of zeros."""

    def load(self) -> torch.Tensor:
        """Return zeros."""
        return torch.zeros(self.shape, dtype=torch_dtype(self.dtype))


@dataclass(frozen=True)
class LowRank:
    """A change of a weight as the product of two thin matrices.

    Attributes:
        down: the first, ``[rank, width_in]`` (``lora_A``).
        up: the second, ``[width_out, rank]`` (``lora_B``).
        scale: factor of the product.
        transposed: the weight is stored as ``[width_in, width_out]``.
        embedding: the weight is an embedding, whose matrices are stored transposed.
        lengths: what the rows of the sum are scaled to, ``[width_out]`` (DoRA), or None.
    """

    down: TensorSource
    up: TensorSource
    scale: float
    transposed: bool = False
    embedding: bool = False
    lengths: TensorSource | None = None


@dataclass(frozen=True)
class Adapted(TensorSource):
    """A weight with a LoRA adapter added to it, computed and kept in float32 so that it is rounded only once.

    Source:
        Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021), arXiv:2106.09685, equation 3; with
        lengths Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation" (2024), arXiv:2402.09353, equation 5.
    """

    weight: TensorSource
    change: LowRank

    def load(self) -> torch.Tensor:
        """Return weight and change added."""
        down, up = self.change.down.load().float(), self.change.up.load().float()
        product = (up @ down).mul_(self.change.scale)
        if self.change.transposed or self.change.embedding:
            product = product.T
        total = product.contiguous().view(self.shape).add_(self.weight.load())
        if self.change.lengths is None:
            return total
        rows = total.T if self.change.transposed else total  # of [width_out, width_in]
        rows.mul_((self.change.lengths.load().float() / torch.linalg.vector_norm(rows, dim=1))[:, None])
        return total

    @property
    def kept_dtype(self) -> str:
        """That of the weight."""
        return self.weight.kept_dtype

    @property
    def held_bytes(self) -> int:
        """The sum in float32, and one transposed copy of it."""
        copies = 2 if self.change.transposed or self.change.embedding else 1
        return self.num_elements * 4 * copies + self.weight.held_bytes

    @property
    def read_bytes(self) -> int:
        """All parts."""
        parts = [self.weight, self.change.down, self.change.up]
        return total_read([*parts, *(() if self.change.lengths is None else (self.change.lengths,))])


@dataclass(frozen=True)
class Shifted(TensorSource):
    """A bias with a multiple of an adapter's own bias added to it, in float32.

    Attributes:
        bias: the model's.
        change: the adapter's.
        scale: factor of the latter.
    """

    bias: TensorSource
    change: TensorSource
    scale: float

    def load(self) -> torch.Tensor:
        """Return both added."""
        return self.change.load().float().mul(self.scale).add_(self.bias.load())

    @property
    def kept_dtype(self) -> str:
        """That of the model's bias."""
        return self.bias.kept_dtype

    @property
    def read_bytes(self) -> int:
        """Both."""
        return total_read([self.bias, self.change])


@dataclass(frozen=True)
class Replaced(TensorSource):
    """A tensor of an adapter that takes the place of a model's own, and is written in the type of that one.

    Attributes:
        source: the adapter's.
        written: type of the model's own.
    """

    source: TensorSource
    written: str

    def load(self) -> torch.Tensor:
        """Load the adapter's tensor."""
        return self.source.load()

    @property
    def kept_dtype(self) -> str:
        """That of the model's own tensor."""
        return self.written

    @property
    def held_bytes(self) -> int:
        """What the adapter's tensor holds."""
        return self.source.held_bytes

    @property
    def read_bytes(self) -> int:
        """The adapter's tensor."""
        return self.source.read_bytes


@dataclass(frozen=True)
class Renamed(TensorSource):
    """Another source under another name or shape."""

    source: TensorSource

    def load(self) -> torch.Tensor:
        """Load the other source."""
        return self.source.load().view(self.shape)

    @property
    def kept_dtype(self) -> str:
        """That of the other source."""
        return self.source.kept_dtype

    @property
    def held_bytes(self) -> int:
        """What the other source holds."""
        return self.source.held_bytes

    @property
    def read_bytes(self) -> int:
        """What the other source reads."""
        return self.source.read_bytes


def total_read(sources: Sequence[TensorSource]) -> int:
    """Return the bytes that are read for several tensors."""
    return sum(source.read_bytes for source in sources)
