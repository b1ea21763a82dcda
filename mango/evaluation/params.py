"""Parameters of an evaluation: the section ``evaluate`` of params.yaml."""

from __future__ import annotations

from pydantic import Field

from mango.config import Frozen


class EvaluateParams(Frozen):
    """How systems are compared.

    Args:
        sequences: test sequences of each domain.
        switching_sequences: test sequences that switch domain.
        batch_size: sequences a forward pass.
        prompt: tokens by which whole-model routing chooses its model.
        speed_repeats: timed passes of each system, each beside one of the trunk.
        counted_sequences: sequences of each text on which floating-point operations are counted.
    """

    sequences: int = Field(default=8, ge=2)
    switching_sequences: int = Field(default=16, ge=2)
    batch_size: int = Field(default=4, ge=1)
    prompt: int = Field(default=32, ge=1)
    speed_repeats: int = Field(default=3, ge=1)
    counted_sequences: int = Field(default=2, ge=1)
