"""Sequences that switch domain: the text on which fusing experts must pay."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from mango.corpus.sequences import Sequences
from mango.errors import DataError


def switching(
    packed: Mapping[str, Sequences], *, segment_length: int, max_sequences: int | None = None, seed: int
) -> Sequences:
    """Put together sequences that change to another domain every `segment_length` tokens.

    Each packed sequence is cut into segments, and no segment is used twice. A sequence runs through the domains in
    random order again and again, so that every domain has its share and two neighbours always differ.

    Args:
        packed: the sequences of each domain, from `pack`.
        segment_length: tokens between two switches; the last segment of a sequence is shorter where it does not divide
            the sequence's length.
        max_sequences: at most so many sequences; without, as many as the segments of the domains allow.
        seed: seed of the order and the choice.

    Returns:
        The sequences, as long as those in `packed`.

    Raises:
        DataError: fewer than two domains, a segment so long that no sequence switches, domains that differ in sequence
            length, or too little text for one sequence.
    """
    if len(packed) < 2:
        raise DataError(f"text that switches domain needs at least 2 domains, found {len(packed)}")
    first = next(iter(packed.values()))
    length, domains = first.sequence_length, first.domains
    for domain, sequences in packed.items():
        if sequences.sequence_length != length or sequences.domains != domains:
            raise DataError(f"domain {domain!r} was packed otherwise than the rest; pack all domains in one call")
    if not 1 <= segment_length < length:
        raise DataError(
            f"segment_length={segment_length} leaves no switch in sequences of {length} tokens; "
            f"it must be from 1 to {length - 1}"
        )
    if max_sequences is not None and max_sequences < 1:
        raise DataError(f"max_sequences is {max_sequences}; it must be at least 1")
    generator = np.random.default_rng([seed, *b"switching"])
    per_row = length // segment_length
    pools = {domain: _shuffled_segments(packed[domain], segment_length, generator) for domain in sorted(packed)}
    rows: list[list[tuple[str, int]]] = []
    used = dict.fromkeys(pools, 0)
    while max_sequences is None or len(rows) < max_sequences:
        order = _order(sorted(pools), per_row + (length % segment_length > 0), generator)
        if any(used[domain] + order.count(domain) > len(pools[domain]) for domain in pools):
            break
        row = []
        for domain in order:
            row.append((domain, int(pools[domain][used[domain]])))
            used[domain] += 1
        rows.append(row)
    if not rows:
        raise DataError(f"too little text for one sequence of {length} tokens that switches every {segment_length}")
    parts = {
        name: torch.stack([_join(packed, row, name, segment_length)[:length] for row in rows])
        for name in ("input_ids", "domain_ids", "num_bytes")
    }
    return Sequences(parts["input_ids"], parts["domain_ids"], parts["num_bytes"], domains)


def _shuffled_segments(sequences: Sequences, segment_length: int, generator: np.random.Generator) -> list[int]:
    """Return the positions in the flattened sequences where a whole segment starts, shuffled."""
    per_row = sequences.sequence_length // segment_length
    starts = (
        np.arange(len(sequences))[:, None] * sequences.sequence_length + np.arange(per_row)[None, :] * segment_length
    )
    shuffled: list[int] = generator.permutation(starts.ravel()).tolist()
    return shuffled


def _order(domains: list[str], segments: int, generator: np.random.Generator) -> list[str]:
    """Return a domain for each segment: permutations of all domains, one after another, neighbours never equal."""
    order: list[str] = []
    while len(order) < segments:
        turn = [domains[i] for i in generator.permutation(len(domains))]
        if order and order[-1] == turn[0]:
            turn = [*turn[1:], turn[0]]
        order += turn
    return order[:segments]


def _join(packed: Mapping[str, Sequences], row: list[tuple[str, int]], name: str, segment: int) -> torch.Tensor:
    return torch.cat([getattr(packed[domain], name).reshape(-1)[start : start + segment] for domain, start in row])
