"""Examples of each task but causal language models: the inputs of models, and what an error is counted in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mango.corpus.params import CorpusParams
from mango.corpus.passages import Passages, passages
from mango.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TASKS = ("masked-lm", "sentence-embedding", "seq2seq-lm")
"""Tasks that text has examples for."""
IGNORED = -100
"""Label of places that do not count."""
MASKED_SHARE = 0.15
"""Share of the tokens that a masked language model is trained to find.

Source: Devlin et al., "BERT" (1810.04805), section 3.1.
"""
EVERY = 7
"""An evaluation masks every so many tokens in one pass, and each of them in one of as many passes."""


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Examples of one task, as a model takes them.

    Args:
        inputs: arguments of a forward pass with their labels, each ``[examples, ...]``.
        units: for each example, what an error is counted in: bytes of text, or 1; float64 ``[examples]``.
        domain_ids: for each example the number of its domain, int64 ``[examples]``.
        domains: names of the domains.
        group: how many examples that follow on are one text, or one image.
    """

    inputs: dict[str, Tensor]
    units: Tensor
    domain_ids: Tensor
    domains: tuple[str, ...]
    group: int = 1

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.units)

    def of(self, domain: str) -> Examples:
        """Return the examples of one domain."""
        return self.select((self.domain_ids == self.domains.index(domain)).nonzero().squeeze(1))

    def select(self, rows: Tensor) -> Examples:
        """Return the examples at these indices, in that order."""
        inputs = {name: value[rows] for name, value in self.inputs.items()}
        return Examples(inputs, self.units[rows], self.domain_ids[rows], self.domains, self.group)

    def batches(self, size: int) -> Iterator[dict[str, Tensor]]:
        """Yield the inputs of so many examples at a time."""
        for start in range(0, len(self), size):
            yield {name: value[start : start + size] for name, value in self.inputs.items()}


def examples(
    task: str,
    corpus: CorpusParams,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    per_domain: int,
    seed: int,
    evaluated: bool = False,
) -> Examples:
    """Return examples of a task, the domains in turn, so that a batch has text of several.

    Args:
        task: ``masked-lm``: passages with masked tokens to be found; ``sentence-embedding``: pairs of passages that
            follow on in a document; ``seq2seq-lm``: a passage, and as its target the one that follows on.
        corpus: the corpus.
        split: one of its splits.
        tokenizer: the models' tokenizer.
        per_domain: passages of each domain; domains that have fewer are repeated in training.
        seed: of the choice and of what is masked.
        evaluated: whether every token of a masked language model is asked for once, in several passes.

    Raises:
        DataError: the corpus has too little text, or the tokenizer no mask token.
    """
    if task not in TASKS:
        raise DataError(f"there are no examples for {task!r} in a corpus of text. Known: {', '.join(TASKS)}")
    parts = 1 if task == "masked-lm" else 2
    packed = passages(
        corpus, split, tokenizer, parts=parts, max_per_domain=per_domain if evaluated else None, seed=seed
    )
    if task == "masked-lm":
        mask = tokenizer.mask_token_id
        if not isinstance(mask, int):
            raise DataError(f"{type(tokenizer).__name__} has no mask token, which a masked language model needs")
        generator = torch.Generator().manual_seed(seed)
        return _in_turn(packed, per_domain, evaluated, lambda own: _masked(own, mask, None if evaluated else generator))
    return _in_turn(packed, per_domain, evaluated, _pairs if task == "sentence-embedding" else _continued)


_Made = tuple[dict[str, Tensor], Tensor, int]


def _masked(own: Passages, mask: int, generator: torch.Generator | None) -> _Made:
    """Mask a share of the tokens, drawn from a generator; or each of them in one of several passes."""
    ids, sizes = own.input_ids[:, 0], own.num_bytes[:, 0]
    length, ordinary = ids.shape[1], ~own.special
    if generator is not None:
        chosen = (torch.rand(ids.shape, generator=generator) < MASKED_SHARE) & ordinary
        # A row has at least one token to be found.
        lone = ordinary.nonzero().squeeze(1)[torch.randint(int(ordinary.sum()), (len(ids),), generator=generator)]
        chosen[torch.arange(len(ids)), lone] |= ~chosen.any(1)
        group = 1
    else:
        group = min(EVERY, int(ordinary.sum()))
        passes = (torch.arange(length) % group).unsqueeze(0) == torch.arange(group).unsqueeze(1)
        chosen = (passes & ordinary).repeat(len(ids), 1)
        ids, sizes = ids.repeat_interleave(group, 0), sizes.repeat_interleave(group, 0)
    inputs = {"input_ids": ids.masked_fill(chosen, mask), "labels": ids.masked_fill(~chosen, IGNORED)}
    return inputs, (sizes * chosen).sum(1).double(), group


def _pairs(own: Passages) -> _Made:
    number = len(own)
    inputs = {"input_ids": own.input_ids, "labels": torch.zeros(number, dtype=torch.long)}
    return inputs, torch.ones(number, dtype=torch.float64), 1


def _continued(own: Passages) -> _Made:
    labels = own.input_ids[:, 1].clone()
    if bool(own.special[0]):
        labels[:, 0] = IGNORED  # what every text begins with says nothing
    return {"input_ids": own.input_ids[:, 0], "labels": labels}, own.num_bytes[:, 1].sum(1).double(), 1


def _in_turn(
    packed: Mapping[str, Passages], per_domain: int, evaluated: bool, make: Callable[[Passages], _Made]
) -> Examples:
    domains = tuple(sorted(packed))
    made: list[Examples] = []
    for number, domain in enumerate(domains):
        own = packed[domain]
        rows = torch.arange(len(own) if evaluated else per_domain) % len(own)
        inputs, units, group = make(Passages(own.input_ids[rows], own.num_bytes[rows], own.special))
        made.append(Examples(inputs, units, torch.full((len(units),), number), domains, group))
    return interleaved(made)


def interleaved(made: list[Examples]) -> Examples:
    """Return the examples of several domains in turn; groups stay together.

    Args:
        made: as many examples of each domain.
    """
    first = made[0]
    count, group = len(first) // first.group, first.group
    order = torch.arange(len(made) * count * group).view(len(made), count, group).transpose(0, 1).flatten()
    inputs = {name: torch.cat([part.inputs[name] for part in made])[order] for name in first.inputs}
    units, domains = (torch.cat([getattr(part, name) for part in made])[order] for name in ("units", "domain_ids"))
    return Examples(inputs, units, domains, first.domains, group)
