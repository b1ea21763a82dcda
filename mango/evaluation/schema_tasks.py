"""The part of the format of ``reports/evaluation.json`` that holds tasks of the lm-evaluation-harness."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mango.evaluation.schema_base import Count, Name, Spread, Strict


class TaskScore(Strict):
    """One metric of one task of the lm-evaluation-harness, for one system."""

    system: Name
    task: Name
    metric: Name
    filter: Name = Field(description="what answers went through first; `none` where nothing did")
    value: float | None = Field(description="null where it is no finite number")
    stderr: Spread | None = Field(description="standard error as lm-eval gives it; null where it gives none")
    higher_is_better: bool | None = Field(description="null where the task does not say")


class TaskFacts(Strict):
    """One task or group of the lm-evaluation-harness."""

    task: Name
    samples: Count = Field(description="examples that were asked; of a group, those of its tasks")
    num_fewshot: Count | None = Field(description="worked examples in each prompt; null where the tasks differ")
    group: bool


class LmEval(Strict):
    """Tasks of the lm-evaluation-harness on the systems that are single models."""

    version: Name = Field(description="of lm-eval")
    tasks: Annotated[tuple[TaskFacts, ...], Field(min_length=1)]
    scores: tuple[TaskScore, ...]
    truncated: dict[str, Count] = Field(
        {}, description="by system: how often a prompt was longer than the model may see, and lost its beginning"
    )
