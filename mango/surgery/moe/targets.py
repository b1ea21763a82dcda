"""The architectures that a mixture can have: which dense models fit, the configuration, and the names of tensors.

Tensors are named as on the Hub, one for each expert, which transformers, vLLM and llama.cpp all read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from mango.surgery.moe.document import MoeDocument

SHARED_NOTHING = 64
"""Width of the shared expert of zeros that a model has whose class wants one and whose document names none."""


@dataclass(frozen=True)
class Target:
    """An architecture of mixtures.

    Attributes:
        name: what documents call it.
        model_type: what ``config.json`` calls it.
        dense: model types of the dense models that it can be made of.
        shared: whether it has a shared expert.
        block: what its feed-forward part is called.
        parts: what gate, up and down projection of an expert are called.
        configure: returns its configuration from a dense one.
    """

    name: str
    model_type: str
    dense: frozenset[str]
    shared: bool
    block: str
    parts: Mapping[str, str]
    configure: Callable[[PretrainedConfig, MoeDocument], PretrainedConfig]

    def expert_tensor(self, layer: str, expert: int, part: str) -> str:
        """Return the name of one expert's projection (``gate_proj``, ``up_proj`` or ``down_proj``)."""
        return f"{layer}.{self.block}.experts.{expert}.{self.parts[part]}.weight"

    def gate_tensor(self, layer: str) -> str:
        """Return the name of a layer's gate."""
        return f"{layer}.{self.block}.gate.weight"


def _known(config: PretrainedConfig, kind: type[PretrainedConfig]) -> dict[str, Any]:
    """Return what a dense configuration says of things that the other class has too, its own name left out."""
    fields = {*kind().to_dict(), "head_dim", "rope_parameters"} - {
        "model_type",
        "architectures",
        "transformers_version",
    }
    return {key: value for key, value in config.to_dict().items() if key in fields}


def _mixtral(dense: PretrainedConfig, document: MoeDocument) -> PretrainedConfig:
    from transformers import MixtralConfig

    given = _known(dense, MixtralConfig) | {
        "num_local_experts": len(document.experts),
        "num_experts_per_tok": document.experts_per_token,
        "output_router_logits": False,
        "architectures": ["MixtralForCausalLM"],
    }
    return MixtralConfig(**given)


def _qwen2(dense: PretrainedConfig, document: MoeDocument) -> PretrainedConfig:
    from transformers import Qwen2MoeConfig

    width = int(dense.intermediate_size)
    given = _known(dense, Qwen2MoeConfig) | {
        "num_experts": len(document.experts),
        "num_experts_per_tok": document.experts_per_token,
        "moe_intermediate_size": width,
        "shared_expert_intermediate_size": width if document.shared_experts else SHARED_NOTHING,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "qkv_bias": dense.model_type == "qwen2",
        "architectures": ["Qwen2MoeForCausalLM"],
    }
    if dense.model_type == "mistral" and given.get("sliding_window") is not None:
        layers = int(dense.num_hidden_layers)
        given |= {"use_sliding_window": True, "layer_types": ["sliding_attention"] * layers}
    return Qwen2MoeConfig(**given)


def _qwen3(dense: PretrainedConfig, document: MoeDocument) -> PretrainedConfig:
    from transformers import Qwen3MoeConfig

    given = _known(dense, Qwen3MoeConfig) | {
        "num_experts": len(document.experts),
        "num_experts_per_tok": document.experts_per_token,
        "moe_intermediate_size": int(dense.intermediate_size),
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "architectures": ["Qwen3MoeForCausalLM"],
    }
    given.pop("num_local_experts", None)
    return Qwen3MoeConfig(**given)


_OWN_NAMES = {"gate_proj": "gate_proj", "up_proj": "up_proj", "down_proj": "down_proj"}
_PLAIN = frozenset({"llama", "mistral"})
TARGETS = (
    Target(
        "Mixtral",
        "mixtral",
        _PLAIN,
        False,
        "block_sparse_moe",
        {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
        _mixtral,
    ),
    Target("Qwen MoE", "qwen2_moe", _PLAIN | {"qwen2"}, True, "mlp", _OWN_NAMES, _qwen2),
    Target("Qwen3 MoE", "qwen3_moe", frozenset({"qwen3"}), False, "mlp", _OWN_NAMES, _qwen3),
)
"""In the order in which they are tried."""


def named_target(word: str) -> Target | Literal["deepseek"] | None:
    """Return the architecture that a document means by a word: the start of its name or model type, in any case."""
    word = word.lower()
    for target in TARGETS:
        if target.name.lower().startswith(word) or word == target.model_type:
            return target
    return "deepseek" if "deepseek moe".startswith(word) else None


def choose_target(model_type: str, *, shared: bool) -> Target | None:
    """Return the first architecture that fits dense models of a type, with a shared expert or without."""
    return next((t for t in TARGETS if model_type in t.dense and (t.shared or not shared)), None)


def config_json(config: PretrainedConfig, dtype: str) -> str:
    """Return the text of ``config.json``."""
    data = json.loads(config.to_json_string(use_diff=False))
    for key in ("_name_or_path", "torch_dtype"):
        data.pop(key, None)
    data["dtype"] = dtype
    if config.model_type == "qwen3_moe":
        data["num_experts"] = data["num_local_experts"]  # what readers other than transformers call it
    return json.dumps(data, indent=2, sort_keys=True) + "\n"
