"""What fusing experts of text did to a model's ability on images: its loss on texts given their images."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mango import console
from mango.blocks import load_source
from mango.checkpoints import open_model
from mango.corpus.params import CorpusParams
from mango.corpus.pictures import Pair, PairReader, open_pairs
from mango.errors import ConfigError
from mango.evaluation.metrics import ratio
from mango.evaluation.routing import RoutingTotals
from mango.evaluation.subjects import Subjects
from mango.fusion import MolForImageTextToText


def evaluate_pictures(
    subjects: Subjects, corpus: CorpusParams, trunk: str, *, device: torch.device
) -> dict[str, Any] | None:
    """Measure trunk and fused model on pairs of image and text; None where there are no pairs.

    Args:
        subjects: where models lie.
        corpus: names the pairs.
        trunk: name of the model that reads images.
        device: where models run.

    Raises:
        DataError: pairs or processor are wrong.
        EvaluationError: a model gives no finite loss.
    """
    if corpus.images.path is None:
        return None
    pairs, reader = open_pairs(corpus.images, subjects.store.tokenizer_folder(trunk))
    systems = [_measured("trunk", load_source(subjects.store, trunk, device=device), pairs, reader, device)]
    for mode in ("soft", "hard"):
        model = open_model(subjects.fused)
        assert isinstance(model, MolForImageTextToText)
        nn.Module.to(model, device)
        model.set_routing(mode)
        try:
            systems.append(_measured(f"fused_{mode}", model, pairs, reader, device))
        except ConfigError as error:  # a trunk whose image tokens see each other runs softly alone
            console.note(f"fused_{mode} is not measured on images: {error}")
    return {"pairs": len(pairs), "text_bytes": sum(len(pair.text.encode()) for pair in pairs), "systems": systems}


def _measured(
    name: str, model: nn.Module, pairs: list[Pair], reader: PairReader, device: torch.device
) -> dict[str, Any]:
    totals = RoutingTotals(model) if isinstance(model, MolForImageTextToText) else None
    sizes = torch.tensor([float(len(pair.text.encode())) for pair in pairs])
    own = torch.tensor([_bits(model, reader, pair, pair, device, totals) for pair in pairs], dtype=torch.float64)
    cost = 1.0 if totals is None else totals.cost()
    others = [*pairs[1:], pairs[0]]
    strange = torch.tensor(
        [_bits(model, reader, other, pair, device, None) for pair, other in zip(pairs, others, strict=True)],
        dtype=torch.float64,
    )
    found, other = ratio(own, sizes), ratio(strange, sizes)
    console.note(
        f"{name}: {found.value:.3f} bits per byte of texts given their images, {other.value:.3f} given others'"
    )
    return {"system": name, "own_image": found.value, "own_image_se": found.error, "other_image": other.value,
            "other_image_se": other.error, "cost": cost}  # fmt: skip


@torch.no_grad()
def _bits(
    model: nn.Module,
    reader: PairReader,
    image: Pair,
    text: Pair,
    device: torch.device,
    totals: RoutingTotals | None,
) -> float:
    """Return the bits of a text's tokens given an image."""
    inputs, count = reader.read(image.image, text.text)
    given = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in inputs.items()}
    output = model(**given)
    if totals is not None:
        totals.add(output, given["input_ids"].numel())
    logits, targets = output.logits[0, -count - 1 : -1].float(), given["input_ids"][0, -count:]
    return float(cross_entropy(logits, targets, reduction="sum")) / math.log(2)
