"""The part of the format of ``reports/evaluation.json`` that says what the fused model's budget curve dominates."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mango.evaluation.schema_base import Cost, Loss, Name, Strict, SystemKind


class Against(Strict):
    """One system beside the curve."""

    system: Name
    kind: SystemKind
    cost: Cost
    loss: Loss
    beaten_by: Name | None = Field(description="the cheapest point of the curve that is better; null where none is")
    beaten_at: Cost | None = Field(description="its cost")
    dominated: bool = Field(description="whether that point costs no more than the system")


class Dominance(Strict):
    """The fused model's curve of quality against compute, on one text, and what it dominates."""

    curve: Annotated[tuple[Name, ...], Field(min_length=1)] = Field(
        description="the fused model at each budget, the cheapest first"
    )
    against: tuple[Against, ...]
    dominates: dict[SystemKind, bool] = Field(description="by kind, whether every system of it is dominated")
