"""Multimodal: a LLaVA takes blocks of a text model into its decoder, and still reads images.

    python examples/families/multimodal.py OUT

The store knows both stacks of the LLaVA, the decoder's blocks and the vision tower's; a llama of the same width lends
a block.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tiny_models import put_together, write_model
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from mango.blocks import extract, inspect_model
from mango.checkpoints import ModelSource

IMAGE = 63


def main(out: Path) -> dict[str, float]:
    """Extract, exchange a block and read an image; return how far the answer moved."""
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=64, hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=64,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8
    )
    llava = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=-2)
    ).eval()
    llama = LlamaForCausalLM(text).eval()
    folders = {"llava": write_model(llava, out / "llava"), "llama": write_model(llama, out / "llama")}
    stacks = inspect_model(ModelSource(source=str(folders["llava"]))).components.stacks
    print({stack.role: f"{stack.num_blocks} x {stack.block_class} in {stack.path}" for stack in stacks})
    sources = {name: ModelSource(source=str(folder)) for name, folder in folders.items()}
    store = extract(sources, out / "blocks", "reference")

    generator = torch.Generator().manual_seed(1)
    ids = torch.cat([torch.full((1, 16), IMAGE), torch.randint(60, (1, 8), generator=generator)], 1)
    inputs = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 32, 32, generator=generator)}
    with torch.no_grad():
        wanted = llava(**inputs).logits
        assert put_together(store, "llava")(**inputs).logits.equal(wanted)
        mixed = put_together(store, "llava", {1: "llama"})
        moved = float((mixed(**inputs).logits - wanted).abs().max())
        other = {**inputs, "pixel_values": inputs["pixel_values"].flip(-1)}
        seen = float((mixed(**other).logits[:, -1] - mixed(**inputs).logits[:, -1]).abs().max())
    print(f"with the llama's block logits move by up to {moved:.3f}; another image moves the last by {seen:.4f}")
    return {"moved": moved, "seen": seen}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
