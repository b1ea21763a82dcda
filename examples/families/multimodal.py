"""Vision and language: a LLaVA gets a llama as an expert in its language model, and still reads images.

    python examples/families/multimodal.py OUT

An image is one of four patterns, named by a token. Adapters and router alone are trained to name it; LLaVA and llama
stay as they are, with random weights, so the names come no further than twenty steps can bring them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tiny_models import write_model
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from mango.blocks import extract
from mango.checkpoints import ModelSource
from mango.fusion import AdapterParams, FusionParams, RouterParams, build_fused

STEPS, IMAGE, ASK = 20, 63, 10


def pictures(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return token ids ``[count, 7]`` of an image and its name, and its pixels ``[count, 3, 16, 16]``."""
    kind = torch.randint(4, (count,), generator=generator)
    wave = torch.sin(torch.arange(16.0) * 0.8)
    shapes = torch.stack([wave.expand(16, 16), wave.expand(16, 16).T, torch.ones(16, 16), -torch.ones(16, 16)])
    pixels = shapes[kind].unsqueeze(1).expand(-1, 3, -1, -1)
    pixels = pixels + 0.1 * torch.randn(count, 3, 16, 16, generator=generator)
    ids = torch.tensor([[1, *[IMAGE] * 4, ASK, 0]]).repeat(count, 1)
    ids[:, -1] = 20 + kind
    return ids, pixels


def main(out: Path) -> dict[str, float]:
    """Fuse, train, save, open and generate; return first and last loss, and how far an image moves an answer."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
    text = LlamaConfig(**sizes, hidden_size=48, intermediate_size=96)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=16, patch_size=8
    )
    llava = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE))
    llama = LlamaForCausalLM(LlamaConfig(**sizes, hidden_size=32, intermediate_size=64))
    folders = {"llava": write_model(llava, out / "llava"), "llama": write_model(llama, out / "llama")}
    sources = {name: ModelSource(source=str(folder)) for name, folder in folders.items()}
    store = extract(sources, out / "blocks", "reference")
    fusion = FusionParams.model_validate({"task": "image-text-to-text", "trunk": "llava", "experts": ["llama"]})
    router = RouterParams.model_validate({"type": "token", "token": {"window": 4}})
    model = build_fused(store, fusion, router, AdapterParams(type="linear"), seed=0)

    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    losses = []
    for _ in range(STEPS):
        ids, pixels = pictures(32, generator)
        loss = model(input_ids=ids, pixel_values=pixels, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval().save_pretrained(out / "fused")

    opened = AutoModelForImageTextToText.from_pretrained(out / "fused")
    ids, pixels = pictures(4, generator)
    ask = {"input_ids": ids[:, :-1], "pixel_values": pixels}
    written = [opened.generate(**ask, max_new_tokens=4, do_sample=False, use_cache=cached) for cached in (True, False)]
    assert written[0].equal(written[1])
    with torch.no_grad():
        other = opened(**{**ask, "pixel_values": pixels.flip(0, -1)}).logits
        seen = float((other - opened(**ask).logits)[:, -1].abs().max())
    first, last = sum(losses[:4]) / 4, sum(losses[-4:]) / 4
    print(f"loss {first:.3f} at first, {last:.3f} at last; another image moves the answer by up to {seen:.3f}")
    return {"first": first, "last": last, "seen": seen}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
