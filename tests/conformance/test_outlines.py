"""Outlines that ship with the package say of models of new sizes what watching them says."""

from __future__ import annotations

import pytest
import transformers

from mango.architectures.outlines import fit, outlines
from tests.conformance.outlines import SIZES, Sample, sized

NEW = {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 12, "intermediate_size": 112,
       "vocab_size": 150, "max_position_embeddings": 56, "num_hidden_layers": 5}  # fmt: skip


@pytest.mark.parametrize("model_type", ["bert", "gemma2", "llama", "mistral", "phi3", "qwen3"])
def test_an_outline_holds_at_other_sizes(model_type: str) -> None:
    assert NEW not in SIZES
    kind = outlines()["types"][model_type]
    sample = Sample(model_type, sized(model_type, NEW, {}, square=False))
    raw = {**sample.raw, **({"layer_types": sample.config.layer_types} if model_type == "gemma2" else {})}
    found = [answer for variant in kind["variants"] if (answer := fit(kind, variant, raw, sample.shapes))]
    assert [answer.components for answer in found] == [sample.parts]
    assert {answer.block_class for answer in found} == sample.classes


def test_outlines_are_about_the_installed_transformers() -> None:
    document = outlines()
    assert document["transformers"] == transformers.__version__
    assert set(document["known"]) == {name for name in transformers.CONFIG_MAPPING if name != "mol"}
