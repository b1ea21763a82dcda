"""Encoder and decoder: two BARTs are taken apart, and a third is put together of blocks of both.

    python examples/families/encoder_decoder.py OUT

The store keeps the blocks of the decoder; the encoder is among its edges. Put together of its own blocks a model is
what it was, to the bit. The mixture, whose second block is the sister's, learns to write rows of tokens backwards.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tiny_models import put_together, sister_of, write_model
from transformers import BartConfig, BartForConditionalGeneration

from mango.blocks import extract, inspect_model
from mango.checkpoints import ModelSource

STEPS = 30


def main(out: Path) -> dict[str, float]:
    """Extract, put together, train and generate; return the first and the last loss."""
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=64, d_model=48, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=96, decoder_ffn_dim=96, max_position_embeddings=32,
    )  # fmt: skip
    bart = BartForConditionalGeneration(config).eval()
    folders = {
        "bart": write_model(bart, out / "bart"),
        "sister": write_model(sister_of(bart, seed=1), out / "sister"),
    }
    found = inspect_model(ModelSource(source=str(folders["bart"])))
    print({stack.role: stack.num_blocks for stack in found.components.stacks})
    sources = {name: ModelSource(source=str(folder)) for name, folder in folders.items()}
    store = extract(sources, out / "blocks", "reference")

    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(4, 64, (16, 6), generator=generator)
    labels = ids.flip(1)
    whole = put_together(store, "bart")
    with torch.no_grad():
        assert whole(input_ids=ids, labels=labels).logits.equal(bart(input_ids=ids, labels=labels).logits)

    mixture = put_together(store, "bart", {1: "sister"})
    optimizer = torch.optim.AdamW(mixture.parameters(), lr=3e-3)
    losses = []
    for _ in range(STEPS):
        loss = mixture(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    mixture.save_pretrained(out / "mixture")
    opened = BartForConditionalGeneration.from_pretrained(out / "mixture").eval()
    tokens = [opened.generate(ids[:1], max_new_tokens=6, do_sample=False, use_cache=cache) for cache in (True, False)]
    assert tokens[0].equal(tokens[1])
    first, last = sum(losses[:4]) / 4, sum(losses[-4:]) / 4
    print(f"loss {first:.3f} at first, {last:.3f} at last")
    return {"first": first, "last": last}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
