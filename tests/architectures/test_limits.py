from __future__ import annotations

import time

import pytest
from transformers import BertConfig, LlamaConfig, PretrainedConfig, T5Config

from mango.architectures import describe
from mango.errors import ArchitectureError, UnknownNameError


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (LlamaConfig(num_hidden_layers=10**9), "num_hidden_layers is 1000000000; at most 4096 are built"),
        (LlamaConfig(vocab_size=10**12), "vocab_size is 1000000000000"),
        (LlamaConfig(hidden_size=10**9), "hidden_size is 1000000000"),
        (T5Config(num_layers=10**6), "num_layers is 1000000"),
    ],
    ids=["depth", "vocabulary", "width", "encoder"],
)
def test_absurd_sizes_are_refused_before_anything_is_built(config: PretrainedConfig, words: str) -> None:
    start = time.monotonic()
    with pytest.raises(ArchitectureError, match=words):
        describe(config)
    assert time.monotonic() - start < 2


def test_a_model_has_a_map_for_each_of_its_tasks() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(**sizes, vocab_size=64)
    masked = describe(config)
    assert (masked.task, masked.family, masked.architecture) == ("masked-lm", "masked", "BertForMaskedLM")
    assert (masked.blocks_path, masked.num_blocks, masked.stacks[0].role) == ("bert.encoder.layer", 2, "encoder")
    assert describe(config, "base").architecture == "BertModel"
    with pytest.raises(UnknownNameError, match="unknown task 'maskedlm'; did you mean 'masked-lm'"):
        describe(config, "maskedlm")


def test_stacks_of_an_encoder_and_decoder_say_what_they_pass_on() -> None:
    config = T5Config(d_model=32, d_ff=48, num_layers=3, num_decoder_layers=2, num_heads=4, d_kv=8, vocab_size=64)
    found = describe(config)
    by_role = {stack.role: stack for stack in found.stacks}
    assert {role: stack.num_blocks for role, stack in by_role.items()} == {"encoder": 3, "decoder": 2}
    assert "position_bias" in by_role["decoder"].carried
    assert by_role["encoder"].path == "encoder.block"
    assert by_role["decoder"].width == 32
