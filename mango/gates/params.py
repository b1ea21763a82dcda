"""What the gates let through: the parameters under ``gates`` in params.yaml."""

from __future__ import annotations

from pydantic import Field, model_validator

from mango.config import Frozen, Problem, refuse


class CorpusGateParams(Frozen):
    """Bounds for the corpus.

    Args:
        min_documents: fewest documents of each domain in each split.
        min_domain_share: smallest share of a split's bytes that a domain may have.
        min_text_chars: fewest characters in a document.
        max_text_chars: most characters in a document.
    """

    min_documents: int = Field(default=5, ge=1)
    min_domain_share: float = Field(default=0.02, ge=0, le=1)
    min_text_chars: int = Field(default=1, ge=1)
    max_text_chars: int = Field(default=1_000_000, ge=1)

    @model_validator(mode="after")
    def _agree(self) -> CorpusGateParams:
        if self.max_text_chars < self.min_text_chars:
            message = f"{self.max_text_chars} is less than min_text_chars, {self.min_text_chars}"
            refuse([Problem("max_text_chars", message, depends=("min_text_chars",))])
        return self


class BlocksGateParams(Frozen):
    """Bounds for the table of extracted blocks.

    Args:
        max_abs_weight: largest absolute value that a weight may have.
    """

    max_abs_weight: float = Field(default=1e4, gt=0)


class MetricsGateParams(Frozen):
    """Bounds for the evaluation.

    Args:
        required_systems: systems that must have been evaluated, beside at least one of kind ``fused``.
        max_bits_per_byte: largest loss on the text of one domain.
        max_nats_per_token: largest loss on text that switches domain.
        max_cost: largest number of processed tokens, in units of one expert.
    """

    required_systems: tuple[str, ...] = ("trunk", "best_single")
    max_bits_per_byte: float = Field(default=16.0, gt=0)
    max_nats_per_token: float = Field(default=20.0, gt=0)
    max_cost: float = Field(default=1000.0, gt=0)


class GateParams(Frozen):
    """Bounds of all gates."""

    corpus: CorpusGateParams = CorpusGateParams()
    blocks: BlocksGateParams = BlocksGateParams()
    metrics: MetricsGateParams = MetricsGateParams()
