"""Controls: what the same training gains without any other model."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from transformers import PreTrainedModel

from mango import console
from mango.checkpoints import saving
from mango.corpus import Sequences
from mango.fusion import ExpertParams, FusionParams, Layout, SpanParams
from mango.training.params import TrainParams


def self_stitch(fusion: FusionParams, layout: Layout) -> FusionParams:
    """Return the fusion with the trunk's own spans as every expert, cut as the real ones are.

    An expert's spans become the trunk's blocks between the same cuts.

    Args:
        fusion: what is fused.
        layout: its layout.
    """
    experts = tuple(
        ExpertParams(
            model=fusion.trunk,
            cut=tuple(
                SpanParams(enter=span.enter, exit=span.exit, blocks=(layout.cuts[span.enter], layout.cuts[span.exit]))
                for span in expert.spans
            ),
            edges="own" if expert.own_edges else "trunk",
        )
        for expert in layout.experts[1:]
    )
    return fusion.model_copy(update={"experts": experts})


def continue_trunk(
    trunk: PreTrainedModel, sequences: Sequences, train: TrainParams, *, device: torch.device | str
) -> PreTrainedModel:
    """Train all weights of the trunk on the sequences that the fused model was trained on, once and in the same order.

    Args:
        trunk: the trunk; it changes in place.
        sequences: training sequences.
        train: batch size, warm-up, clipping and the trunk's learning rate.
        device: where to train.
    """
    trunk.to(device)  # type: ignore[arg-type]
    trunk.train(True)
    trunk.requires_grad_(True)
    rate = train.controls.trunk_learning_rate
    optimizer = torch.optim.AdamW(trunk.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1)
    batches = sequences.input_ids.split(train.batch_size * train.accumulation)
    warmup = max(1, round(train.warmup * len(batches)))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, len(batches) - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for batch in console.progress(batches, "continued trunk", len(batches)):
        for ids in batch.split(train.batch_size):
            ids = ids.to(device)
            loss = trunk(input_ids=ids, labels=ids).loss * (len(ids) / len(batch))
            loss.backward()
        torch.nn.utils.clip_grad_norm_(trunk.parameters(), train.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
    trunk.train(False)
    return trunk


def save_ordinary(model: PreTrainedModel, folder: Path) -> None:
    """Save a model as an ordinary checkpoint."""
    with saving(folder):
        model.save_pretrained(folder)
