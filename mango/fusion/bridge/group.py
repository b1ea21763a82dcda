"""What a guest across a bridge adds to the mixture: its distribution, told over the trunk's tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mango.fusion.bridge.module import Bridge
from mango.fusion.bridge.running import Reading
from mango.fusion.bridge.telling import Place
from mango.fusion.mixing import Group


@dataclass(frozen=True)
class BridgedGroup(Group):
    """States that end in the head of a guest with a tokenizer of its own.

    Args:
        bridge: between the guest and the trunk.
        host: what ends in the trunk's head, which shares out what the guest leaves open.
        nodes: what left the guest's last block at each of its tokens, ``[nodes, width]``.
        places: the end of the text up to each token, for each row and column; None for padding.
    """

    bridge: Bridge = None  # type: ignore[assignment]
    host: Group = None  # type: ignore[assignment]
    nodes: Tensor = None  # type: ignore[assignment]
    places: tuple[tuple[Place | None, ...], ...] = ()

    @classmethod
    def across(cls, group: Group, bridge: Bridge, host: Group, reading: Reading, real: Tensor) -> BridgedGroup:
        """Return a guest's group as one that speaks of the trunk's tokens.

        Args:
            group: the guest's.
            bridge: between the guest and the trunk.
            host: what ends in the trunk's head.
            reading: what the guest has read.
            real: which tokens are no padding, ``[rows, length]``.
        """
        columns: list[tuple[Place | None, ...]] = []
        for row, places in zip(real.tolist(), reading.places, strict=True):
            following = iter(places)
            columns.append(tuple(next(following) if is_real else None for is_real in row))
        return cls(
            group.tail,
            group.mass,
            group.states,
            bridge=bridge,
            host=host,
            nodes=reading.states,
            places=tuple(columns),
        )

    def last(self, number: int) -> BridgedGroup:
        """Return the group of the last `number` tokens of each row."""
        if number == self.mass.shape[1]:
            return self
        last = super().last(number)
        assert isinstance(last, BridgedGroup)
        return replace(last, host=self.host.last(number), places=tuple(row[-number:] for row in self.places))

    def select(self, rows: Tensor) -> BridgedGroup:
        """Return the group of the rows at these indices, in that order."""
        some = super().select(rows)
        assert isinstance(some, BridgedGroup)
        places = tuple(self.places[row] for row in rows.tolist())
        return replace(some, host=self.host.select(rows), places=places)

    def losses(self, following: Tensor) -> Tensor:
        """Return what the guest loses on the token that follows each, told in the trunk's tokens."""
        with torch.no_grad():
            told = self.logits().gather(1, following.flatten().unsqueeze(1))
        return -told.view(following.shape)

    def logits(self) -> Tensor:
        """Return log-probabilities of the trunk's tokens, float32 ``[tokens, vocabulary]``; alike for padding."""
        if self.said is not None:
            return self.said
        trunk = self.host.logits()
        rows = trunk.view(len(self.places), -1, trunk.shape[-1])
        return torch.cat([self._of_row(row, places) for row, places in zip(rows, self.places, strict=True)])

    def _of_row(self, trunk: Tensor, places: tuple[Place | None, ...]) -> Tensor:
        columns = [column for column, place in enumerate(places) if place is not None]
        if not columns:
            return torch.zeros_like(trunk, dtype=torch.float32)
        found = [place for place in places if place is not None]
        nodes = sorted({node for place in found for node in place.nodes()})
        number = {node: index for index, node in enumerate(nodes)}
        logits = self.tail(self.nodes[nodes])
        told = self.bridge.tell(logits, [place.at(number) for place in found], trunk[columns])
        if len(columns) == len(places):
            return told
        index = torch.tensor(columns, device=told.device)
        return torch.zeros_like(trunk, dtype=torch.float32).index_copy(0, index, told)
