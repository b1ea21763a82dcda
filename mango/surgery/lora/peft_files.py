"""The files of an adapter as peft reads them: names of tensors, and ``adapter_config.json``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mango.surgery.lora.pairs import Pair
from mango.surgery.lora.params import ExtractionParams
from mango.surgery.opened import OpenedModel

ADAPTER_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
REPORT_NAME = "mango_extraction.json"
PREFIX = "base_model.model"


def tensor_names(pair: Pair) -> tuple[str, ...]:
    """Return what an adapter calls the tensors of a pair: both factors, the stored tensor, or none."""
    at = f"{PREFIX}.{pair.module}"
    if pair.kind in ("linear", "transposed"):
        return f"{at}.lora_A.weight", f"{at}.lora_B.weight"
    if pair.kind == "embedding":
        return f"{at}.lora_embedding_A", f"{at}.lora_embedding_B"
    if pair.kind == "left out":
        return ()
    if pair.kind == "bias" and pair.wrapped:
        return (f"{at}.base_layer.bias",)
    return (f"{PREFIX}.{pair.name}",)


def adapter_config(
    pairs: Sequence[Pair], ranks: Mapping[str, int], params: ExtractionParams, base: OpenedModel
) -> dict[str, Any]:
    """Return the content of ``adapter_config.json``.

    Args:
        pairs: what differs.
        ranks: the rank of each module that has factors.
        params: how it was extracted.
        base: the model that the adapter belongs to.
    """
    usual = Counter(ranks.values()).most_common(1)[0][0] if ranks else params.rank
    whole = sorted({pair.module for pair in pairs if pair.kind == "full"})
    tied = base.parts.tied and base.parts.embeddings in {*ranks, *whole}
    if tied and base.parts.embeddings in whole and base.parts.head is not None:
        whole.append(base.parts.head)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.source.source,
        "revision": base.source.revision,
        "inference_mode": True,
        "r": usual,
        "lora_alpha": params.alpha or float(params.rank),
        "rank_pattern": {f"^{_literal(module)}": rank for module, rank in ranks.items() if rank != usual},
        "target_modules": sorted(ranks),
        "modules_to_save": whole or None,
        "bias": "all" if any(pair.kind == "bias" for pair in pairs) else "none",
        "fan_in_fan_out": any(pair.kind == "transposed" for pair in pairs),
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        "ensure_weight_tying": tied,
    }


def _literal(module: str) -> str:
    return module.replace(".", r"\.")
