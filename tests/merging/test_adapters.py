"""Adapters of every form that peft writes: the same weights as peft's own merge, or refused with the reason."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from mango.checkpoints import Checkpoint
from mango.errors import MergeError
from mango.merging import merge, merge_tensors, plan

pytestmark = pytest.mark.filterwarnings("ignore")  # peft's own

FORMS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ["q_proj", "up_proj"]},
    "rslora": {"target_modules": ["q_proj"], "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "v_proj", "up_proj"],
        "rank_pattern": {"v_proj": 2},
        "alpha_pattern": {"v_proj": 3, "layers.1.mlp.up_proj": 7},
    },
    "whole modules": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "input_layernorm"]},
    "all biases": {"target_modules": ["q_proj", "o_proj"], "bias": "all"},
    "biases of its layers": {"target_modules": ["q_proj", "o_proj"], "bias": "lora_only"},
    "biases of its own": {"target_modules": ["q_proj", "k_proj"], "lora_bias": True},
    "dora": {"target_modules": ["q_proj", "up_proj"], "use_dora": True},
    "an embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "dora, transposed": {"target_modules": ["c_attn", "c_proj"], "use_dora": True, "fan_in_fan_out": True},
    "all biases, transposed": {"target_modules": ["c_attn"], "bias": "all", "fan_in_fan_out": True},
}


def base_model(form: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if "transposed" in form:
        model: PreTrainedModel = GPT2LMHeadModel(
            GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=40)
        )
    else:
        model = Qwen2ForCausalLM(
            Qwen2Config(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                        num_key_value_heads=1, vocab_size=40, max_position_embeddings=32)
        )  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def train(model: PreTrainedModel, folder: Path, form: dict[str, Any]) -> None:
    """Save an adapter whose every number was trained."""
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(copy.deepcopy(model), LoraConfig(r=4, lora_alpha=6, **form))
    torch.manual_seed(1)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    wrapped.save_pretrained(folder)


def alone(model: Path, adapter: Path) -> dict[str, Any]:
    return {"merge_method": "passthrough", "models": [{"model": f"{model}+{adapter}"}]}


@pytest.mark.parametrize("form", FORMS)
def test_an_adapter_changes_what_peft_changes(tmp_path: Path, form: str) -> None:
    from peft import PeftModel

    model = base_model(form)
    model.save_pretrained(tmp_path / "base")
    train(model, tmp_path / "adapter", FORMS[form])
    wanted = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "adapter").merge_and_unload().state_dict()
    before, found = model.state_dict(), merge_tensors(alone(tmp_path / "base", tmp_path / "adapter"))
    changed = [name for name in found if not torch.equal(found[name], before[name])]
    assert changed
    for name, tensor in found.items():  # both compute in float32; sums may be taken in another order
        assert torch.allclose(tensor, wanted[name], rtol=1e-6, atol=1e-7), name


@pytest.mark.parametrize("form", ["whole modules", "all biases", "dora", "biases of its own"])
def test_what_is_written_keeps_the_type_of_the_model(tmp_path: Path, form: str) -> None:
    model = base_model(form)
    copy.deepcopy(model).bfloat16().save_pretrained(tmp_path / "base")
    train(model, tmp_path / "adapter", FORMS[form])  # in float32
    merge(alone(tmp_path / "base", tmp_path / "adapter"), tmp_path / "out")
    opened = Checkpoint.open(tmp_path / "out")
    assert {str(opened.tensor(name).dtype) for name in opened.names()} == {"torch.bfloat16"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, "takes a part out of the model's weights that the adapter does not"),
        ({"alora_invocation_tokens": [1]}, "it works behind some tokens alone"),
        ({"layer_replication": [[0, 1]]}, "repeats layers"),
        ({"peft_type": "IA3"}, "only LORA is added to weights"),
        ({"use_dora": True}, "has no lengths, and use_dora is True"),
    ],
)
def test_other_forms_are_refused_with_the_reason(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    model = base_model("plain")
    model.save_pretrained(tmp_path / "base")
    train(model, tmp_path / "adapter", FORMS["plain"])
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(MergeError, match=message):
        plan(alone(tmp_path / "base", tmp_path / "adapter"))


def test_a_bias_that_the_model_does_not_have_is_refused(tmp_path: Path) -> None:
    model = base_model("plain")
    model.save_pretrained(tmp_path / "base")
    train(model, tmp_path / "adapter", {"target_modules": ["o_proj"], "lora_bias": True})
    with pytest.raises(MergeError, match=r"o_proj\.bias, which the model does not have"):
        plan(alone(tmp_path / "base", tmp_path / "adapter"))
