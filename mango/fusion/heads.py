"""The class of fused model for each task."""

from __future__ import annotations

from mango.fusion.core import MolPreTrainedModel
from mango.fusion.encoders import MolForMaskedLM, MolForSentenceEmbedding
from mango.fusion.image_text import MolForImageTextToText
from mango.fusion.images import MolForImageClassification
from mango.fusion.modeling import MolForCausalLM
from mango.fusion.seq2seq import MolForSeq2SeqLM

HEADS: dict[str, type[MolPreTrainedModel]] = {
    "causal-lm": MolForCausalLM,
    "masked-lm": MolForMaskedLM,
    "sentence-embedding": MolForSentenceEmbedding,
    "seq2seq-lm": MolForSeq2SeqLM,
    "image-classification": MolForImageClassification,
    "image-text-to-text": MolForImageTextToText,
}
