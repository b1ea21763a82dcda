"""Parameters of the package: the ``package`` section of params.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from mango.config import Frozen

Mode = Literal["min", "max"]
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class PackageParams(Frozen):
    """What the package is called and what it competes on."""

    name: str = Field("mango-tiny", pattern=NAME_PATTERN, description="name in the package and in the registry")
    metric: str | None = Field(
        None,
        min_length=1,
        description="metric that decides promotion: SYSTEM.MEASURE, SYSTEM.pure.DOMAIN or a headline figure; by "
        "default fused_hard.switching, and fused_hard.pure_mean for tasks that are not measured on switching text",
    )
    mode: Mode = Field("min", description="whether a smaller or a larger metric is better")
    min_delta: float = Field(0.0, ge=0.0, description="improvement on the champion that promotion asks for")
    licence: str | None = Field(
        None, min_length=1, description="SPDX name for the model card; by default what all parents share, else 'other'"
    )
    signed_by: Path | None = Field(
        None, description="public key (PEM); the registry then takes only packages that its private key signed"
    )
