"""A diagnosis: what was measured, summed up over blocks and models."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import torch

from mango.surgery.diagnosis.deltas import TensorMeasure
from mango.surgery.diagnosis.findings import Finding

PARTS = ("attention", "feed-forward", "norm", "embedding", "head", "other")


@dataclass(frozen=True)
class Summary:
    """Several tensors taken together.

    Attributes:
        num_elements: their size.
        relative_norms: norm of each model's difference over the norm of the base; without a base, the models' norms.
        cosines: cosine of two models' differences, by pair; None where one is zero.
        conflict: of the elements that at least two models changed much, the share in which their signs differ.
        cancelled: share of the size of all differences that cancels in their sum.
    """

    num_elements: int
    relative_norms: tuple[float, ...]
    cosines: tuple[float | None, ...]
    conflict: float | None
    cancelled: float | None

    @classmethod
    def of(cls, tensors: Sequence[TensorMeasure], num_models: int) -> Summary:
        """Sum up some tensors."""
        gram = sum((t.gram for t in tensors), torch.zeros(num_models, num_models, dtype=torch.float64))
        base = math.fsum(t.base_square for t in tensors)
        norms = gram.diagonal().sqrt().tolist()
        influential = sum(t.influential for t in tensors)
        size = math.fsum(t.sum_of_sizes for t in tensors)
        return cls(
            num_elements=sum(t.num_elements for t in tensors),
            relative_norms=tuple(norm / math.sqrt(base) if base else norm for norm in norms),
            cosines=tuple(
                float(gram[i, j]) / (norms[i] * norms[j]) if norms[i] and norms[j] else None
                for i, j in combinations(range(num_models), 2)
            ),
            conflict=sum(t.conflicts for t in tensors) / influential if influential else None,
            cancelled=1.0 - math.fsum(t.size_of_sums for t in tensors) / size if size else None,
        )


@dataclass(frozen=True)
class SpectrumSummary:
    """One model's differences in all matrices, each counted by its squared norm.

    Attributes:
        top_share: share of the squared norm that the leading singular values hold.
        stable_rank: mean stable rank.
        largest_rank: mean of the largest rank that the matrices could have, to compare with.
        curve: mean of the singular values over the norm, largest first.
    """

    top_share: float
    stable_rank: float
    largest_rank: float
    curve: tuple[float, ...]


@dataclass(frozen=True)
class Diagnosis:
    """How models differ.

    Attributes:
        models: their references.
        base: what they are compared with, or None.
        architecture: their class.
        whole: all tensors together.
        blocks: each block.
        parts: each part of each block, by ``(block, part)``.
        tensors: each tensor.
        spectra: of each model's differences; None for a model without any.
        overlap: mean share of the leading directions that two models have in common, by pair.
        overlap_by_chance: what it would be for random directions.
        cka: for each block, the alignment of two models' states by pair, the base first where there is one; empty
            without text.
        cka_models: whose states those are.
        num_tokens: tokens that they were measured on.
        skipped: tensors that cannot be compared, each with the reason.
        findings: what follows from the figures.
        notes: what was not measured, and why.
    """

    models: tuple[str, ...]
    base: str | None
    architecture: str
    whole: Summary
    blocks: tuple[Summary, ...]
    parts: dict[tuple[int, str], Summary]
    tensors: tuple[TensorMeasure, ...]
    spectra: tuple[SpectrumSummary | None, ...]
    overlap: tuple[float, ...]
    overlap_by_chance: float
    cka: tuple[tuple[float, ...], ...]
    cka_models: tuple[str, ...]
    num_tokens: int
    skipped: tuple[tuple[str, str], ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The pairs of models, in the order of all figures by pair."""
        return list(combinations(self.models, 2))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        return {
            "models": list(self.models),
            "base": self.base,
            "architecture": self.architecture,
            "pairs": [list(pair) for pair in self.pairs],
            "whole": asdict(self.whole),
            "blocks": [asdict(block) for block in self.blocks],
            "parts": [{"block": block, "part": part, **asdict(found)} for (block, part), found in self.parts.items()],
            "tensors": [_tensor(tensor, len(self.models)) for tensor in self.tensors],
            "spectra": [None if s is None else asdict(s) for s in self.spectra],
            "overlap": list(self.overlap),
            "overlap_by_chance": self.overlap_by_chance,
            "cka": {
                "models": list(self.cka_models),
                "pairs": [list(pair) for pair in combinations(self.cka_models, 2)],
                "blocks": [list(block) for block in self.cka],
                "num_tokens": self.num_tokens,
            },
            "skipped": [{"name": name, "reason": reason} for name, reason in self.skipped],
            "findings": [asdict(finding) for finding in self.findings],
            "notes": list(self.notes),
        }


def _tensor(tensor: TensorMeasure, num_models: int) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "block": tensor.block,
        "part": tensor.part,
        **asdict(Summary.of([tensor], num_models)),
        "spectra": [
            None if s is None else {"values": list(s.values), "stable_rank": s.stable_rank} for s in tensor.spectra
        ],
        "overlaps": list(tensor.overlaps),
    }


def summarise_spectra(tensors: Iterable[TensorMeasure], model: int) -> SpectrumSummary | None:
    """Return one model's spectra in all matrices, each counted by its squared norm; None where there is none."""
    weight = share = rank = largest = 0.0
    curve: list[float] = []
    for tensor in tensors:
        if not tensor.spectra or (found := tensor.spectra[model]) is None:
            continue
        own = float(tensor.gram[model, model])
        weight += own
        share += own * sum(value**2 for value in found.values)
        rank += own * found.stable_rank
        largest += own * tensor.largest_rank
        curve += [0.0] * (len(found.values) - len(curve))
        for place, value in enumerate(found.values):
            curve[place] += own * value
    if not weight:
        return None
    return SpectrumSummary(share / weight, rank / weight, largest / weight, tuple(value / weight for value in curve))
