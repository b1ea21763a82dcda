"""Sections of a merge document that mergekit's do not have: calibration text, what is learned, what is searched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from mango.config import Frozen, Problem

Bounds = tuple[float, float]


class TextSource(Frozen):
    """Where text comes from.

    Attributes:
        data: a text file, a file of JSON lines with a ``text`` each (``.jsonl``), a folder of such files, or a corpus
            folder with a parquet file for each split; relative to the working directory.
        split: split of a corpus.
        domains: domains of a corpus to take, equally much of each; all of them where there are none named.
    """

    data: Path = Field(description="a text file, a `.jsonl` file, a folder of them, or a corpus folder")
    split: Literal["train", "validation", "test"] | None = Field(None, description="of a corpus; train by default")
    domains: tuple[str, ...] = Field((), description="of a corpus; all of them by default")


class CalibrationSection(TextSource):
    """The text on which models, or the merged one, are measured.

    Attributes:
        sequences: how many sequences are drawn, without replacement.
        tokens: tokens of a sequence.
        seed: start of the drawing.
        models: text of its own for single models, by their names in the document; ``fisher`` and ``regmean`` then
            measure each model on what it is for.
    """

    sequences: int = Field(32, ge=1, le=2**20, description="sequences that are drawn")
    tokens: int = Field(256, ge=2, le=2**20, description="tokens of a sequence")
    seed: int = Field(0, ge=0, lt=2**32, description="start of the drawing")
    models: dict[str, TextSource] = Field(default_factory=dict, description="text of single models' own")

    def of(self, model: str) -> TextSource:
        """Return where a model's text comes from."""
        return self.models.get(model, self)


class LearnSection(Frozen):
    """How ``adamerging`` learns its coefficients, by Adam on the mean entropy of the merged model's predictions.

    Attributes:
        granularity: one coefficient of a model for each layer, or for the whole task.
        steps: steps of Adam.
        batch_size: sequences of a step.
        learning_rate: of Adam.
    """

    granularity: Literal["layer", "task"] = Field("layer", description="what has a coefficient of its own")
    steps: int = Field(50, ge=1, description="steps of Adam")
    batch_size: int = Field(4, ge=1, description="sequences of a step")
    learning_rate: float = Field(0.001, gt=0, description="of Adam")


class SearchSection(Frozen):
    """A search for parameters, by CMA-ES on the bits per byte of the merged model on the calibration text.

    Attributes:
        parameters: lower and upper bound of each parameter that is searched.
        evaluations: models that are merged and measured, the start among them; never more.
        groups: groups of consecutive blocks with values of their own; what lies outside of the blocks is one more.
        seed: start of every random number.
        step: standard deviation of the first candidates, as a share of the bounds' distance.
        batch_size: sequences of a forward pass.
    """

    parameters: dict[str, Bounds] = Field(min_length=1, description="bounds by parameter")
    evaluations: int = Field(40, ge=1, description="models that are measured, the start among them")
    groups: int = Field(1, ge=1, description="groups of blocks")
    seed: int = Field(0, ge=0, lt=2**31, description="start of every random number")
    step: float = Field(0.2, gt=0, le=1, description="first standard deviation, as a share of the bounds' distance")
    batch_size: int = Field(8, ge=1, description="sequences of a forward pass")


def text_problems(section: CalibrationSection, known: list[str]) -> Iterator[Problem]:
    """Yield what contradicts itself in a section about text.

    Args:
        section: the section.
        known: names of the document's models.
    """
    from mango.config import near

    for name in section.models:
        if name not in known:
            hint = near(name, known) or "."
            yield Problem(f"models.{name}", f"no model of this document is called so{hint} Known: {', '.join(known)}")
