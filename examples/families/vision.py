"""Vision: a ViT and a wider DINOv2 with finer patches become one classifier of stripes.

    python examples/families/vision.py OUT

The ViT has learnt which way broad stripes run, the DINOv2 which way narrow ones do. The fused model meets both; its
router looks at each image once, and routers and adapters alone are trained.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tiny_models import write_model
from torch import Tensor
from transformers import (
    AutoModelForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

from mango.blocks import extract
from mango.checkpoints import ModelSource
from mango.fusion import AdapterParams, FusionParams, RouterParams, build_fused

STEPS, LEARN = 20, 40
"""Classes: broad down, broad across, narrow down, narrow across."""


def stripes(count: int, kinds: list[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return noisy images of stripes ``[count, 3, 16, 16]`` of these classes, and the class of each."""
    kind = torch.tensor(kinds)[torch.randint(len(kinds), (count,), generator=generator)]
    phase = torch.rand(count, 1, generator=generator) * 6.3
    pace = torch.where(kind < 2, 0.6, 1.8).unsqueeze(1)
    wave = torch.sin(torch.arange(16)[None] * pace + phase).unsqueeze(1).expand(-1, 16, -1)
    images = torch.where((kind % 2 == 0)[:, None, None], wave, wave.transpose(1, 2))
    return images[:, None] + 0.3 * torch.randn(count, 3, 16, 16, generator=generator), kind


def train(model: PreTrainedModel, kinds: list[int], count: int, rate: float, generator: torch.Generator) -> list[float]:
    """Train what of a model is not frozen to tell these classes apart, and return the losses."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    model.train()
    losses = []
    for _ in range(count):
        images, kind = stripes(64, kinds, generator)
        loss = model(pixel_values=images, labels=kind).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def main(out: Path) -> dict[str, float]:
    """Fuse, train, save and open; return the first and the last loss, and the accuracy on new images."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16, "num_labels": 4}
    vit = ViTForImageClassification(ViTConfig(**sizes, hidden_size=32, intermediate_size=64, patch_size=8))
    dinov2 = Dinov2ForImageClassification(Dinov2Config(**sizes, hidden_size=48, mlp_ratio=2, patch_size=4))
    train(vit, [0, 1], LEARN, 3e-3, generator)
    train(dinov2, [2, 3], LEARN, 3e-3, generator)
    folders = {"vit": write_model(vit, out / "vit"), "dinov2": write_model(dinov2, out / "dinov2")}
    store = extract({n: ModelSource(source=str(f)) for n, f in folders.items()}, out / "blocks", "reference")
    fusion = FusionParams.model_validate({"task": "image-classification", "trunk": "vit", "experts": ["dinov2"]})
    router = RouterParams.model_validate({"type": "simple", "simple": {"prompt": 5}})
    model = build_fused(store, fusion, router, AdapterParams(type="linear"), seed=0)

    losses = train(model, [0, 1, 2, 3], STEPS, 2e-2, generator)
    model.save_pretrained(out / "fused")
    opened = AutoModelForImageClassification.from_pretrained(out / "fused")
    images, kind = stripes(128, [0, 1, 2, 3], generator)
    with torch.no_grad():
        logits = opened(images).logits
        assert logits.equal(model(images).logits)
    first, last = sum(losses[:4]) / 4, sum(losses[-4:]) / 4
    accuracy = float((logits.argmax(-1) == kind).double().mean())
    print(f"loss {first:.3f} at first, {last:.3f} at last; {accuracy:.3f} of new images are told right")
    return {"first": first, "last": last, "accuracy": accuracy}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
