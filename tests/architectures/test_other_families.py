"""Families beyond the six, found by the same method; and true reasons where it finds nothing."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import CONFIG_MAPPING, PretrainedConfig

from mango.architectures import describe
from mango.errors import ArchitectureError

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "pad_token_id": 0,
}
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}
EXPERTS = {**GROUPED, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

# type: (changes to the default configuration, blocks, before, after)
FOUND: dict[str, tuple[dict[str, Any], str, tuple[str, ...], tuple[str, ...]]] = {
    "bloom": ({"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64}, "transformer.h",
              ("word_embeddings", "word_embeddings_layernorm"), ("ln_f",)),
    "falcon": (SMALL, "transformer.h", ("word_embeddings",), ("ln_f",)),
    "gemma2": (GROUPED, "model.layers", ("embed_tokens",), ("norm",)),
    "gemma3_text": (GROUPED, "model.layers", ("embed_tokens",), ("norm",)),
    "gpt_neo": ({"hidden_size": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 64,
                 "attention_types": [[["global", "local"], 1]]}, "transformer.h", ("wte", "wpe"), ("ln_f",)),
    "llama4_text": ({**EXPERTS, "intermediate_size_mlp": 48}, "model.layers", ("embed_tokens",), ("norm",)),
    "mixtral": (EXPERTS, "model.layers", ("embed_tokens",), ("norm",)),
    "olmo2": (SMALL, "model.layers", ("embed_tokens",), ("norm",)),
    "opt": ({**SMALL, "word_embed_proj_dim": 16}, "model.decoder.layers",
            ("decoder.embed_tokens", "decoder.embed_positions", "decoder.project_in"),
            ("decoder.final_layer_norm", "decoder.project_out")),
    "phi": (SMALL, "model.layers", ("embed_tokens",), ("final_layernorm",)),
    "qwen3_moe": (EXPERTS, "model.layers", ("embed_tokens",), ("norm",)),
    "stablelm": (GROUPED, "model.layers", ("embed_tokens",), ("norm",)),
}  # fmt: skip


def config_of(model_type: str, **changes: Any) -> PretrainedConfig:
    return CONFIG_MAPPING[model_type](**changes)


@pytest.mark.parametrize("model_type", sorted(FOUND))
def test_parts(model_type: str) -> None:
    changes, blocks, before, after = FOUND[model_type]
    found = describe(config_of(model_type, **changes))
    assert (found.blocks_path, found.before, found.after) == (blocks, before, after)
    assert (found.num_blocks, found.width, found.num_heads, found.vocab_size) == (2, 32, 4, 64)


def test_cached_heads_are_measured_not_read() -> None:
    # Falcon's configuration says so in words of its own; the cache shows it.
    assert describe(config_of("falcon", **SMALL, multi_query=True)).num_kv_heads == 1
    assert describe(config_of("falcon", **SMALL, multi_query=False)).num_kv_heads == 4
    assert describe(config_of("gemma2", **{**GROUPED, "head_dim": 24})).head_dim == 24


def test_inner_width_is_measured_where_the_configuration_has_another_word_for_it() -> None:
    assert (
        describe(
            config_of("opt", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=56)
        ).intermediate_size
        == 56
    )
    assert describe(config_of("bloom", **FOUND["bloom"][0])).intermediate_size == 128


@pytest.mark.parametrize(
    ("rope", "extra"),
    [
        ({"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}, {}),
        ({"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}, {}),
        ({"rope_type": "llama3", "factor": 8.0, "rope_theta": 5e5, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}, {}),
    ],
    ids=["dynamic", "yarn", "llama3"],
)  # fmt: skip
def test_rotary_tables_that_look_at_positions(rope: dict[str, Any], extra: dict[str, Any]) -> None:
    config = config_of("llama", **GROUPED, rope_parameters=rope, max_position_embeddings=128, **extra)
    assert describe(config).before == ("embed_tokens",)


def test_one_block_is_a_list_too() -> None:
    assert describe(config_of("llama", **{**GROUPED, "num_hidden_layers": 1})).num_blocks == 1


def test_blocks_of_several_classes_are_all_named() -> None:
    config = config_of(
        "jamba",
        **{**EXPERTS, "num_hidden_layers": 2},
        attn_layer_period=2,
        attn_layer_offset=1,
        use_mamba_kernels=False,
    )
    assert describe(config).block_class == "JambaAttentionDecoderLayer|JambaMambaDecoderLayer"


@pytest.mark.parametrize(
    ("model_type", "changes", "reason"),
    [
        ("bert", SMALL, "BertLMHeadModel .*no block cached keys .*it is no decoder"),
        ("vit", {}, r"\(model type 'vit'\): transformers cannot build a causal language model from it: ValueError"),
        ("llama", {**SMALL, "rope_parameters": {"rope_type": "nonsense", "rope_theta": 1.0}},
         "cannot build a causal language model from it: KeyError: 'nonsense'"),
    ],
    ids=["encoder", "vision", "wrong rotary type"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_reasons(model_type: str, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ArchitectureError, match=reason):
        describe(config_of(model_type, **changes), "causal-lm")


def test_state_space_blocks_have_no_heads() -> None:
    found = describe(config_of("mamba", hidden_size=16, num_hidden_layers=2, vocab_size=64))
    assert (found.num_blocks, found.width, found.num_heads, found.num_kv_heads, found.head_dim) == (2, 16, 0, 0, 0)
    assert found.stacks[0].attention == ("ssm", "ssm")
