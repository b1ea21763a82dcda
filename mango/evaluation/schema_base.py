"""What every part of the format of ``reports/evaluation.json`` is made of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from mango.config import Frozen

SystemKind = Literal["fused", "trunk", "expert", "merge", "control", "ensemble", "routing", "oracle"]

Loss = Annotated[float, Field(ge=0)]
Cost = Annotated[float, Field(gt=0)]
Spread = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1.000001)]
Name = Annotated[str, Field(min_length=1)]


class Strict(Frozen):
    """Immutable, without unknown keys and without conversion between types."""

    model_config = ConfigDict(strict=True)
