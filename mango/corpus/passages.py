"""Text as models read it that see whole rows: passages of one document each, between their special tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mango.corpus.params import CorpusParams
from mango.corpus.reading import read_split
from mango.corpus.token_bytes import tokenize
from mango.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, eq=False)
class Passages:
    """Passages of one domain, each in one or two parts that follow on in their document.

    Args:
        input_ids: int64 ``[passages, parts, length]``, with the special tokens that begin and end a text.
        num_bytes: UTF-8 bytes that each token stands for, of the same shape; 0 for special tokens.
        special: which places hold special tokens, bool ``[length]``.
    """

    input_ids: Tensor
    num_bytes: Tensor
    special: Tensor

    def __len__(self) -> int:
        """Return the number of passages."""
        return len(self.input_ids)


def passages(
    params: CorpusParams,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    parts: int = 1,
    max_per_domain: int | None = None,
    seed: int,
) -> dict[str, Passages]:
    """Cut each domain's documents into passages, in an order drawn from the seed.

    A part holds ``params.sequence_length`` tokens, the special ones among them; what is left over at the end of a
    document is dropped.

    Args:
        params: where the corpus is, its domains and the length of a part.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        tokenizer: a tokenizer with character offsets.
        parts: parts of a passage.
        max_per_domain: most passages of a domain; every domain gives equally many then.
        seed: of order and choice.

    Raises:
        DataError: the split is wrong (see `read_split`), or a domain has too little text for one passage.
    """
    begin = next((t for t in (tokenizer.cls_token_id, tokenizer.bos_token_id) if isinstance(t, int)), None)
    end = next((t for t in (tokenizer.sep_token_id, tokenizer.eos_token_id) if isinstance(t, int)), None)
    first, last = [] if begin is None else [begin], [] if end is None else [end]
    inner = params.sequence_length - len(first) - len(last)
    if inner < 1:
        raise DataError(f"corpus.sequence_length={params.sequence_length} leaves no room beside the special tokens")
    documents = read_split(params, split)
    texts: dict[str, list[str]] = {}
    for domain, text in zip(documents["domain"], documents["text"], strict=True):
        texts.setdefault(domain, []).append(text)
    found: dict[str, tuple[list[list[list[int]]], list[list[list[int]]]]] = {}
    domains = params.domains or tuple(sorted(texts))
    for domain in domains:
        ids, sizes = found[domain] = [], []
        for tokens, num_bytes in tokenize(tokenizer, texts[domain]):
            for start in range(0, len(tokens) - parts * inner + 1, parts * inner):
                cuts = [slice(start + part * inner, start + (part + 1) * inner) for part in range(parts)]
                ids.append([[*first, *tokens[cut].tolist(), *last] for cut in cuts])
                sizes.append([[*(0 for _ in first), *num_bytes[cut].tolist(), *(0 for _ in last)] for cut in cuts])
        if not ids:
            raise DataError(
                f"{params.path}: domain {domain!r} of {split} has no document of {parts * inner} tokens; use shorter "
                "sequences (corpus.sequence_length)"
            )
    count = None if max_per_domain is None else min(max_per_domain, *(len(ids) for ids, _ in found.values()))
    special = torch.tensor([*(True for _ in first), *(False for _ in range(inner)), *(True for _ in last)])
    out: dict[str, Passages] = {}
    for domain in domains:
        ids, sizes = found[domain]
        order = np.random.default_rng([seed, *f"{split}/{domain}".encode()]).permutation(len(ids))[:count]
        out[domain] = Passages(torch.tensor([ids[i] for i in order]), torch.tensor([sizes[i] for i in order]), special)
    return out
