"""What a corpus is and how its text becomes sequences: the parameters under ``corpus`` in params.yaml."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from mango.config import Frozen, Problem, refuse


class ImagePairParams(Frozen):
    """Pairs of image and text on which a model that reads images is evaluated.

    Args:
        path: folder with the images and an index, ``metadata.jsonl`` or ``metadata.csv``, with the columns
            ``file_name`` and ``text``; none without.
        prompt: what stands before each text; ``{image}`` is the image.
        limit: pairs that are looked at, from the first.
    """

    path: Path | None = None
    prompt: str = "{image}"
    limit: int = Field(default=32, ge=2)


class CorpusParams(Frozen):
    """Where the corpus is and how it is cut into sequences.

    Args:
        path: folder with ``train.parquet``, ``validation.parquet`` and ``test.parquet``.
        domains: the domains to use, in this order; empty means every domain of the split, sorted by name.
        sequence_length: tokens in a sequence.
        segment_length: tokens after which text that switches domain changes to another one.
        images: pairs of image and text, for models that read images.
    """

    path: Path = Path("data/corpus")
    domains: tuple[str, ...] = ()
    sequence_length: int = Field(default=256, ge=2)
    segment_length: int = Field(default=64, ge=1)
    images: ImagePairParams = ImagePairParams()

    @model_validator(mode="after")
    def _agree(self) -> CorpusParams:
        problems = []
        if self.segment_length > self.sequence_length:
            message = f"{self.segment_length} is more than the {self.sequence_length} tokens of corpus.sequence_length"
            problems.append(Problem("segment_length", message, depends=("sequence_length",)))
        twice = sorted({domain for domain in self.domains if self.domains.count(domain) > 1})
        if twice:
            problems.append(Problem("domains", f"{', '.join(map(repr, twice))} is listed more than once"))
        refuse(problems)
        return self
