"""Controls: what the same training gains without any other model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, set_seed

from mango import console
from mango.checkpoints import saving
from mango.corpus import Sequences
from mango.fusion import ExpertParams, FusionParams, Layout, SpanParams
from mango.training.checkpoints import latest_checkpoint, new_checkpoint, step_of
from mango.training.params import TrainParams
from mango.training.state import load_state, save_state


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


@dataclass(frozen=True)
class ResumedTrunk:
    """Where the training of the trunk keeps its checkpoints.

    Args:
        folder: the checkpoints.
        fingerprint: of everything that the training depends on.
    """

    folder: Path
    fingerprint: str


def continue_trunk(
    trunk: PreTrainedModel,
    sequences: Sequences,
    train: TrainParams,
    *,
    device: torch.device | str,
    seed: int,
    resume: ResumedTrunk | None = None,
) -> PreTrainedModel:
    """Train all weights of the trunk on the sequences that the fused model was trained on, once and in the same order.

    Args:
        trunk: the trunk; it changes in place.
        sequences: training sequences.
        train: batch size, warm-up, clipping and the trunk's learning rate.
        device: where to train.
        seed: of dropout, where the trunk has it.
        resume: where checkpoints are kept every ``train.save_every`` steps and resumed from; none without.
    """
    set_seed(seed % 2**32)
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

    done = 0
    if resume is not None:
        checkpoint = latest_checkpoint(resume.folder, resume.fingerprint)
        if checkpoint is not None:
            console.note(f"continued trunk: resuming from step {step_of(checkpoint)} ({checkpoint.as_posix()})")
            done = load_state(checkpoint, trunk, optimizer)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor, last_epoch=done - 1)
    for batch in console.progress(batches[done:], "continued trunk", len(batches) - done):
        for ids in batch.split(train.batch_size):
            ids = ids.to(device)
            loss = trunk(input_ids=ids, labels=ids).loss * (len(ids) / len(batch))
            loss.backward()
        torch.nn.utils.clip_grad_norm_(trunk.parameters(), train.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        done += 1
        if resume is not None and train.save_every and done % train.save_every == 0:
            with new_checkpoint(resume.folder, done, resume.fingerprint, {}) as new:
                save_state(new, done, trunk, optimizer)
    trunk.train(False)
    return trunk


def save_ordinary(model: PreTrainedModel, folder: Path) -> None:
    """Save a model as an ordinary checkpoint."""
    with saving(folder):
        model.save_pretrained(folder)
