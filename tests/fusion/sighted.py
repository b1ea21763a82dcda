"""Tiny random models that read images, of families that place them, mask them and count them in different ways."""

from __future__ import annotations

from typing import Any

from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    GPT2Config,
    LlamaConfig,
    LlavaConfig,
    PaliGemmaConfig,
    PretrainedConfig,
    Qwen2VLConfig,
    Qwen3Config,
    SmolVLMConfig,
)

from tests.fusion.heads import SIZES, VOCAB

TEXT: dict[str, Any] = {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 128}
EYES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 5, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
PATCHES: dict[str, Any] = {**EYES, "num_hidden_layers": 2, "patch_size": 4}
IMAGE = VOCAB - 1
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}

SIGHTED: dict[str, PretrainedConfig] = {
    "llava": LlavaConfig(
        text_config=LlamaConfig(**TEXT), vision_config=CLIPVisionConfig(**EYES), image_token_index=IMAGE
    ),
    "smolvlm": SmolVLMConfig(
        text_config={"model_type": "llama", "pad_token_id": 0, **TEXT}, vision_config=PATCHES, image_token_id=IMAGE,
        scale_factor=2, pad_token_id=0,
    ),
    "qwen2_vl": Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": ROPE, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0},
        vision_config={
            "depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2, "patch_size": 4,
            "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
        image_token_id=IMAGE, video_token_id=62, vision_start_token_id=61, vision_end_token_id=60,
    ),
    "gemma3": Gemma3Config(
        text_config={
            **TEXT, "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        vision_config=EYES, image_token_index=IMAGE, mm_tokens_per_image=4, boi_token_index=61, eoi_token_index=60,
    ),
}  # fmt: skip
"""One image stream; tiles; three counts of places, one for each dimension; image tokens that see each other."""

BLIND: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**{**TEXT, "hidden_size": 24, "num_hidden_layers": 2}),
    "qwen3": Qwen3Config(**TEXT, head_dim=8),
    "gpt2": GPT2Config(n_embd=24, n_layer=2, n_head=4, vocab_size=VOCAB, n_positions=128),
}
PREFIX = PaliGemmaConfig(
    text_config={"model_type": "gemma", "head_dim": 8, **TEXT}, vision_config={**EYES, "projection_dim": 32},
    image_token_index=IMAGE, projection_dim=32,
)  # fmt: skip
"""A model whose prompt sees all of itself."""
EXPERTS: list[Any] = ["llama", {"model": "qwen3", "edges": "trunk"}, {"model": "gpt2", "cut": "whole"}]
