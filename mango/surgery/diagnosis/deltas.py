"""What models changed in one tensor, and how their changes lie to each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mango.errors import MergeError
from mango.tensors.pieces import pieces
from mango.tensors.svd import leading_svd

SPECTRUM = 16
"""Singular values that are measured of each difference."""


@dataclass(frozen=True)
class Spectrum:
    """The singular values of one difference.

    Attributes:
        values: the largest ones over the Frobenius norm of the whole, so that their squares are shares of it.
        stable_rank: squared norm over the squared largest singular value: 1 for a difference of rank one.
        left: their left vectors ``[rows, count]``, for the overlap of two models; not kept in reports.
    """

    values: tuple[float, ...]
    stable_rank: float
    left: Tensor


@dataclass(frozen=True)
class TensorMeasure:
    """One tensor over all models.

    Attributes:
        name: its name in the models.
        block: index of its block, or -1.
        part: ``attention``, ``feed-forward``, ``norm``, ``embedding``, ``head`` or ``other``.
        num_elements: its size.
        num_rows: extent of its first side.
        largest_rank: the rank that it could have; 1 for a vector.
        base_square: squared norm of the base's tensor; 0 without a base.
        gram: scalar products of the models' differences (of their weights, without a base), float64
            ``[models, models]``.
        influential: elements in which at least two models changed more than their own root mean square.
        conflicts: those of them in which the signs differ.
        sum_of_sizes: sum over elements and models of ``|difference|``.
        size_of_sums: sum over elements of ``|sum of differences|``.
        spectra: of each model's difference; empty for tensors that are no matrices, None for no difference.
        overlaps: share of the leading left directions that two models have in common, by pair, in order.
    """

    name: str
    block: int
    part: str
    num_elements: int
    num_rows: int
    largest_rank: int
    base_square: float
    gram: Tensor
    influential: int
    conflicts: int
    sum_of_sizes: float
    size_of_sums: float
    spectra: tuple[Spectrum | None, ...]
    overlaps: tuple[float, ...]


def measure_tensor(
    name: str, block: int, part: str, tensors: Sequence[Tensor], base: Tensor | None, *, seed: int
) -> TensorMeasure:
    """Measure one tensor of all models, in pieces; only spectra need a whole difference at a time.

    Args:
        name: the tensor's name.
        block: index of its block, or -1.
        part: what it is a part of.
        tensors: the models' tensors, of one shape.
        base: what they are compared with, or None.
        seed: of the random sketches.

    Raises:
        MergeError: a difference is not finite.
    """
    count = len(tensors)
    gram = torch.zeros(count, count, dtype=torch.float64)
    base_square = 0.0
    for changes, reference in _differences(tensors, base):
        gram += changes @ changes.T
        base_square += 0.0 if reference is None else float(reference.square().sum())
    if not bool(torch.isfinite(gram).all()):
        raise MergeError(f"{name}: a model holds NaN or infinity there")
    scale = (gram.diagonal() / max(tensors[0].numel(), 1)).sqrt()
    influential = conflicts = 0
    sum_of_sizes = size_of_sums = 0.0
    if count > 1:
        for changes, _ in _differences(tensors, base):
            large = (changes.abs() > scale.unsqueeze(1)) & (scale > 0).unsqueeze(1)
            positive, negative = (large & (changes > 0)).sum(0), (large & (changes < 0)).sum(0)
            influential += int((positive + negative >= 2).sum())
            conflicts += int(((positive > 0) & (negative > 0)).sum())
            sum_of_sizes += float(changes.abs().sum())
            size_of_sums += float(changes.sum(0).abs().sum())
    shape = tuple(tensors[0].shape)
    spectra = tuple(_spectra(tensors, base, gram, seed)) if len(shape) == 2 and min(shape) > 1 else ()
    return TensorMeasure(
        name=name,
        block=block,
        part=part,
        num_elements=tensors[0].numel(),
        num_rows=shape[0] if shape else 1,
        largest_rank=min(shape) if len(shape) == 2 else 1,
        base_square=base_square,
        gram=gram,
        influential=influential,
        conflicts=conflicts,
        sum_of_sizes=sum_of_sizes,
        size_of_sums=size_of_sums,
        spectra=tuple(None if s is None else Spectrum(s.values, s.stable_rank, torch.empty(0)) for s in spectra),
        overlaps=_overlaps(spectra),
    )


def _differences(tensors: Sequence[Tensor], base: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    for parts in pieces([*tensors, *([] if base is None else [base])]):
        reference = None if base is None else parts.pop().double()
        stacked = torch.stack([part.double() for part in parts])
        yield (stacked if reference is None else stacked - reference), reference


def _spectra(tensors: Sequence[Tensor], base: Tensor | None, gram: Tensor, seed: int) -> Iterator[Spectrum | None]:
    for index, tensor in enumerate(tensors):
        square = float(gram[index, index])
        if square == 0.0:
            yield None
            continue
        difference = tensor.float() if base is None else tensor.float() - base.float()
        found = leading_svd(difference, SPECTRUM, seed=seed, passes=2)
        top = float(found.values[0].square())
        yield Spectrum(tuple((found.values / square**0.5).tolist()), square / top, found.left)


def _overlaps(spectra: Sequence[Spectrum | None]) -> tuple[float, ...]:
    found = []
    for i, first in enumerate(spectra):
        for second in spectra[i + 1 :]:
            if first is None or second is None:
                found.append(0.0)
            else:
                shared = first.left.double().T @ second.left.double()
                found.append(float(shared.square().sum()) / shared.shape[0])
    return tuple(found)
