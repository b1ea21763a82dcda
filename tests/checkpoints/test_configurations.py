"""Configurations: what real ones hold passes; what chooses code, replaces methods or is of no real size does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mango.checkpoints import check_configuration, open_config, read_configuration
from mango.checkpoints.reserved import asked_methods, config_methods
from mango.errors import CheckpointError, UnsafeFileError
from mango.security import Policy, Rule, Tier, enforced

# As the Hub has them, in part: keys of tools and of older releases among them.
REAL: dict[str, dict[str, Any]] = {
    "llama": {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
        "max_position_embeddings": 131072, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "torch_dtype": "bfloat16", "transformers_version": "4.42.3", "use_cache": True, "vocab_size": 128256,
        "unsloth_version": "2025.1", "_name_or_path": "meta-llama/Llama-3.1-8B", "quantization_config": None,
    },
    "qwen": {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "max_window_layers": 28, "sliding_window": 131072,
        "use_sliding_window": False, "rope_theta": 1000000, "hidden_size": 3584, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "intermediate_size": 18944, "vocab_size": 152064,
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    },
    "gpt2": {
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_ctx": 1024,
        "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257, "resid_pdrop": 0.1,
        "summary_first_dropout": 0.1, "summary_proj_to_labels": True, "summary_type": "cls_index",
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "id2label": {"0": "update"}, "label2id": {"update": 0},
    },
    "gemma": {
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "_attn_implementation_autoset": True,
        "attn_logit_softcapping": None, "cache_implementation": "hybrid", "head_dim": 256, "hidden_size": 1152,
        "num_hidden_layers": 26, "num_attention_heads": 4, "num_key_value_heads": 1, "query_pre_attn_scalar": 256,
        "rope_local_base_freq": 10000, "sliding_window": 512, "sliding_window_pattern": 6, "vocab_size": 262144,
        "intermediate_size": 6912,
    },
    "mamba": {
        "model_type": "mamba2", "time_step_limit": [0.0, float("inf")], "conv_kernel": 4, "num_heads": 128,
        "hidden_size": 4096, "num_hidden_layers": 64, "vocab_size": 32768, "use_mamba_kernels": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(REAL))
def test_real_configurations_pass_and_open(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(REAL[name]))
    assert read_configuration(tmp_path)["model_type"] == REAL[name]["model_type"]
    opened = open_config(tmp_path)
    assert opened.vocab_size == REAL[name]["vocab_size"]


CODE = [
    {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}},
    {"auto_map": {"AutoConfig": "someone/repo--config.Config"}},
    {"_attn_implementation": "someone/kernel"},
    {"attn_implementation": "flash_attention_2"},  # downloads a kernel where the package is missing
    {"_attn_implementation_internal": "someone/kernel:function"},
    {"_experts_implementation": "someone/kernel"},
    {"attn_implementation": {"": "sdpa", "text_config": "someone/kernel"}},
    {"text_config": {"_attn_implementation": "someone/kernel"}},
    {"sources": {"base": {"auto_map": {"AutoConfig": "x.Y"}}}},
    {"kernel_config": {"kernel_mapping": {"RMSNorm": "someone/kernel"}}},
    {"use_kernels": True},
    {"rms_norm_kernel": "someone/kernel:RMSNorm"},
    {"quantization_config": {"quant_method": "torchao", "quant_type": {"default": {"_type": "os.system"}}}},
    {"trust_remote_code": True},
]


@pytest.mark.parametrize("extra", CODE, ids=lambda extra: next(iter(extra)))
def test_keys_that_choose_code_are_refused_unless_the_folder_is_trusted(tmp_path: Path, extra: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(REAL["llama"] | extra))
    with pytest.raises(UnsafeFileError, match=rf"config\.json: {next(iter(extra))}.*(code|quantis)"):
        open_config(tmp_path)
    rule = Rule(tier=Tier.TRUSTED, source=str(tmp_path))
    with enforced(Policy(rules=(rule,))):
        assert read_configuration(tmp_path)["model_type"] == "llama"


WRONG = [
    ({"to_dict": 1}, "would replace a method"),
    ({"get_text_config": {}}, "would replace a method"),
    ({"__class__": "x"}, "is no name that a parameter can have"),
    ({"num_hidden_layers": 10**9}, "more than 1024"),
    ({"num_hidden_layers": 1e9}, "more than 1024"),
    ({"n_layer": 10**6}, "more than 1024"),
    ({"vocab_size": 10**12}, "more than 16777216"),
    ({"hidden_size": 10**9}, "more than 1048576"),
    ({"num_labels": 10**9}, "more than 16384"),
    ({"num_experts": 10**9}, "more than 16384"),
    ({"max_position_embeddings": 10**12}, "more than 4294967296"),
    ({"layer_types": ["full_attention", {"num_layers": 10**7}]}, "more than 1024"),
    ({"seed": 10**30}, "holds the number 1000"),
    ({"dtype": "load"}, "is no floating point type"),
    ({"model_type": "../llama"}, "is no name"),
    ({"architectures": ["os.path:join"]}, "is no name of a class"),
    ({"note": "x" * 100_000}, "has 100000 characters"),
    ({"many": [0] * 500_000}, "keys and values; at most"),
]


@pytest.mark.parametrize(("extra", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_what_no_real_model_has_is_refused_before_anything_is_built(
    tmp_path: Path, extra: dict[str, Any], message: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(REAL["llama"] | extra))
    with pytest.raises(UnsafeFileError, match=message) as caught:
        open_config(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_a_deep_configuration_a_repeated_key_and_other_text_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    for text, error, message in [
        ('{"a":' + "[" * 40 + "]" * 40 + "}", UnsafeFileError, "more than 24 deep"),
        ('{"a":' + "[" * 100_000, UnsafeFileError, "deep"),
        ('{"vocab_size": 1, "vocab_size": 2}', UnsafeFileError, "'vocab_size' twice"),
        ("[]", CheckpointError, "no JSON object but a list"),
        ("PK\x03\x04", CheckpointError, "is no JSON"),
        ('{"a": "' + "x" * (5 << 20) + '"}', UnsafeFileError, "at most 4194304 are read"),
    ]:
        file.write_text(text)
        with pytest.raises(error, match=message):
            read_configuration(tmp_path)


def test_settings_that_transformers_itself_saves_pass() -> None:
    from transformers import GPTNeoXConfig, LlamaConfig

    for config in (LlamaConfig(), GPTNeoXConfig()):
        check_configuration(json.loads(config.to_json_string(use_diff=False)), "config.json")


def test_the_list_of_a_configurations_methods_is_that_of_the_release_that_it_names() -> None:
    assert config_methods() == asked_methods()
