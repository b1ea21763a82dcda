"""Whether a part of a fused model computes what its source model computes, as a number and an error."""

from __future__ import annotations

import torch
from torch import Tensor

from mango.errors import ArchitectureError


class UnfitError(TypeError):
    """Says why a source model cannot be cut into spans, found by running it; its name is added where it is known."""


TOLERANCE = 1e-4
"""Largest difference, relative to the largest value, in float32; parts run the source model's own code."""


def check_stream(states: Tensor, ids: Tensor, what: str) -> None:
    """Refuse blocks whose stream has another shape than one vector for each token.

    Args:
        states: what a block is given.
        ids: the tokens, ``[rows, length]``.
        what: the model, for the message.

    Raises:
        UnfitError: they have.
    """
    if states.ndim != 3 or states.shape[:2] != ids.shape:
        raise UnfitError(
            f"the blocks of {what} read a stream of shape {list(states.shape)} for {list(ids.shape)} tokens, and a "
            "fused stream has one vector for each token"
        )


def compare(found: Tensor, wanted: Tensor, mask: Tensor, what: str, *, computed: torch.dtype | None = None) -> None:
    """Compare what a part computes on its own with what it computes inside its model.

    Args:
        found: of the part, ``[rows, length, ...]``.
        wanted: of its model, of the same shape and of the type that it computes in.
        mask: which tokens count, ``[rows, length]``.
        what: the part, for the message.
        computed: the type that it computes in, where its states are of a finer one; otherwise that of `wanted`.

    Raises:
        ArchitectureError: they differ.
    """
    if found.shape != wanted.shape:
        raise ArchitectureError(
            f"{what} compute states of shape {list(found.shape)} on their own, and of shape {list(wanted.shape)} "
            "inside their model, which joins or splits streams around its blocks; it can be neither trunk nor expert"
        )
    limit = max(TOLERANCE, 8 * torch.finfo(computed or wanted.dtype).eps)
    found, wanted = found[mask].float(), wanted[mask].float()
    scale = wanted.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    error = float((found - wanted).abs().max() / scale)
    if not error <= limit:
        raise ArchitectureError(
            f"{what} do not compute on their own what they compute inside their model: the relative difference is "
            f"{error:.1e}, at most {limit:.0e} is wanted. The model does something between its embedding and its "
            "blocks, or between its blocks, that a span cannot carry; it can be neither trunk nor expert"
        )
