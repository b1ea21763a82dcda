"""What the elements of tensors may be: finite numbers, and truth values that are 0 or 1."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from mango.checkpoints.reader import Checkpoint
from mango.errors import IntegrityError
from mango.tensors import torch_dtype

_PIECE_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class Wrong:
    """A tensor that holds what no weight should.

    Attributes:
        name: its name.
        file: the file that holds it.
        nans: elements that are no number.
        infinities: elements that are infinite.
        bad_truths: bytes of a BOOL tensor that are neither 0 nor 1.
    """

    name: str
    file: str
    nans: int
    infinities: int
    bad_truths: int

    def __str__(self) -> str:
        """Say which tensor of which file holds how many of what."""
        found = [
            (self.nans, "NaN"),
            (self.infinities, "infinite"),
            (self.bad_truths, "truth values that are not 0 or 1"),
        ]
        what = ", ".join(f"{count} {word}" for count, word in found if count)
        return f"{self.file}: tensor {self.name!r} holds {what}"


def wrong_values(checkpoint: Checkpoint, names: Iterable[str] | None = None) -> list[Wrong]:
    """Read every weight and return the tensors that hold NaN, infinite numbers, or broken truth values.

    Args:
        checkpoint: an opened model folder.
        names: the tensors to look at; all without.

    Returns:
        The tensors, by name.
    """
    found = []
    for name in sorted(names if names is not None else checkpoint.names()):
        info = checkpoint.info(name)
        dtype = torch_dtype(info.dtype)
        nans = infinities = truths = 0
        if dtype == torch.bool:
            truths = int((checkpoint.raw(name) > 1).sum())
        elif dtype.is_floating_point:
            for piece in torch.split(checkpoint.tensor(name).view(-1), _PIECE_ELEMENTS):
                values = piece.float() if dtype.itemsize == 1 else piece
                if not bool(torch.isfinite(values).all()):
                    nans += int(values.isnan().sum())
                    infinities += int(values.isinf().sum())
        if nans or infinities or truths:
            found.append(Wrong(name, str(info.file), nans, infinities, truths))
    return found


def check_values(checkpoint: Checkpoint) -> None:
    """Refuse weights that are not finite; every weight is read.

    Raises:
        IntegrityError: the first tensors that hold NaN, infinite numbers, or broken truth values, by name.
    """
    wrong = wrong_values(checkpoint)
    if wrong:
        more = f"; and so do {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise IntegrityError(f"{wrong[0]}{more}. Such a model computes nothing: bring back its weights")
