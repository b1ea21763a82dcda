"""What a guest says of its own next token, told as probabilities of the trunk's next token."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mango.fusion.bridge.links import Links

LEAST = 1e-30
"""Least probability of a token of the trunk's: with it, shares of what the trunk rules out are still shares."""
CHUNK = 32
"""Places that are told at once: each takes as much memory as both vocabularies have tokens."""


@dataclass(frozen=True)
class Back:
    """A step back from the end of a text: the guest's next token may have begun there already.

    Args:
        node: what the guest had read there.
        token: the token that it read next in this text.
        read: the bytes from there to the end of the text.
    """

    node: int
    token: int
    read: bytes


@dataclass(frozen=True)
class Place:
    """The end of a text that the guest has read.

    Args:
        node: the last node of the text.
        back: steps back from there, the shortest first.
    """

    node: int
    back: tuple[Back, ...] = ()

    def nodes(self) -> list[int]:
        """Return every node at which it matters what the guest says."""
        return [self.node, *(step.node for step in self.back)]

    def at(self, nodes: Mapping[int, int]) -> Place:
        """Return the place with other numbers of its nodes."""
        back = tuple(replace(step, node=nodes[step.node]) for step in self.back)
        return Place(nodes[self.node], back)

    def moved(self, by: int) -> Place:
        """Return the place with numbers of its nodes that are higher."""
        return self.at({node: node + by for node in self.nodes()})


def tell(said: Tensor, places: Sequence[Place], trunk: Tensor, links: Callable[[bytes], Links]) -> Tensor:
    """Return probabilities of the trunk's next token.

    The text may end within one of the guest's tokens. So the guest's next token begins at the end, or it is one that
    begins at one of the last few tokens, with the bytes from there to the end, and goes on. Each way has the
    probability that the guest gives it, over that of all ways to have come to this end.

    Args:
        said: the guest's log-probabilities of its next token at each node, float32 ``[nodes, guest's vocabulary]``.
        places: ends of texts.
        trunk: the trunk's own probabilities at each of them, float32 ``[places, trunk's vocabulary]``.
        links: gives the links of a guest's token of which some bytes have been read.

    Returns:
        float32 ``[places, trunk's vocabulary]``; each sums to one.

    Source: Vieira et al., "From Language Models over Tokens to Language Models over Characters" (2412.03719), sec. 3,
    with the last few tokens for all tokenizations.
    """
    trunk = trunk.clamp(min=LEAST)
    whole = links(b"")
    out: list[Tensor] = []
    for start in range(0, len(places), CHUNK):
        some = places[start : start + CHUNK]
        host = trunk[start : start + CHUNK].T.contiguous()
        begun = whole.carry(said[[place.node for place in some]].exp().T.contiguous(), host)
        columns = [
            _at(said, place, begun[:, column], host[:, column : column + 1], links) for column, place in enumerate(some)
        ]
        out.append(torch.stack(columns))
    return torch.cat(out) if out else torch.zeros_like(trunk)


def _at(said: Tensor, place: Place, begun: Tensor, host: Tensor, links: Callable[[bytes], Links]) -> Tensor:
    """Weigh what begins at the end of a text, ``[vocabulary]``, against what began before and goes on."""
    weight = 0.0  # log-probability of the text from the longest step back to where a token begins
    ways: list[tuple[float, Tensor, Links]] = []
    for step in reversed(place.back):
        found = links(step.read)
        if len(found.guests):
            ways.append((weight, said[step.node], found))
        weight += float(said[step.node, step.token])
    if not ways:
        return begun
    masses = [before + float(says[found.guests].logsumexp(0)) for before, says, found in ways]
    total = _logsumexp([weight, *masses])
    told = begun * math.exp(weight - total)
    for before, says, found in ways:
        told = told + math.exp(before - total) * found.carry(says.exp().unsqueeze(1), host).squeeze(1)
    return told


def _logsumexp(values: Sequence[float]) -> float:
    most = max(values)
    return most + math.log(sum(math.exp(value - most) for value in values))
