"""What fused models are for, and what their source models are run as."""

from __future__ import annotations

from typing import Literal

from transformers import PretrainedConfig

from mango.architectures import ComponentMap
from mango.architectures.tasks import BASE, CAUSAL, IMAGE_TEXT, MASKED, SEQ2SEQ, class_for

FusedTask = Literal[
    "causal-lm", "masked-lm", "sentence-embedding", "seq2seq-lm", "image-classification", "image-text-to-text"
]

IMAGES: FusedTask = "image-classification"
EMBEDDING: FusedTask = "sentence-embedding"

SOURCE_TASKS: dict[str, str] = {
    CAUSAL: CAUSAL,
    MASKED: MASKED,
    EMBEDDING: MASKED,
    SEQ2SEQ: SEQ2SEQ,
    IMAGES: IMAGES,
    IMAGE_TEXT: IMAGE_TEXT,
}
"""For each task of a fused model, the task that its source models must be for; see :func:`task_of_source`."""

TEXT_TASKS = (CAUSAL, IMAGE_TEXT)
"""Tasks whose models write text token by token, and are trained and evaluated on running text."""


def task_of_source(task: str, config: PretrainedConfig) -> str:
    """Return what one source model is run as in a fused model.

    A model that reads images may have experts that know text alone: they are causal language models.

    Args:
        task: of the fused model.
        config: the source model's configuration.
    """
    if task == IMAGE_TEXT and class_for(config, IMAGE_TEXT) is None:
        return CAUSAL
    return SOURCE_TASKS[task]


def why_no_task(parts: ComponentMap) -> str | None:
    """Return why no fused model takes a model of what it is built for, as the end of a sentence, or None.

    Args:
        parts: where it keeps its parts.
    """
    if parts.task in SOURCE_TASKS.values():
        return None
    known = ", ".join(SOURCE_TASKS)
    if parts.task == BASE:
        return (
            f"has no head, and a fused model predicts with those of its sources: fusion.task may be {known}; its "
            "blocks can be extracted and run alone"
        )
    return (
        f"is built for {parts.task}, and no fused model is: fusion.task may be {known}; its blocks can be extracted "
        "and run alone"
    )
