"""Encoder-only: a BERT and a RoBERTa of other sizes become one masked language model.

    python examples/families/encoder.py OUT

Each is small and has learnt one language: the BERT that of the even tokens, the RoBERTa that of the odd ones. The fused
model meets both; its routers and adapters alone learn whom to ask.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tiny_models import write_model
from torch import Tensor
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from mango.blocks import extract
from mango.checkpoints import ModelSource
from mango.fusion import AdapterParams, FusionParams, RouterParams, build_fused

STEPS, LEARN, MASK = 20, 150, 3


def rows(count: int, odd: int, generator: torch.Generator) -> Tensor:
    """Return rows of a language: even tokens or odd ones."""
    return 4 + 2 * torch.randint(30, (count, 12), generator=generator) + odd


def train(
    model: PreTrainedModel, languages: list[int], count: int, rate: float, generator: torch.Generator
) -> list[float]:
    """Train what of a model is not frozen to fill gaps in these languages, and return the losses."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    model.train()
    losses = []
    for _ in range(count):
        ids = torch.cat([rows(16, odd, generator) for odd in languages])
        hidden = torch.rand(ids.shape, generator=generator) < 0.2
        loss = model(input_ids=ids.masked_fill(hidden, MASK), labels=ids.masked_fill(~hidden, -100)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def main(out: Path) -> dict[str, float]:
    """Fuse, train, save and open; return the first and the last loss."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
    bert = BertForMaskedLM(BertConfig(**sizes, hidden_size=48, intermediate_size=96, max_position_embeddings=32))
    roberta = RobertaForMaskedLM(
        RobertaConfig(**sizes, hidden_size=32, intermediate_size=64, max_position_embeddings=34)
    )
    generator = torch.Generator().manual_seed(1)
    train(bert, [0], LEARN, 5e-3, generator)
    train(roberta, [1], LEARN, 5e-3, generator)
    folders = {"bert": write_model(bert, out / "bert"), "roberta": write_model(roberta, out / "roberta")}
    sources = {name: ModelSource(source=str(folder)) for name, folder in folders.items()}
    store = extract(sources, out / "blocks", "reference")
    fusion = FusionParams.model_validate({"trunk": "bert", "experts": ["roberta"], "task": "masked-lm", "span": 1})
    router = RouterParams.model_validate({"type": "token", "token": {"window": 8}})
    model = build_fused(store, fusion, router, AdapterParams(type="linear"), seed=0)

    losses = train(model, [0, 1], STEPS, 1e-2, generator)
    model.save_pretrained(out / "fused")
    opened = AutoModelForMaskedLM.from_pretrained(out / "fused")
    probe = rows(2, 1, generator)
    assert opened(probe).logits.equal(model(probe).logits)
    first, last = sum(losses[:4]) / 4, sum(losses[-4:]) / 4
    print(f"loss {first:.3f} at first, {last:.3f} at last")
    return {"first": first, "last": last}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
