"""Distillation: each token learns from the source model that is best around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mango.blocks import BlockStore, load_source
from mango.training.calibration import best_expert


def best_sources(losses: Mapping[str, Tensor], names: Sequence[str], window: int) -> Tensor:
    """Return the number of the source model with the lowest loss around each token, int64 ``[rows, length]``.

    Args:
        losses: loss of each source model on each token, ``[rows, length - 1]``, by name.
        names: the source models, in the order of their numbers.
        window: tokens around a token over which they are compared.
    """
    return best_expert(torch.stack([losses[name] for name in names]), window)


class Teacher:
    """The source models as teachers of the fused model.

    Args:
        store: where they come from.
        names: their names, in the order of their numbers.
        device: where they run. They take as much memory again as the fused model does.
    """

    def __init__(self, store: BlockStore, names: Sequence[str], device: torch.device | str) -> None:
        self.models = [load_source(store, name, device=device) for name in names]

    @torch.no_grad()
    def log_probs(self, input_ids: Tensor, best: Tensor) -> Tensor:
        """Return what the best source model of each token says of the next one, ``[rows, length, vocabulary]``.

        Only models that are some token's best are run, each on the rows where it is.

        Args:
            input_ids: ``[rows, length]``.
            best: number of the best source model of each token, ``[rows, length]``.
        """
        out: Tensor | None = None
        for number, model in enumerate(self.models):
            rows = (best == number).any(1).nonzero().squeeze(1)
            if not len(rows):
                continue
            said = torch.log_softmax(model(input_ids=input_ids[rows]).logits.float(), -1)
            if out is None:
                out = said.new_zeros(*input_ids.shape, said.shape[-1])
            mine = (best[rows] == number).unsqueeze(-1)
            out[rows] = torch.where(mine, said, out[rows])
        assert out is not None
        return out


def distillation_loss(logits: Tensor, taught: Tensor) -> Tensor:
    """Return the divergence of what a model says of the next token from what it is taught, in nats a token.

    Args:
        logits: ``[rows, length, vocabulary]``; the last of each row has no next token and does not count.
        taught: log-probabilities of the same shape.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network" (1503.02531), section 2, at temperature 1.
    """
    said = torch.log_softmax(logits[:, :-1].float(), -1)
    taught = taught[:, :-1]
    return (taught.exp() * (taught - said)).sum(-1).mean()
