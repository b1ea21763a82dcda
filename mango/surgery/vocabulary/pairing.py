"""Two tokenizers over one text: where their tokens end together, and losses of one told on the tokens of the other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mango.blocks import BlockStore
from mango.checkpoints import open_tokenizer
from mango.checkpoints.vocabulary import Vocabulary, read_vocabulary
from mango.corpus import token_losses
from mango.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ints = npt.NDArray[np.int64]
_BROKEN = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True)
class Retokenised:
    """Rows of tokens, read again by another tokenizer.

    Attributes:
        input_ids: the other tokenizer's tokens, ``[rows, longest]``; shorter rows are filled with their last token,
            which no causal model sees from before.
        our_ends: for each row, the byte at which each of our tokens ends.
        their_ends: for each row, the byte at which each of their tokens ends.
        pairs: row, our token and their token wherever two tokens end at the same byte, int64 ``[pairs, 3]``.
    """

    input_ids: Tensor
    our_ends: tuple[Ints, ...]
    their_ends: tuple[Ints, ...]
    pairs: Tensor

    def on_our_tokens(self, losses: Tensor) -> Tensor:
        """Return losses of their tokens as losses of ours: each is spread evenly over the bytes of its token.

        What a row's first token costs them is unknown where they have no token for the beginning of a text; it counts
        as much a byte as the rest of the row.

        Args:
            losses: ``[rows, longest - 1]`` nats; entry t is the loss of their token t + 1.

        Returns:
            ``[rows, length - 1]`` nats, float32; entry t is the loss of our token t + 1. Those of a row add up to the
            losses of their tokens behind our first one.
        """
        out: list[Tensor] = []
        for row, (ours, theirs) in enumerate(zip(self.our_ends, self.their_ends, strict=True)):
            known = losses[row, : len(theirs) - 1].double().cpu().numpy()
            covered = int(theirs[-1] - theirs[0])
            first = theirs[0] * (known.sum() / covered if covered else 0.0)
            sums = np.concatenate([[0.0, first], first + np.cumsum(known)])
            told = np.interp(ours, np.concatenate([[0], theirs]), sums)
            out.append(torch.from_numpy(np.diff(told)).float())
        return torch.stack(out)


@dataclass(frozen=True)
class Retokeniser:
    """Reads rows of one model's tokens again as those of another.

    Attributes:
        ours: the vocabulary of the rows.
        tokenizer: the other model's tokenizer; it knows offsets.
    """

    ours: Vocabulary
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def between(cls, store: BlockStore, ours: str, theirs: str) -> Retokeniser | None:
        """Return what reads the tokens of a stored model as those of another; None where they share a tokenizer.

        Raises:
            DataError: the other tokenizer gives no character offsets.
            CheckpointError: a tokenizer cannot be read.
        """
        if store.model(ours).tokenizer_sha256 == store.model(theirs).tokenizer_sha256:
            return None
        tokenizer = open_tokenizer(store.tokenizer_folder(theirs))
        if not tokenizer.is_fast:
            raise DataError(
                f"{theirs!r}: {type(tokenizer).__name__} gives no character offsets, by which tokens are paired; use a "
                "model with a tokenizer.json"
            )
        return cls(read_vocabulary(store.tokenizer_folder(ours)), tokenizer)

    def read(self, input_ids: Tensor) -> Retokenised:
        """Read rows of tokens again.

        A special token, as what separates documents, stands for one byte that both have a token for: theirs is the
        token that ends a text. Rows of theirs start with their token for the beginning of a text, where they have one.

        Args:
            input_ids: ``[rows, length]``.
        """
        rows = [self._row(row.tolist()) for row in input_ids.cpu()]
        longest = max((len(ids) for ids, _, _ in rows), default=0)
        filled = [np.pad(ids, (0, longest - len(ids)), mode="edge") for ids, _, _ in rows]
        pairs: list[tuple[int, int, int]] = []
        for row, (_, ours, theirs) in enumerate(rows):
            last = {int(end): place for place, end in enumerate(theirs)}
            mine = {int(end): place for place, end in enumerate(ours)}
            pairs += [(row, mine[end], last[end]) for end in sorted(mine.keys() & last.keys()) if end]
        return Retokenised(
            torch.from_numpy(np.stack(filled)),
            tuple(ours for _, ours, _ in rows),
            tuple(theirs for _, _, theirs in rows),
            torch.tensor(pairs, dtype=torch.int64).reshape(-1, 3),
        )

    def _row(self, row: list[int]) -> tuple[Ints, Ints, Ints]:
        """Return their tokens of a row, the bytes at which our tokens end, and those at which theirs end."""
        sizes = [len(self.ours.forms.get(number, b"-")) for number in row]
        begin, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        ids: list[int] = [] if begin is None else [int(begin)]
        ends: list[int] = [0] * len(ids)
        place = 0
        for form in self._runs(row):
            if form is None:
                place += 1
                if end is not None:
                    ids.append(int(end))
                    ends.append(place)
                continue
            # A row may begin or end within a character: each of its bytes then stands for itself.
            text = form.decode("utf-8", "surrogateescape")
            widths = [1 if _BROKEN.match(c) else len(c.encode()) for c in text]
            until = np.cumsum([place, *widths])
            encoded: Any = self.tokenizer(
                _BROKEN.sub("\ufffd", text), add_special_tokens=False, return_offsets_mapping=True, verbose=False
            )
            ids += encoded["input_ids"]
            ends += [int(until[stop]) for _, stop in encoded["offset_mapping"]]
            place = int(until[-1])
        if not ids:
            raise DataError(f"{type(self.tokenizer).__name__} turns a row of {len(row)} tokens into no token")
        ends[-1] = place
        return (
            np.asarray(ids, dtype=np.int64),
            np.cumsum(sizes, dtype=np.int64),
            np.maximum.accumulate(np.asarray(ends, dtype=np.int64)),
        )

    def _runs(self, row: list[int]) -> Iterator[bytes | None]:
        """Yield the bytes between special tokens, and None for each of those."""
        run = bytearray()
        for number in row:
            form = self.ours.forms.get(number)
            if form is not None:
                run += form
                continue
            if run:
                yield bytes(run)
                run.clear()
            yield None
        if run:
            yield bytes(run)


class Retold(nn.Module):
    """A model with another tokenizer, asked about rows of our tokens: it reads their text in its own tokens.

    Args:
        model: the model.
        reader: reads our tokens as its own.
        batch_size: rows a forward pass.
    """

    def __init__(self, model: nn.Module, reader: Retokeniser, *, batch_size: int) -> None:
        super().__init__()
        self.model = model
        self.reader = reader
        self.batch_size = batch_size

    def forward(self, input_ids: Tensor) -> Any:
        """Run the model on the text of rows of our tokens; what comes out is told on its own tokens."""
        return self.model(input_ids=self.reader.read(input_ids).input_ids.to(input_ids.device))

    def token_losses(self, input_ids: Tensor) -> Tensor:
        """Return the loss of each of our tokens given the text before, in nats, ``[rows, length - 1]``."""
        read = self.reader.read(input_ids)
        return read.on_our_tokens(token_losses(self.model, read.input_ids, batch_size=self.batch_size))
