"""Causal models of families that differ in positions, windows, norms and widths; and an encoder's blocks among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from mango.blocks import BlockStore, extract
from mango.checkpoints import ModelSource
from mango.errors import ArchitectureError
from mango.fusion import MolForCausalLM
from tests.blocks.families import config_of
from tests.fusion.heads import ENCODERS, TOKEN, VOCAB, fuse_heads, save_head, train_steps
from tests.fusion.models import left_padded, tokens

IDS = tokens(3, 12, seed=31)
MASK = left_padded(IDS, [0, 3, 1])
PIECES = [{"enter": 0, "exit": 1, "blocks": [0, 1]}, {"enter": 1, "exit": 3, "blocks": [1, 3]}]
FUSIONS: dict[str, tuple[str, list[Any]]] = {
    "four decoders, one with a window": ("gpt2", ["llama", {"model": "qwen3", "cut": PIECES}, "mistral"]),
    "an encoder whole": ("gpt2", ["bert"]),
    "an encoder cut": ("gpt2", [{"model": "bert", "cut": PIECES, "edges": "trunk"}]),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> BlockStore:
    root = tmp_path_factory.mktemp("mixed")
    configs = {family: config_of(family) for family in ("gpt2", "llama", "qwen3", "mistral")}
    configs["qwen3"].hidden_size, configs["mistral"].hidden_size = 40, 48
    folders = {n: save_head(root / n, c, "causal-lm", seed=s) for s, (n, c) in enumerate(configs.items())}
    for seed, name in enumerate(("bert", "roberta")):
        folders[name] = save_head(root / name, ENCODERS[name], "masked-lm", seed=10 + seed)
    return extract({n: ModelSource(source=str(f)) for n, f in folders.items()}, root / "store", "reference")


@pytest.mark.parametrize("name", FUSIONS)
def test_from_building_to_opening(store: BlockStore, tmp_path: Path, name: str) -> None:
    trunk, experts = FUSIONS[name]
    model = fuse_heads(store, "causal-lm", trunk, experts, TOKEN)
    assert model.generation_config is not None
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    changed = IDS.clone()
    changed[:, 7] = (changed[:, 7] + 3) % VOCAB
    for how in ("soft", "hard"):
        model.set_routing(how)
        with torch.no_grad():
            before, after = model(IDS), model(changed)
        assert after.logits[:, :7].equal(before.logits[:, :7])  # no expert sees the future
        assert not after.logits[:, 7].equal(before.logits[:, 7])
        if how == "soft":
            assert bool((before.processed == IDS.numel()).all())
        cached, plain = (
            model.generate(  # type: ignore[operator]
                IDS, attention_mask=MASK, max_new_tokens=6, do_sample=False, no_repeat_ngram_size=1, use_cache=use
            )
            for use in (True, False)
        )
        assert cached.equal(plain)
    model.set_routing(None)
    losses = train_steps(model, {"input_ids": IDS, "attention_mask": MASK, "labels": IDS})
    assert losses[-1] < losses[0] - 0.02
    model.save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(opened, MolForCausalLM)
    with torch.no_grad():
        assert opened(IDS, attention_mask=MASK).logits.equal(model(IDS, attention_mask=MASK).logits)


def test_an_encoder_that_counts_positions_from_elsewhere_is_refused(store: BlockStore) -> None:
    with pytest.raises(ArchitectureError, match=r"'roberta' .* counts its positions from its padding token on"):
        fuse_heads(store, "causal-lm", "gpt2", ["roberta"], TOKEN)
