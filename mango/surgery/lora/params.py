"""What is extracted from a fine-tuned model, and how closely."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from mango.config import Frozen, Problem, refuse


class ExtractionParams(Frozen):
    """How a LoRA adapter is extracted.

    Attributes:
        rank: largest rank of a layer; every layer has it unless ``energy`` or ``error`` asks for less.
        energy: keep the smallest rank of each layer that holds this share of the squared norm of its difference.
        error: keep the smallest rank of each layer whose relative error (Frobenius norm) is at most this.
        alpha: scale that the adapter declares, ``rank`` by default; the factors are made to fit it.
        dtype: element type of the factors.
        embeddings: ``lora`` decomposes the embedding, ``full`` stores its new weights whole, ``skip`` leaves it.
        include: regular expressions; with any, only modules that one of them finds are taken.
        exclude: regular expressions; modules that one of them finds are left out.
        full: regular expressions; modules that one of them finds are stored whole.
        seed: of the random sketches.
    """

    rank: int = Field(32, ge=1)
    energy: float | None = Field(None, gt=0, le=1)
    error: float | None = Field(None, ge=0, lt=1)
    alpha: float | None = Field(None, gt=0)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    embeddings: Literal["lora", "full", "skip"] = "full"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    full: tuple[str, ...] = ()
    seed: int = Field(0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _check(self) -> ExtractionParams:
        problems = []
        if self.energy is not None and self.error is not None:
            problems.append(Problem("error", "stands beside energy: give one of them", ("energy",)))
        for key in ("include", "exclude", "full"):
            for i, pattern in enumerate(getattr(self, key)):
                try:
                    re.compile(pattern)
                except re.error as error:
                    problems.append(Problem(f"{key}.{i}", f"{pattern!r} is no regular expression: {error}"))
        refuse(problems)
        return self

    @property
    def kept_energy(self) -> float | None:
        """The share of the squared norm that every layer is to keep, or None for the full rank."""
        return self.energy if self.error is None else 1.0 - self.error**2
