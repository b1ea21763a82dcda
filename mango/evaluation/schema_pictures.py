"""The part of the format of ``reports/evaluation.json`` on texts that are said of images."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mango.evaluation.schema_base import Cost, Count, Loss, Spread, Strict


class PictureScore(Strict):
    """One system's loss on texts, in bits per byte."""

    system: Literal["trunk", "fused_soft", "fused_hard"]
    own_image: Loss = Field(description="given the image that the text is of")
    own_image_se: Spread
    other_image: Loss = Field(
        description="given the next pair's image: what the text costs without seeing what it says"
    )
    other_image_se: Spread
    cost: Cost = Field(description="tokens processed by experts, those of images among them, in units of one expert")


class Pictures(Strict):
    """Trunk and fused model on pairs of image and text."""

    pairs: Count
    text_bytes: Count
    systems: Annotated[tuple[PictureScore, ...], Field(min_length=1)]
