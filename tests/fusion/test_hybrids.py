"""Blocks that keep a state (linear attention, convolutions, scans) or are placed by biases, as guests and hosts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Lfm2Config,
    MambaConfig,
    MptConfig,
    OpenAIGPTConfig,
    PretrainedConfig,
    Qwen3NextConfig,
    RwkvConfig,
)

from mango.blocks import BlockStore, extract
from mango.checkpoints import ModelSource
from mango.errors import ConfigError
from mango.fusion import FusedCache, MolForCausalLM, span_cache
from mango.fusion.span_memory import SpanMemory
from tests.blocks.families import GROUPED, NO_TOKENS, VOCAB, config_of, save_model
from tests.fusion.heads import train_steps
from tests.fusion.models import fuse, left_padded, tokens

TOLERANCE = 2e-5
"""Of float32 logits, relative to the largest: a state that goes on token by token sums in another order than one scan
of all. What was measured stays below a tenth of it."""
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": config_of("llama"),
    "qwen3_next": Qwen3NextConfig(
        **{**GROUPED, "num_hidden_layers": 4}, head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4,
        linear_key_head_dim=8, linear_value_head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24,
        shared_expert_intermediate_size=24, layer_types=["linear_attention"] * 3 + ["full_attention"],
    ),
    "lfm2": Lfm2Config(
        **{**GROUPED, "hidden_size": 48}, pad_token_id=0, conv_bias=True,
        layer_types=["conv", "full_attention", "conv"], block_auto_adjust_ff_dim=False,
    ),
    "mamba": MambaConfig(hidden_size=24, num_hidden_layers=2, state_size=8, vocab_size=VOCAB, **NO_TOKENS),
    "bloom": BloomConfig(hidden_size=24, n_layer=2, n_head=6, vocab_size=VOCAB, **NO_TOKENS),
    "mpt": MptConfig(d_model=32, n_heads=4, n_layers=2, max_seq_len=64, vocab_size=VOCAB, **NO_TOKENS),
    "rwkv": RwkvConfig(hidden_size=24, attention_hidden_size=24, num_hidden_layers=3, rescale_every=1, vocab_size=VOCAB,
                       **NO_TOKENS),
    "openai-gpt": OpenAIGPTConfig(n_embd=24, n_layer=2, n_head=4, n_positions=64, vocab_size=VOCAB, **NO_TOKENS),
}  # fmt: skip
CUT = [{"enter": 0, "exit": 1, "blocks": [0, 1]}, {"enter": 1, "exit": 3, "blocks": [1, 4]}]
FUSIONS: dict[str, tuple[str, list[Any]]] = {
    "a llama with two hybrids": ("llama", [{"model": "qwen3_next", "cut": CUT}, "lfm2"]),
    "biases with a scan": ("bloom", ["mpt", "mamba"]),
    "models that read all again": ("llama", ["rwkv", "openai-gpt"]),
}
WITH_GAPS = {"type": "topk", "topk": {"window": 1, "catch_up": 2}}
IDS = tokens(3, 14, seed=41)
MASK = left_padded(IDS, [0, 4, 1])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> BlockStore:
    root = tmp_path_factory.mktemp("hybrids")
    folders = {
        name: save_model(root / name, seed=seed, config=config) for seed, (name, config) in enumerate(CONFIGS.items())
    }
    sources = {name: ModelSource(source=str(folder)) for name, folder in folders.items()}
    return extract(sources, root / "store", "reference")


@torch.no_grad()
def stepwise(model: MolForCausalLM, mask: Tensor, steps: list[int]) -> tuple[Tensor, FusedCache]:
    """Return the logits of chunks of these lengths, each with the cache of those before."""
    cache, logits, start = FusedCache(), [], 0
    for length in steps:
        stop = start + length
        out = model(IDS[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache)
        assert out.logits is not None
        logits.append(out.logits)
        start = stop
    return torch.cat(logits, 1), cache


def assert_close(found: Tensor, wanted: Tensor) -> None:
    assert float((found - wanted).abs().max()) <= TOLERANCE * float(wanted.abs().max())


@pytest.mark.parametrize("name", FUSIONS)
def test_from_building_to_opening(store: BlockStore, tmp_path: Path, name: str) -> None:
    trunk, experts = FUSIONS[name]
    model = fuse(store, experts, trunk=trunk)
    changed = IDS.clone()
    changed[:, 9] = (changed[:, 9] + 3) % VOCAB
    for how in ("soft", "hard"):
        model.set_routing(how)
        with torch.no_grad():
            before, after = model(IDS), model(changed)
        assert_close(after.logits[:, :9], before.logits[:, :9])  # no expert sees the future
        assert not after.logits[:, 9].equal(before.logits[:, 9])
        if how == "soft":
            assert bool((before.processed == IDS.numel()).all())
        for beams in (1, 3) if how == "soft" else (1,):
            cached, plain = (
                model.generate(  # type: ignore[operator]
                    IDS, attention_mask=MASK, max_new_tokens=4, do_sample=False, num_beams=beams,
                    no_repeat_ngram_size=1, use_cache=use,
                )
                for use in (True, False)
            )  # fmt: skip
            assert cached.equal(plain)
    model.set_routing(None)
    losses = train_steps(model, {"input_ids": IDS, "attention_mask": MASK, "labels": IDS})
    assert losses[-1] < losses[0] - 0.02
    model.save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(opened, MolForCausalLM)
    with torch.no_grad():
        assert opened(IDS, attention_mask=MASK).logits.equal(model(IDS, attention_mask=MASK).logits)


@pytest.mark.parametrize("name", FUSIONS)
def test_a_span_catches_up_from_its_state(store: BlockStore, name: str) -> None:
    trunk, experts = FUSIONS[name]
    model = fuse(store, experts, WITH_GAPS, trunk=trunk)
    with torch.no_grad():
        whole = model(IDS, attention_mask=MASK)
    counts = whole.processed
    assert bool((counts > 0).all())
    assert bool((counts < int(MASK.sum())).any())  # some tokens were never processed by some span
    for steps in ([6] + [1] * 8, [1] * 14, [4, 5, 5]):
        logits, cache = stepwise(model, MASK, steps)
        assert_close(logits[MASK.bool()], whole.logits[MASK.bool()])
        held = cache.num_cached_tokens()
        assert [held[key] for key in model.spans] == counts.tolist()


@pytest.mark.parametrize("name", FUSIONS)
@pytest.mark.parametrize("how", ["soft", "hard"])
def test_padding_anywhere_changes_nothing(store: BlockStore, name: str, how: str) -> None:
    trunk, experts = FUSIONS[name]
    model = fuse(store, experts, trunk=trunk)
    model.set_routing(how)
    mask = torch.ones_like(IDS)
    mask[0, 5:7], mask[1, -3:], mask[2, :2] = 0, 0, 0
    with torch.no_grad():
        padded = model(IDS, attention_mask=mask).logits
        for row in range(3):
            real = mask[row].bool()
            assert_close(padded[row, real], model(IDS[row : row + 1, real]).logits[0])
    logits, _ = stepwise(model, mask, [4, 2, 3] + [1] * 5)
    assert_close(logits[mask.bool()], padded[mask.bool()])


def test_a_cache_of_states_goes_on_with_other_rows(store: BlockStore) -> None:
    model = fuse(store, FUSIONS["a llama with two hybrids"][1], WITH_GAPS, trunk="llama")
    order = torch.tensor([2, 0, 2])
    with torch.no_grad():
        wanted = model(IDS[order], attention_mask=MASK[order]).logits
        cache = FusedCache()
        model(IDS[:, :9], attention_mask=MASK[:, :9], past_key_values=cache)
        cache.reorder_cache(order)
        found = model(IDS[order, 9:], attention_mask=MASK[order], past_key_values=cache).logits
    assert_close(found, wanted[:, 9:])
    with pytest.raises(ConfigError, match="cannot be shortened"):
        cache.crop(-1)


@pytest.mark.parametrize("name", ["bloom", "mpt"])
def test_biases_are_of_true_distances(store: BlockStore, name: str) -> None:
    """Tokens that a span has not processed leave gaps: its block must see what it sees of a full row, those hidden."""
    model = fuse(store, ["llama"], trunk=name, span=1, scatter=False)
    body: Any = model.experts[0].bodies[0]  # type: ignore[union-attr, index]
    block = body.base.get_submodule(body._blocks_path)[0]
    length, kept = 12, torch.tensor([1, 2, 6, 9, 11])
    heads = CONFIGS[name].n_head if name == "bloom" else CONFIGS[name].n_heads
    with torch.no_grad():
        states = body.entrance(IDS[:1, :length], torch.arange(length)[None])
        hidden = torch.ones(1, length, dtype=torch.bool)
        hidden[0, kept] = False
        unseen = hidden[:, None, None, :] | torch.ones(length, length, dtype=torch.bool).triu(1)
        if name == "bloom":
            bias = body.base.build_alibi_tensor(torch.ones(1, length), heads, torch.float32)
            names, mask = {"alibi": bias}, torch.zeros(1, 1, length, length).masked_fill(unseen, -1e9)
        else:
            names, mask = {"position_bias": body.base.build_mpt_alibi_tensor(heads, length)}, unseen
        hooks, block._forward_pre_hooks = block._forward_pre_hooks, {}
        wanted = block(states, attention_mask=mask, **names)[0][0, kept]
        block._forward_pre_hooks = hooks
        memory = SpanMemory()
        found = []
        for part in (kept[:2], kept[2:4], kept[4:]):  # as a cached decode goes on
            cache, valid = memory.load(body, torch.arange(1))
            new = torch.ones(1, len(part), dtype=torch.bool)
            whole = new if valid is None else torch.cat([valid, new], 1)
            inputs = IDS[:1, part] if body.front else states[:, part]
            found.append(body(inputs, whole, part[None], cache))
            memory.store(cache, whole, torch.arange(1), 1)
    assert_close(torch.cat(found, 1)[0], wanted)


@pytest.mark.parametrize("name", ["llama", "qwen3_next", "lfm2"])
def test_cache_layers_are_told_apart_as_older_releases_of_transformers_say_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have one mapping for all layers, where newer ones have a mapping for each."""
    config = CONFIGS[name]
    blocks = config.num_hidden_layers
    wanted, _ = span_cache.layer_makers(config, blocks, 1, blocks)
    kinds, _ = span_cache.get_layer_types_and_kwargs(config)
    monkeypatch.setattr(span_cache, "get_layer_types_and_kwargs", lambda _: (kinds, {"number_of_states": 1}))
    found, before = span_cache.layer_makers(config, blocks, 1, blocks)
    assert before == 1
    assert [type(make()) for make in found] == [type(make()) for make in wanted]
