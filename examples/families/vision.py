"""Vision: at which depth does a ViT know which way stripes run? Its blocks are read from a store, one after another.

    python examples/families/vision.py OUT

A linear probe is fitted to what leaves each block; only as many blocks are opened as the depth asks for.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tiny_models import put_together, write_model
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification

from mango.blocks import extract
from mango.checkpoints import ModelSource


def stripes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return noisy images of stripes, and whether those of each run from top to bottom."""
    phase = torch.rand(count, 1, 1, generator=generator) * 6.3
    wave = torch.sin(torch.arange(32)[None, None] * 0.8 + phase).expand(-1, 32, -1)
    upright = torch.rand(count, generator=generator) < 0.5
    images = torch.where(upright[:, None, None], wave, wave.transpose(1, 2))
    noise = torch.randn(count, 3, 32, 32, generator=generator)
    return images[:, None] + 0.5 * noise, upright.long()


def main(out: Path) -> dict[str, float]:
    """Extract, run blocks from the store and fit probes; return the accuracy at each depth."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96, image_size=32, patch_size=8
    )
    vit = ViTForImageClassification(config).eval()
    store = extract({"vit": ModelSource(source=str(write_model(vit, out / "vit")))}, out / "blocks", "reference")
    generator = torch.Generator().manual_seed(1)
    images, upright = stripes(256, generator)
    with torch.no_grad():
        assert put_together(store, "vit")(images[:4]).logits.equal(vit(images[:4]).logits)
        states = vit.vit.embeddings(images)
        accuracy = {"patches": probe(summary(states), upright)}
        for index in range(store.model("vit").architecture.num_blocks):
            returned = store.load_block("vit", index)(states)
            states = returned[0] if isinstance(returned, tuple) else returned
            accuracy[f"block {index}"] = probe(summary(states), upright)
    print({name: round(value, 3) for name, value in accuracy.items()})
    return accuracy


def summary(states: Tensor) -> Tensor:
    """Return the mean and the spread of the states ``[images, patches, width]`` over patches."""
    return torch.cat([states.mean(1), states.std(1)], 1)


def probe(features: Tensor, labels: Tensor) -> float:
    """Return how many of the second half a ridge regression on the first half gets right."""
    half = len(features) // 2
    features = torch.cat([features - features.mean(0), torch.ones(len(features), 1)], 1).double()
    seen, wanted = features[:half], labels[:half].double() * 2 - 1
    weights = torch.linalg.solve(seen.T @ seen + 1e-2 * torch.eye(seen.shape[1]), seen.T @ wanted)
    return float(((features[half:] @ weights > 0).long() == labels[half:]).double().mean())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
