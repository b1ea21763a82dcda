"""Training sequences: pure ones of every domain, and ones that switch domain, in an order drawn from the seed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from mango.corpus import CorpusParams, Sequences, concatenate, pack, switching
from mango.errors import DataError


class TokenDataset(Dataset[dict[str, Tensor]]):
    """Token sequences as a model takes them; there is no padding, so every token is a label.

    Args:
        sequences: the sequences, in order.
        targets: for each token, what a router should choose, ``[sequences, length, ...]``; None without.
        best: for each token, the number of the source model that it learns from, ``[sequences, length]``; None without.
    """

    def __init__(self, sequences: Sequences, targets: Tensor | None = None, best: Tensor | None = None) -> None:
        self.sequences = sequences
        self.targets = targets
        self.best = best

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = self.sequences.input_ids[index]
        item = {"input_ids": ids, "labels": ids}
        if self.targets is not None:
            item["targets"] = self.targets[index]
        if self.best is not None:
            item["best"] = self.best[index]
        return item


def mixture(
    corpus: CorpusParams,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_sequences: int,
    switching_share: float,
    seed: int,
) -> Sequences:
    """Return sequences for training: the domains in turn, and a share that switches domain, shuffled.

    Args:
        corpus: the corpus.
        split: one of its splits.
        tokenizer: the shared tokenizer.
        num_sequences: how many.
        switching_share: share of them that switch domain.
        seed: of documents, segments and order.

    Raises:
        DataError: the split has too little text for one sequence a domain.
    """
    num_switching = round(num_sequences * switching_share)
    num_pure = num_sequences - num_switching
    packed = pack(corpus, split, tokenizer, seed=seed)
    parts: list[Sequences] = []
    if num_pure:
        parts.append(_pure(packed, num_pure))
    if num_switching:
        parts.append(_switching(packed, corpus, num_switching, seed))
    if not parts:
        return _pure(packed, 1).select([])
    joined = concatenate(parts)
    order = np.random.default_rng((seed, 1)).permutation(len(joined))
    return joined.select(torch.from_numpy(order))


def _pure(packed: Mapping[str, Sequences], number: int) -> Sequences:
    domains = sorted(packed)
    picked: list[Sequences] = []
    for place, domain in enumerate(domains):
        sequences = packed[domain]
        share = len(range(place, number, len(domains)))
        if share and not len(sequences):
            raise DataError(f"domain {domain!r} has too little text for one training sequence")
        if share:
            # A domain that runs out starts over.
            picked.append(sequences.select([i % len(sequences) for i in range(share)]))
    return concatenate(picked)


def _switching(packed: Mapping[str, Sequences], corpus: CorpusParams, number: int, seed: int) -> Sequences:
    parts: list[Sequences] = []
    have = 0
    for turn in range(number):
        made = switching(
            packed, segment_length=corpus.segment_length, max_sequences=number - have, seed=seed + 7919 * turn
        )
        if not len(made):
            raise DataError("the split has too little text for one sequence that switches domain")
        parts.append(made)
        have += len(made)
        if have >= number:
            break
    return concatenate(parts)
