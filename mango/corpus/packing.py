"""Documents packed into sequences of one domain each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from mango.corpus.params import CorpusParams
from mango.corpus.reading import read_split
from mango.corpus.sequences import Sequences
from mango.corpus.token_bytes import Ints, tokenize
from mango.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def pack(
    params: CorpusParams,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_sequences_per_domain: int | None = None,
    seed: int,
) -> dict[str, Sequences]:
    """Pack each domain's documents, in an order drawn from the seed, into sequences of one length.

    Whole documents are concatenated, each followed by the end-of-text token, and the run of tokens is cut every
    ``params.sequence_length``; what is left over at its end is dropped. The order of a domain depends on the seed, the
    split and the domain's own documents alone.

    Args:
        params: where the corpus is, its domains and the length of a sequence.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        tokenizer: a tokenizer with character offsets and an end-of-text token.
        max_sequences_per_domain: with a number, a sample of it from each domain, drawn without replacement; every
            domain then gives equally many (the smallest domain sets the number when it has fewer). Without, everything.
        seed: seed of the order and the sample.

    Returns:
        The sequences of each domain; `domains` is the same tuple in all of them.

    Raises:
        DataError: the split is wrong (see `read_split`), the tokenizer has no end-of-text token or no offsets, or a
            domain has too little text for one sequence.
    """
    if max_sequences_per_domain is not None and max_sequences_per_domain < 1:
        raise DataError(f"max_sequences_per_domain is {max_sequences_per_domain}; it must be at least 1")
    eos = tokenizer.eos_token_id
    if not isinstance(eos, int):
        raise DataError(f"{type(tokenizer).__name__} has no end-of-text token (eos_token); set one")
    documents = read_split(params, split)
    by_domain: dict[str, list[str]] = {}
    for domain, text in zip(documents["domain"], documents["text"], strict=True):
        by_domain.setdefault(domain, []).append(text)
    domains = params.domains or tuple(sorted(by_domain))
    rows: dict[str, tuple[Ints, Ints]] = {}
    generators = {domain: np.random.default_rng([seed, *f"{split}/{domain}".encode()]) for domain in domains}
    for domain in domains:
        texts = by_domain[domain]
        order = generators[domain].permutation(len(texts))
        rows[domain] = _cut(tokenizer, [texts[i] for i in order], eos, params.sequence_length)
        if not len(rows[domain][0]):
            raise DataError(
                f"{params.path}: domain {domain!r} of {split} has fewer than corpus.sequence_length="
                f"{params.sequence_length} tokens; give it more text or use shorter sequences"
            )
    if max_sequences_per_domain is not None:
        count = min(max_sequences_per_domain, *(len(ids) for ids, _ in rows.values()))
        for domain, (ids, num_bytes) in rows.items():
            chosen = generators[domain].permutation(len(ids))[:count]
            rows[domain] = ids[chosen], num_bytes[chosen]
    packed = {}
    for index, domain in enumerate(domains):
        input_ids, sizes = (torch.from_numpy(np.ascontiguousarray(array)) for array in rows[domain])
        packed[domain] = Sequences(input_ids, torch.full_like(input_ids, index), sizes, domains)
    return packed


def _cut(tokenizer: PreTrainedTokenizerBase, texts: list[str], eos: int, length: int) -> tuple[Ints, Ints]:
    ids: list[Ints] = []
    num_bytes: list[Ints] = []
    end = np.array([eos], dtype=np.int64)
    nothing = np.zeros(1, dtype=np.int64)
    for tokens, sizes in tokenize(tokenizer, texts):
        ids += (tokens, end)
        num_bytes += (sizes, nothing)
    flat_ids, flat_bytes = np.concatenate(ids), np.concatenate(num_bytes)
    rows = len(flat_ids) // length
    return flat_ids[: rows * length].reshape(rows, length), flat_bytes[: rows * length].reshape(rows, length)
