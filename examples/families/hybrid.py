"""Hybrids: a llama, a Qwen3-Next and an LFM2 become one causal language model.

    python examples/families/hybrid.py OUT

Most blocks of the last two keep no keys of every token but a state that each token changes: linear attention in
Qwen3-Next, short convolutions in LFM2. A router takes one expert for each token, and an expert that is entered again
goes on from its state with the tokens that it catches up on. The models are tiny and random; the fused one is trained
for a few steps on one pattern of tokens, saved, opened, and goes on with it, with a cache as without.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tiny_models import write_model
from transformers import AutoModelForCausalLM, Lfm2Config, LlamaConfig, Qwen3NextConfig

from mango.blocks import extract
from mango.checkpoints import ModelSource
from mango.fusion import AdapterParams, FusionParams, RouterParams, build_fused

VOCAB, STEPS, ROWS, LENGTH = 64, 20, 4, 24
SIZES = {
    "vocab_size": VOCAB, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0,
    "bos_token_id": None, "eos_token_id": None, "initializer_range": 0.1,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SIZES, hidden_size=48, num_hidden_layers=2),
    "qwen3_next": Qwen3NextConfig(
        **SIZES, hidden_size=32, num_hidden_layers=4, head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4,
        linear_key_head_dim=8, linear_value_head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
        shared_expert_intermediate_size=32, layer_types=["linear_attention"] * 3 + ["full_attention"],
    ),
    "lfm2": Lfm2Config(**SIZES, hidden_size=40, num_hidden_layers=3, layer_types=["conv", "conv", "full_attention"]),
}  # fmt: skip


def main(out: Path) -> dict[str, float]:
    """Fuse, train, save, open and generate; return the first and the last loss."""
    sources = {}
    for seed, (name, config) in enumerate(CONFIGS.items()):
        torch.manual_seed(seed)
        folder = write_model(AutoModelForCausalLM.from_config(config), out / name, tokens=VOCAB)
        sources[name] = ModelSource(source=str(folder))
    store = extract(sources, out / "blocks", "reference")
    fusion = FusionParams.model_validate({"trunk": "llama", "experts": ["qwen3_next", "lfm2"]})
    router = RouterParams.model_validate({"type": "topk", "topk": {"window": 2, "catch_up": 4}})
    model = build_fused(store, fusion, router, AdapterParams(type="linear"), seed=0)
    generator = torch.Generator().manual_seed(3)
    for each in model.iter_routers():  # a random start, so that every expert is chosen somewhere
        with torch.no_grad():
            each.outer.weight.copy_(torch.randn(each.outer.weight.shape, generator=generator))

    starts = torch.randint(2, VOCAB, (ROWS, 6), generator=generator)
    ids = starts.repeat(1, LENGTH // 6)
    print("tokens that each span processed:", dict(zip(model.spans, model(ids).processed.tolist(), strict=True)))
    model.set_routing("soft")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-2)
    model.train()
    losses = []
    for _ in range(STEPS):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval().save_pretrained(out / "fused")

    opened = AutoModelForCausalLM.from_pretrained(out / "fused")
    for how in ("soft", "hard"):
        opened.set_routing(how)
        with_cache = opened.generate(ids[:, :8], max_new_tokens=10, do_sample=False)
        without = opened.generate(ids[:, :8], max_new_tokens=10, do_sample=False, use_cache=False)
        assert with_cache.equal(without)
    first, last = sum(losses[:4]) / 4, sum(losses[-4:]) / 4
    print(f"loss {first:.3f} at first, {last:.3f} at last")
    return {"first": first, "last": last}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
