"""Sequences of tokens, each with its domain and the bytes that it stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mango.errors import DataError


@dataclass(frozen=True, slots=True, eq=False)
class Sequences:
    """Token sequences of one length.

    Args:
        input_ids: token ids, int64 of shape [sequences, length].
        domain_ids: for each token, the index of its domain in `domains`; int64 of the same shape.
        num_bytes: for each token, the UTF-8 bytes of text that it stands for (0 for the end of a document); int64 of
            the same shape.
        domains: names of the domains.

    Raises:
        DataError: shapes or types differ, a domain index names no domain, or a number of bytes is negative.
    """

    input_ids: Tensor
    domain_ids: Tensor
    num_bytes: Tensor
    domains: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in ("input_ids", "domain_ids", "num_bytes"):
            tensor: Tensor = getattr(self, name)
            if tensor.dtype != torch.int64 or tensor.ndim != 2 or tensor.shape != self.input_ids.shape:
                raise DataError(
                    f"Sequences: {name} is {tensor.dtype} of shape {list(tensor.shape)}, "
                    f"wanted torch.int64 of the shape of input_ids, [sequences, length]"
                )
        if len(set(self.domains)) != len(self.domains):
            raise DataError(f"Sequences: a domain is named twice in {', '.join(self.domains)}")
        if self.domain_ids.numel():
            low, high = int(self.domain_ids.min()), int(self.domain_ids.max())
            if low < 0 or high >= len(self.domains):
                raise DataError(
                    f"Sequences: domain_ids reach from {low} to {high}, but there are {len(self.domains)} domains"
                )
            if int(self.num_bytes.min()) < 0:
                raise DataError(f"Sequences: num_bytes has a negative entry, {int(self.num_bytes.min())}")

    def __len__(self) -> int:
        """Return the number of sequences."""
        return int(self.input_ids.shape[0])

    @property
    def sequence_length(self) -> int:
        """The number of tokens in each sequence."""
        return int(self.input_ids.shape[1])

    def select(self, rows: Sequence[int] | Tensor) -> Sequences:
        """Return the sequences at `rows` (indices from 0), in that order."""
        index = torch.as_tensor(rows, dtype=torch.int64)
        return Sequences(self.input_ids[index], self.domain_ids[index], self.num_bytes[index], self.domains)


def concatenate(parts: Sequence[Sequences]) -> Sequences:
    """Return all sequences of `parts`, in order.

    Raises:
        DataError: there is no part, or parts differ in length or domains.
    """
    if not parts:
        raise DataError("concatenate: no sequences were given")
    for part in parts[1:]:
        if part.domains != parts[0].domains or part.sequence_length != parts[0].sequence_length:
            raise DataError(
                f"concatenate: sequences of {part.sequence_length} tokens over {', '.join(part.domains)} do not fit to "
                f"those of {parts[0].sequence_length} tokens over {', '.join(parts[0].domains)}"
            )
    return Sequences(
        torch.cat([part.input_ids for part in parts]),
        torch.cat([part.domain_ids for part in parts]),
        torch.cat([part.num_bytes for part in parts]),
        parts[0].domains,
    )
