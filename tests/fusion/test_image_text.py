"""Experts of text inside models that read images: built, trained, decoded, saved; and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from mango.blocks import BlockStore, extract, load_source
from mango.checkpoints import ModelSource
from mango.errors import ArchitectureError, ConfigError
from mango.fusion import MolForImageTextToText
from mango.fusion.image_agreement import image_inputs
from tests.fusion.heads import TOKEN, fuse_heads, save_head
from tests.fusion.models import to_expert
from tests.fusion.sighted import BLIND, EXPERTS, IMAGE, PREFIX, SIGHTED

TASK = "image-text-to-text"
TOP1 = {"type": "topk", "topk": {"window": 3, "catch_up": 3}}
GENERATE: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": [62, IMAGE]}
"""A place that is written without an image would be looked for when all is read again."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> BlockStore:
    root = tmp_path_factory.mktemp("sighted")
    kinds = {**dict.fromkeys([*SIGHTED, "prefix"], TASK), **dict.fromkeys(BLIND, "causal-lm")}
    configs = {**SIGHTED, "prefix": PREFIX, **BLIND}
    sources = {
        name: ModelSource(source=str(save_head(root / name, configs[name], kind, seed=seed)))
        for seed, (name, kind) in enumerate(kinds.items())
    }
    return extract(sources, root / "store", "reference")


def fused(store: BlockStore, name: str, router: dict[str, Any] | None = None) -> MolForImageTextToText:
    model = fuse_heads(store, TASK, name, EXPERTS, router or TOKEN)
    assert isinstance(model, MolForImageTextToText)
    assert model.generation_config is not None
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return model


def padded(inputs: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    """Return the inputs with so many columns of padding on the left of what has a column for each token."""
    shape = inputs["input_ids"].shape
    return {
        name: torch.nn.functional.pad(value, (number, 0)) if value.shape == shape else value
        for name, value in inputs.items()
    }


@pytest.mark.parametrize("name", sorted(SIGHTED))
@torch.no_grad()
def test_alone_the_trunk_sees_what_it_saw(store: BlockStore, name: str) -> None:
    source = load_source(store, name)
    inputs = image_inputs(source, rows=2)
    model = fuse_heads(store, TASK, name, [], TOKEN)
    torch.testing.assert_close(model(**inputs).logits, source(**inputs).logits, atol=1e-5, rtol=1e-5)
    text = inputs["input_ids"][:, -3:]
    torch.testing.assert_close(model(text).logits, source(input_ids=text).logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_images_of_whole_numbers_are_seen_too(store: BlockStore) -> None:
    source = load_source(store, "llava")
    inputs = image_inputs(source)
    model = fuse_heads(store, TASK, "llava", [], TOKEN)
    whole = {**inputs, "pixel_values": (3 * inputs["pixel_values"]).to(torch.int32)}
    found, blind = model(**whole).logits, model(inputs["input_ids"]).logits
    torch.testing.assert_close(found, source(**whole).logits, atol=1e-5, rtol=1e-5)
    assert not torch.equal(found, blind)


@pytest.mark.parametrize("name", ["gemma3", "llava", "qwen2_vl"])
def test_training_generating_saving_and_opening(store: BlockStore, tmp_path: Path, name: str) -> None:
    inputs = image_inputs(load_source(store, name), rows=2)
    model = fused(store, name)
    labels = inputs["input_ids"].clone()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses: dict[str, list[float]] = {"image": [], "text": []}
    model.train(True)
    for step in range(20):
        seen = step % 2 == 0
        given = inputs if seen else {"input_ids": labels[:, -4:]}
        loss = model(**given, labels=given["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses["image" if seen else "text"].append(float(loss.detach()))
    model.train(False)
    for values in losses.values():
        assert values[-1] < values[0] - 0.2
    with torch.no_grad():
        output = model(**inputs)
        assert bool((output.processed == labels.numel()).all())
        other = model(**{**inputs, "pixel_values": inputs["pixel_values"].flip(-1) + 1}).logits[:, -1]
        assert float((other - output.logits[:, -1]).abs().max()) > 0.01
        shifted = model(**padded(inputs, 2)).logits[:, 2:]
    torch.testing.assert_close(shifted, output.logits, atol=1e-5, rtol=1e-5)
    written = model.generate(**inputs, **GENERATE)
    assert written.equal(model.generate(**inputs, **GENERATE, use_cache=False))
    assert written.equal(model.generate(**padded(inputs, 2), **GENERATE)[:, 2:])
    one = {key: value[: len(value) // 2] for key, value in inputs.items()}
    beams = [model.generate(**one, **GENERATE, num_beams=2, use_cache=cached) for cached in (True, False)]
    assert beams[0].equal(beams[1])
    model.save_pretrained(tmp_path)
    opened = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert isinstance(opened, MolForImageTextToText)
    with torch.no_grad():
        assert opened(**inputs).logits.equal(output.logits)


@pytest.mark.parametrize("name", ["smolvlm", "qwen2_vl"])
@torch.no_grad()
def test_tokens_that_take_one_expert_each(store: BlockStore, name: str) -> None:
    source = load_source(store, name)
    inputs = image_inputs(source, rows=2)
    model = fused(store, name, TOP1)
    assert model.generate(**inputs, **GENERATE).equal(model.generate(**inputs, **GENERATE, use_cache=False))
    to_expert(model, 0)
    torch.testing.assert_close(model(**inputs).logits, source(**inputs).logits, atol=1e-5, rtol=1e-5)
    to_expert(model, 3)
    output = model(**inputs)
    assert output.processed.tolist()[-1] == inputs["input_ids"].numel()
    text = inputs["input_ids"][:, -4:]  # of text alone an uncut expert says what it says alone
    torch.testing.assert_close(model(text).logits, load_source(store, "gpt2")(text).logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_what_is_refused(store: BlockStore) -> None:
    with pytest.raises(ArchitectureError, match=r"'prefix' .*a token of its prompt sees those behind it"):
        fuse_heads(store, TASK, "prefix", ["llama"], TOKEN)
    with pytest.raises(ArchitectureError, match=r"'llama' .* reads no images, so it cannot be the trunk"):
        fuse_heads(store, TASK, "llama", ["qwen3"], TOKEN)
    with pytest.raises(ArchitectureError, match=r"'llava' .* is for image-text-to-text, and fusion\.task is causal-lm"):
        fuse_heads(store, "causal-lm", "llava", ["llama"], TOKEN)
    inputs = image_inputs(load_source(store, "gemma3"))
    model = fused(store, "gemma3", TOP1)
    with pytest.raises(ConfigError, match="image tokens of this trunk see those that follow them"):
        model(**inputs)
    model.set_routing("soft")
    cache = model(**inputs, use_cache=True).past_key_values
    with pytest.raises(ConfigError, match="pixel_values: images come with the first tokens"):
        model(inputs["input_ids"], pixel_values=inputs["pixel_values"], past_key_values=cache)
    with pytest.raises(ConfigError, match="mm_encoder_outputs"):
        model(**inputs, mm_encoder_outputs={})
    with pytest.raises(ValueError, match="pixel_value"):
        model.generate(inputs["input_ids"], pixel_value=inputs["pixel_values"])


@torch.no_grad()
def test_images_that_do_not_come_row_by_row_are_repeated_for_one_row_alone(store: BlockStore) -> None:
    inputs = image_inputs(load_source(store, "qwen2_vl"), rows=2)
    with pytest.raises(ConfigError, match="cannot be repeated for several rows at once"):
        fused(store, "qwen2_vl").generate(**inputs, **GENERATE, num_beams=2)
