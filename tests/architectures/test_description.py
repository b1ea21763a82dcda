from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    NanoChatConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from mango.architectures import describe

WIDTHS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**WIDTHS, num_key_value_heads=2, vocab_size=64, tie_word_embeddings=True),
    "mistral": MistralConfig(**WIDTHS, num_key_value_heads=2, vocab_size=64, sliding_window=4),
    "qwen2": Qwen2Config(**WIDTHS, num_key_value_heads=2, vocab_size=64),
    "qwen3": Qwen3Config(**WIDTHS, num_key_value_heads=2, vocab_size=64, head_dim=16),
    "gpt_neox": GPTNeoXConfig(**WIDTHS, vocab_size=64),
    "gpt2": GPT2Config(n_embd=32, n_layer=3, n_head=4, n_inner=48, vocab_size=64),
}
# base prefix, block list, block class, embeddings, before, after
PARTS = {
    "llama": ("model", "layers", "LlamaDecoderLayer", "model.embed_tokens", ("embed_tokens",), ("norm",)),
    "mistral": ("model", "layers", "MistralDecoderLayer", "model.embed_tokens", ("embed_tokens",), ("norm",)),
    "qwen2": ("model", "layers", "Qwen2DecoderLayer", "model.embed_tokens", ("embed_tokens",), ("norm",)),
    "qwen3": ("model", "layers", "Qwen3DecoderLayer", "model.embed_tokens", ("embed_tokens",), ("norm",)),
    "gpt_neox": ("gpt_neox", "layers", "GPTNeoXLayer", "gpt_neox.embed_in", ("embed_in",), ("final_layer_norm",)),
    "gpt2": ("transformer", "h", "GPT2Block", "transformer.wte", ("wte", "wpe"), ("ln_f",)),
}


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_parts_of_the_six_families(family: str) -> None:
    found = describe(CONFIGS[family])
    assert (
        found.base_prefix,
        found.blocks,
        found.block_class,
        found.embeddings,
        found.before,
        found.after,
    ) == PARTS[family]
    assert found.model_type == family
    assert found.blocks_path == f"{found.base_prefix}.{found.blocks}"
    assert found.block_prefix(2) == f"{found.blocks_path}.2."


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_sizes_of_the_six_families(family: str) -> None:
    found = describe(CONFIGS[family])
    assert (found.num_blocks, found.width, found.num_heads, found.vocab_size) == (3, 32, 4, 64)
    assert found.num_kv_heads == (4 if family in ("gpt2", "gpt_neox") else 2)
    assert found.head_dim == (16 if family == "qwen3" else 8)
    assert found.intermediate_size == 48


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_paths_lead_to_modules_of_a_real_model(family: str) -> None:
    found = describe(CONFIGS[family])
    model = AutoModelForCausalLM.from_config(CONFIGS[family])
    assert type(model).__name__ == found.architecture
    assert model.get_submodule(found.embeddings) is model.get_input_embeddings()
    assert found.head is not None
    assert model.get_submodule(found.head) is model.get_output_embeddings()
    assert found.tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)
    assert len(model.get_submodule(found.blocks_path)) == found.num_blocks
    # Every parameter is in a block, before them, after them, or the head: nothing is left unnamed.
    prefixes = [f"{found.blocks_path}.", f"{found.head}."]
    prefixes += [f"{found.base_prefix}.{path}." for path in (*found.before, *found.after)]
    assert [name for name, _ in model.named_parameters() if not name.startswith(tuple(prefixes))] == []


def test_eight_billion_parameters_need_no_memory() -> None:
    config = LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=128256,
    )  # fmt: skip
    found = describe(config)
    assert (found.num_blocks, found.width, found.num_kv_heads, found.head_dim) == (32, 4096, 8, 128)


def test_config_and_random_state_stay_as_they_were() -> None:
    config = LlamaConfig(**WIDTHS, vocab_size=65)
    before = config.to_json_string(use_diff=False)
    state = torch.random.get_rng_state()
    describe(config)
    assert config.to_json_string(use_diff=False) == before
    assert torch.equal(torch.random.get_rng_state(), state)


def test_equal_configs_share_one_result_and_others_do_not() -> None:
    first = describe(LlamaConfig(**WIDTHS, vocab_size=66))
    assert describe(LlamaConfig(**WIDTHS, vocab_size=66)) is first
    assert describe(LlamaConfig(**WIDTHS, vocab_size=67)).vocab_size == 67


def test_a_norm_without_weights_on_both_sides_of_the_blocks_is_on_both_sides() -> None:
    config = NanoChatConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=40, pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    parts = describe(config)
    assert (parts.before, parts.after) == (("embed_tokens", "norm"), ("norm",))
