"""Feature matching: adapters learn to say in one model's states what the other's are, before any other loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mango.fusion import Adapter, MolPreTrainedModel
from mango.surgery.vocabulary import Retokeniser
from mango.training.calibration import recorded_states
from mango.training.params import StartParams


@dataclass(frozen=True)
class Place:
    """Where an adapter stands.

    Args:
        name: ``expert/span/in`` or ``.../out``.
        adapter: the adapter.
        trunk_block: block of the trunk whose incoming states are on its trunk's side.
        source_block: block of the expert's model whose incoming states are on the other side.
        into: whether it leads into the expert.
    """

    name: str
    adapter: Adapter
    trunk_block: int
    source_block: int
    into: bool


def paired_states(
    found: Sequence[Place],
    trunk: PreTrainedModel,
    source: PreTrainedModel,
    batch: Mapping[str, Tensor],
    reader: Retokeniser | None,
) -> list[tuple[Tensor, Tensor]]:
    """Run both models on the same text; return what enters each adapter and what should leave it, ``[tokens, width]``.

    Args:
        found: where the adapters stand.
        trunk: the trunk.
        source: the expert's model.
        batch: inputs of the trunk, without padding.
        reader: reads them in the expert's own tokens, where those are others; tokens that end at the same byte are
            paired.
    """
    device = next(trunk.parameters()).device
    inputs = {name: value.to(device) for name, value in batch.items()}
    read = None if reader is None else reader.read(inputs["input_ids"])
    with (
        torch.no_grad(),
        recorded_states(trunk, [place.trunk_block for place in found]) as ours,
        recorded_states(source, [place.source_block for place in found]) as theirs,
    ):
        trunk(**inputs)
        source(**(inputs if read is None else {"input_ids": read.input_ids.to(device)}))
    out: list[tuple[Tensor, Tensor]] = []
    for place in found:
        x, y = ours[place.trunk_block], theirs[place.source_block]
        if read is None:
            x, y = x.flatten(0, 1), y.flatten(0, 1)
        else:
            row, mine, other = read.pairs.to(device).unbind(1)
            x, y = x[row, mine], y[row, other]
        out.append((x, y) if place.into else (y, x))
    return out


def places(model: MolPreTrainedModel, number: int) -> list[Place]:
    """Return where the adapters of an expert stand.

    Args:
        model: the fused model.
        number: of the expert.
    """
    layout = model.layout
    expert, parts = layout.experts[number], model.experts[number]
    found: list[Place] = []
    for index, span in enumerate(expert.spans):
        for kind in ("in", "out"):
            adapters: Any = parts.inputs if kind == "in" else parts.outputs
            adapter = dict(adapters.items()).get(str(index))
            if isinstance(adapter, Adapter):
                into = kind == "in"
                ours = layout.cuts[span.enter if into else span.exit]
                theirs = span.start if into else span.stop
                found.append(Place(f"{expert.name}/{index}/{kind}", adapter, ours, theirs, into))
    return found


def match_features(
    found: Sequence[Place],
    trunk: PreTrainedModel,
    source: PreTrainedModel,
    batches: Sequence[Mapping[str, Tensor]],
    params: StartParams,
    reader: Retokeniser | None = None,
) -> dict[str, float]:
    """Train the adapters of one expert on paired states; return R squared of each over the calibration text.

    Each adapter minimises the mean square of what it misses, over the variance of what it should say. One that misses
    more than before over the whole text goes back to where it was, so matching makes none worse. Where an adapter ends
    is its start: ``train.losses.adapter`` pulls whole affine maps back to it.

    Args:
        found: where the adapters stand; they change in place.
        trunk: the trunk.
        source: the expert's model.
        batches: what both are run on, without padding; each step takes the next one.
        params: steps and learning rate.
        reader: reads text in the expert's own tokens, where those are others.

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets" (1412.6550), eq. 3, with a relative error.
    """

    def pairs(batch: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        return [(x.float(), y.float()) for x, y in paired_states(found, trunk, source, batch, reader)]

    def missed(place: Place, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, y = pair
        return (place.adapter(x) - y).square().sum(), (y - y.mean(0)).square().sum()

    def fits() -> list[float]:
        errors = torch.zeros(len(found), 2, dtype=torch.float64)
        with torch.no_grad():
            for batch in batches:
                for row, (place, pair) in enumerate(zip(found, pairs(batch), strict=True)):
                    errors[row] += torch.stack(missed(place, pair)).double().cpu()
        return [1 - float(error / spread) for error, spread in errors]

    before = fits()
    kept = [{name: value.clone() for name, value in place.adapter.state_dict().items()} for place in found]
    weights = [parameter for place in found for parameter in place.adapter.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=params.matching_learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, params.matching_steps)
    with torch.enable_grad():
        for step in range(params.matching_steps):
            each = [
                missed(place, pair)
                for place, pair in zip(found, pairs(batches[step % len(batches)]), strict=True)
            ]  # fmt: skip
            loss = torch.stack([error / spread.clamp(min=1e-12) for error, spread in each]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    after = fits()
    for row, place in enumerate(found):
        if not after[row] > before[row]:  # or no number
            place.adapter.load_state_dict(kept[row])
            after[row] = before[row]
        place.adapter.keep_start()
    return {place.name: round(fit, 4) for place, fit in zip(found, after, strict=True)}
