"""Decoder-only: a llama and a GPT-2 become one causal language model that learns which of them to ask.

    python examples/families/decoder.py OUT

The two tiny models of models/tiny share a tokenizer and differ in everything else. Their blocks are extracted by
reference, fused, adapters and routers trained for a few steps, and the result saved, opened and asked to go on with
text, with a cache and without.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mango.blocks import extract
from mango.checkpoints import ModelSource
from mango.corpus import CorpusParams, read_split
from mango.fusion import AdapterParams, FusionParams, RouterParams, build_fused

ROOT = Path(__file__).parents[2]
STEPS, BATCH, LENGTH = 20, 4, 64


def main(out: Path) -> dict[str, float]:
    """Fuse, train, save, open and generate; return the first and the last loss."""
    tiny = ROOT / "models" / "tiny"
    sources = {name: ModelSource(source=str(tiny / name)) for name in ("base", "maths-gpt2")}
    store = extract(sources, out / "blocks", "reference")
    fusion = FusionParams.model_validate({"trunk": "base", "experts": ["maths-gpt2"]})
    router = RouterParams.model_validate({"type": "token", "token": {"window": 16}})
    model = build_fused(store, fusion, router, AdapterParams(type="linear"), seed=0)

    tokenizer = AutoTokenizer.from_pretrained(tiny / "base")
    corpus = read_split(CorpusParams(path=ROOT / "data" / "corpus"), "train")
    texts = [text[:1000] for text in corpus["text"][:64] if len(text) > 1000]
    ids = tokenizer(texts, return_tensors="pt", truncation=True, max_length=LENGTH).input_ids
    batches = ids[: 4 * BATCH].view(4, BATCH, LENGTH)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    model.train()
    losses = []
    for step in range(STEPS):
        batch = batches[step % 4]  # the same few, so that twenty steps show
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval().save_pretrained(out / "fused")

    opened = AutoModelForCausalLM.from_pretrained(out / "fused")
    prompt = batches[0][:1, :8]
    with_cache = opened.generate(prompt, max_new_tokens=12, do_sample=False)
    without = opened.generate(prompt, max_new_tokens=12, do_sample=False, use_cache=False)
    assert with_cache.equal(without)
    print(tokenizer.decode(with_cache[0]))
    first, last = sum(losses[:4]) / 4, sum(losses[-4:]) / 4
    print(f"loss {first:.3f} at first, {last:.3f} at last")
    return {"first": first, "last": last}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
