"""What a fused model returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.cache_utils import Cache
from transformers.utils.generic import ModelOutput


@dataclass(frozen=True)
class Routing:
    """What happened at one fused position.

    Args:
        position: number of the position.
        experts: names of the experts that can be entered, the anchor first.
        log_probs: log-probabilities after the temperature, float32 ``[rows, length, experts]``; zero where not present.
        weights: weights, ``[rows, length, experts]``; zero where not present.
        pooled: what the router saw, float32 ``[rows, length, width]``, without a gradient; zero where not present.
        present: which tokens entered, ``[rows, length]``.
        log_total: log of the sum of the exponentials of the router's scores, ``[rows, length]``; zero where not
            present.
    """

    position: int
    experts: tuple[str, ...]
    log_probs: Tensor
    weights: Tensor
    pooled: Tensor
    present: Tensor
    log_total: Tensor


@dataclass
class MolOutput(ModelOutput):
    """Output of a fused model.

    Args:
        loss: language-modelling loss, when labels were given.
        logits: ``[rows, length, vocabulary]``; None when only losses were wanted.
        past_key_values: the cache, when one is used.
        routing: what happened at each position with a choice.
        processed: for each span in the order of :attr:`MolForCausalLM.spans`, the tokens that it processed, int64.
        token_losses: when only losses were wanted, that of token t + 1 in nats, float32 ``[rows, length - 1]``; zero
            where it does not count.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    routing: tuple[Routing, ...] | None = None
    processed: Tensor | None = None
    token_losses: Tensor | None = None


@dataclass
class EncoderOutput(ModelOutput):
    """Output of a fused encoder that gives vectors.

    Args:
        loss: when labels were given.
        last_hidden_state: states behind the trunk's final norm, ``[rows, length, width]``.
        pooler_output: one vector a row, ``[rows, width]``.
        routing: what happened at each position with a choice.
        processed: for each span, the tokens that it processed, int64.
        token_losses: loss of each pair, float32.
    """

    loss: Tensor | None = None
    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    routing: tuple[Routing, ...] | None = None
    processed: Tensor | None = None
    token_losses: Tensor | None = None
