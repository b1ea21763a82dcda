"""Fused image classifiers: a vision transformer with guests of another family, width and patch size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageClassification, Dinov2Config, PretrainedConfig, ViTConfig

from mango.blocks import BlockStore, load_source
from mango.errors import ConfigError, IncompatibleBlocksError
from mango.fusion import MolForImageClassification
from tests.fusion.heads import CHOOSING, SIMPLE, SIZES, TOKEN, fuse_heads, store_of, train_steps
from tests.fusion.models import to_expert

SHAPE: dict[str, Any] = {
    **{key: value for key, value in SIZES.items() if key != "vocab_size"},
    "image_size": 8, "num_channels": 1, "num_labels": 10,
}  # fmt: skip
WIDE = {**SHAPE, "hidden_size": 48, "num_hidden_layers": 2, "mlp_ratio": 2}
SOURCES: dict[str, PretrainedConfig] = {
    "vit": ViTConfig(**SHAPE, patch_size=4),
    "dinov2": Dinov2Config(**WIDE, patch_size=4),
    "finer": Dinov2Config(**WIDE, patch_size=2),
    "binary": ViTConfig(**{**SHAPE, "num_labels": 2}, patch_size=4),
}
PIECES = [{"enter": 0, "exit": 1, "blocks": [0, 1]}, {"enter": 1, "exit": 3, "blocks": [1, 2]}]
EXPERTS: list[Any] = ["dinov2", "finer", {"model": "dinov2", "cut": PIECES}, {"model": "vit", "edges": "trunk"}]
IMAGES = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(4))
LABELS = torch.tensor([3, 1, 4, 1, 5, 9])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> BlockStore:
    return store_of(tmp_path_factory.mktemp("images"), SOURCES, "image-classification")


@torch.no_grad()
def own_logits(store: BlockStore, name: str) -> Tensor:
    return load_source(store, name)(pixel_values=IMAGES).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["vit", "dinov2"])
@torch.no_grad()
def test_alone_the_trunk_is_itself_to_the_bit(store: BlockStore, name: str) -> None:
    for span in (1, 2):
        model = fuse_heads(store, "image-classification", name, [], span=span)
        assert model(IMAGES).logits.equal(own_logits(store, name))


@torch.no_grad()
def test_an_image_that_takes_an_uncut_expert_gets_its_own_logits(store: BlockStore) -> None:
    model = fuse_heads(store, "image-classification", "vit", ["dinov2", "finer"], CHOOSING)
    for place, (name, count) in enumerate((("vit", 3 * 30), ("dinov2", 30), ("finer", 6 * 17))):
        to_expert(model, place)
        found = model(IMAGES)
        torch.testing.assert_close(found.logits, own_logits(store, name), atol=1e-5, rtol=1e-5)
        assert int(found.processed.sum()) == count


@pytest.mark.parametrize("router", [SIMPLE, CHOOSING], ids=["soft", "one expert an image"])
def test_training_saving_and_opening(store: BlockStore, tmp_path: Path, router: dict[str, Any]) -> None:
    model = fuse_heads(store, "image-classification", "vit", EXPERTS, router)
    with torch.no_grad():
        chosen = model(IMAGES).routing[0].weights[:, 0].argmax(-1)
    assert len(set(chosen.tolist())) > 1
    losses = train_steps(model, {"pixel_values": IMAGES, "labels": LABELS})
    assert losses[-1] < losses[0] - 0.5
    model.save_pretrained(tmp_path)
    opened = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert isinstance(opened, MolForImageClassification)
    with torch.no_grad():
        output = model(IMAGES, labels=LABELS)
        assert opened(IMAGES).logits.equal(output.logits)
        torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits, LABELS))
        alone = torch.cat([model(image.unsqueeze(0)).logits for image in IMAGES])
    torch.testing.assert_close(output.logits, alone, atol=1e-5, rtol=1e-5)


def test_what_is_refused(store: BlockStore) -> None:
    with pytest.raises(ConfigError, match=r"wants one decision a row; use router\.type simple, or topk"):
        fuse_heads(store, "image-classification", "vit", ["dinov2"], TOKEN)
    with pytest.raises(IncompatibleBlocksError, match="'binary' tells 2 classes apart, the trunk 'vit' 10"):
        fuse_heads(store, "image-classification", "vit", ["binary"])
    model = fuse_heads(store, "image-classification", "vit", [{"model": "finer", "cut": PIECES}])
    with pytest.raises(IncompatibleBlocksError, match="'finer' makes 17 tokens of a row, the trunk 5"):
        model(IMAGES)
    with pytest.raises(ConfigError, match="takes pixel_values"):
        model(labels=LABELS)
