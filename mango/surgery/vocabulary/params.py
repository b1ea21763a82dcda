"""How tokens that a model does not know get their embeddings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mango.config import Frozen

Approximation = Literal["auto", "omp", "subword", "mean", "zero", "random"]


class TransplantParams(Frozen):
    """How a vocabulary is transplanted.

    Attributes:
        approximation: for tokens that the model does not have. ``omp`` writes the donor's embedding of the token as a
            sparse combination of the donor's embeddings of shared tokens, and takes the same combination of the
            model's; ``subword`` takes the mean of the model's tokens that spell it, moved towards the mean of
            all; ``mean``, ``zero`` and ``random`` look at
            no token. ``auto`` is ``omp`` where the donor has weights and shares at least 2 k tokens, else ``subword``.
        k: most tokens of a sparse combination.
        pad_to_multiple_of: rows of the tables are a multiple of this; by default as many as the donor has.
        seed: of ``random``.
    """

    approximation: Approximation = "auto"
    k: int = Field(32, ge=1, le=4096)
    pad_to_multiple_of: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0, lt=2**32)
