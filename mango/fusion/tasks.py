"""What fused models are for, and what their source models are run as."""

from __future__ import annotations

from typing import Literal

from mango.architectures.tasks import CAUSAL, MASKED, SEQ2SEQ

FusedTask = Literal["causal-lm", "masked-lm", "sentence-embedding", "seq2seq-lm", "image-classification"]

IMAGES: FusedTask = "image-classification"
EMBEDDING: FusedTask = "sentence-embedding"

SOURCE_TASKS: dict[str, str] = {CAUSAL: CAUSAL, MASKED: MASKED, EMBEDDING: MASKED, SEQ2SEQ: SEQ2SEQ, IMAGES: IMAGES}
"""For each task of a fused model, the task that its source models must be for."""
