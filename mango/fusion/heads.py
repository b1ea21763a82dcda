"""The class of fused model for each task."""

from __future__ import annotations

from mango.fusion.core import MolPreTrainedModel
from mango.fusion.encoders import MolForMaskedLM, MolForSentenceEmbedding
from mango.fusion.modeling import MolForCausalLM

HEADS: dict[str, type[MolPreTrainedModel]] = {
    "causal-lm": MolForCausalLM,
    "masked-lm": MolForMaskedLM,
    "sentence-embedding": MolForSentenceEmbedding,
}
