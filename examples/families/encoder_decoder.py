"""Encoder and decoder: a BART and a wider one become one model that writes rows of tokens backwards.

    python examples/families/encoder_decoder.py OUT

Each has learnt it for its own half of the vocabulary. The router reads the source text, and each expert has its own
encoder; what neither knows, the adapters learn.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tiny_models import write_model
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, BartConfig, BartForConditionalGeneration, PreTrainedModel

from mango.blocks import extract
from mango.checkpoints import ModelSource
from mango.fusion import AdapterParams, FusionParams, RouterParams, build_fused

STEPS, LEARN = 20, 60


def rows(count: int, odd: int, generator: torch.Generator) -> Tensor:
    """Return texts of even tokens or of odd ones."""
    return 4 + 2 * torch.randint(30, (count, 6), generator=generator) + odd


def train(
    model: PreTrainedModel, halves: list[int], count: int, rate: float, generator: torch.Generator
) -> list[float]:
    """Train what of a model is not frozen to write texts of these halves backwards, and return the losses."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    model.train()
    losses = []
    for _ in range(count):
        ids = torch.cat([rows(16, odd, generator) for odd in halves])
        loss = model(input_ids=ids, labels=ids.flip(1)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def main(out: Path) -> dict[str, float]:
    """Fuse, train, save, open and generate; return the first and the last loss."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(2)
    sources = {}
    for odd, (name, width) in enumerate({"bart": 48, "wide": 64}.items()):
        config = BartConfig(
            vocab_size=64, d_model=width, encoder_layers=1, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=96, decoder_ffn_dim=96, max_position_embeddings=32,
            forced_eos_token_id=None,
        )  # fmt: skip
        model = BartForConditionalGeneration(config)
        train(model, [odd], LEARN, 3e-3, generator)
        sources[name] = ModelSource(source=str(write_model(model, out / name)))
    store = extract(sources, out / "blocks", "reference")
    fusion = FusionParams.model_validate({"task": "seq2seq-lm", "trunk": "bart", "experts": ["wide"], "span": 1})
    router = RouterParams.model_validate({"type": "simple", "simple": {"prompt": 6}})
    fused = build_fused(store, fusion, router, AdapterParams(type="linear"), seed=0)

    losses = train(fused, [0, 1], STEPS, 1e-2, generator)
    fused.save_pretrained(out / "fused")
    opened = AutoModelForSeq2SeqLM.from_pretrained(out / "fused")
    ids = torch.cat([rows(1, 0, generator), rows(1, 1, generator)])
    written = [opened.generate(ids, max_new_tokens=6, do_sample=False, use_cache=cached) for cached in (True, False)]
    assert written[0].equal(written[1])
    first, last = sum(losses[:4]) / 4, sum(losses[-4:]) / 4
    print(f"loss {first:.3f} at first, {last:.3f} at last")
    return {"first": first, "last": last}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
