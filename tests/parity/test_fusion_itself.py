"""A model that is fused with nothing, or with itself, is itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from mango.blocks import BlockStore, extract
from mango.checkpoints import ModelSource
from mango.fusion import MolForCausalLM
from tests.blocks.families import FAMILIES, config_of, save_model
from tests.fusion.models import ROUTERS, fuse, left_padded, to_expert, tokens

IDS = tokens(3, 19, seed=8)
MASKS = {"no padding": torch.ones_like(IDS), "left padding": left_padded(IDS, [0, 7, 1])}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of one model of each family, with and without a tied head, and a sibling of each."""
    root = tmp_path_factory.mktemp("families")
    folders: dict[str, Path] = {}
    for seed, family in enumerate(FAMILIES):
        for tied in (True, False):
            for copy in ("", "_sibling"):
                name = f"{family}_{'tied' if tied else 'untied'}{copy}"
                config = config_of(family)
                config.tie_word_embeddings = tied
                folders[name] = save_model(root / name, family, seed=seed + 50 * len(copy), config=config)
    return folders


@pytest.fixture(scope="module")
def store(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> BlockStore:
    models = {name: ModelSource(source=str(folder)) for name, folder in sources.items()}
    return extract(models, tmp_path_factory.mktemp("families_store") / "store", "reference")


@pytest.fixture(scope="module", params=[f"{family}_{tied}" for family in FAMILIES for tied in ("tied", "untied")])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def wanted(sources: dict[str, Path], name: str) -> dict[str, Tensor]:
    """The logits of the model itself, for each mask."""
    model = AutoModelForCausalLM.from_pretrained(sources[name])
    with torch.no_grad():
        return {
            key: model(input_ids=IDS, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits[
                mask.bool()
            ]
            for key, mask in MASKS.items()
        }


def logits(model: MolForCausalLM) -> dict[str, Tensor]:
    with torch.no_grad():
        return {key: model(IDS, attention_mask=mask).logits[mask.bool()] for key, mask in MASKS.items()}


@pytest.mark.parametrize("span", [1, 2, 3])
def test_alone_the_trunk_is_itself_to_the_bit(
    store: BlockStore, name: str, wanted: dict[str, Tensor], span: int
) -> None:
    model = fuse(store, [], trunk=name, span=span)
    assert all(found.equal(wanted[key]) for key, found in logits(model).items())


def test_through_the_anchor_the_trunk_is_itself_to_the_bit(
    store: BlockStore, name: str, wanted: dict[str, Tensor]
) -> None:
    model = fuse(store, [f"{name}_sibling"], trunk=name)
    assert not logits(model)["no padding"].allclose(wanted["no padding"], atol=1e-2)
    to_expert(model, 0)
    model.set_routing("hard")
    found = logits(model)
    assert found["no padding"].equal(wanted["no padding"])
    # Padding is not processed, so kernels get rows of another length, and sum in another order.
    torch.testing.assert_close(found["left padding"], wanted["left padding"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cut", ["fine", "whole"])
def test_as_an_expert_without_trained_adapters_the_trunk_is_itself(
    store: BlockStore, name: str, wanted: dict[str, Tensor], cut: str
) -> None:
    model = fuse(store, [{"model": name, "cut": cut}], trunk=name)
    for routing in ("soft", "hard"):
        model.set_routing(routing)
        if routing == "hard":
            to_expert(model, 1)
        for key, found in logits(model).items():
            torch.testing.assert_close(found, wanted[key], atol=1e-5, rtol=1e-5)


def test_with_the_trunks_edges_the_trunk_is_itself(store: BlockStore, name: str, wanted: dict[str, Tensor]) -> None:
    """What enters the first block comes from the trunk's edges: token and position embeddings."""
    model = fuse(store, [{"model": name, "edges": "trunk"}], trunk=name)
    model.set_routing("hard")
    to_expert(model, 1)
    for key, found in logits(model).items():
        torch.testing.assert_close(found, wanted[key], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("router", ["simple k=1", "top-2 window"])
def test_generation_through_the_anchor_is_the_trunks(
    sources: dict[str, Path], store: BlockStore, name: str, router: str
) -> None:
    model = fuse(store, [f"{name}_sibling"], ROUTERS[router], trunk=name)
    to_expert(model, 0)
    itself = AutoModelForCausalLM.from_pretrained(sources[name])
    itself.generation_config.eos_token_id = None
    mask = MASKS["left padding"]
    found = model.generate(IDS, attention_mask=mask, max_new_tokens=6, do_sample=False)
    assert found.equal(itself.generate(IDS, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0))
