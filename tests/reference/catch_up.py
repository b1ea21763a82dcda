"""Sparse routing with catch-up, token by token, in plain Python, written from its definition.

An expert processes the tokens that are routed to it. An entry is a token that is routed to an expert while the token
before it in the row was not. On each entry the expert first processes those of the last `catch_up` tokens that it has
not processed yet. Nothing else is processed, no token twice, and an expert never goes back behind an entry's window.
"""

from __future__ import annotations

from collections.abc import Sequence


def processed_in_order(routed: Sequence[bool], catch_up: int) -> list[list[int]]:
    """Return what one expert processes when each token of a row comes: the tokens in their order, its own last.

    Args:
        routed: whether each token of the row is routed to the expert.
        catch_up: tokens that it reads first on an entry.
    """
    done: set[int] = set()
    steps: list[list[int]] = []
    for now, here in enumerate(routed):
        step: list[int] = []
        if here:
            entered = now == 0 or not routed[now - 1]
            if entered:
                step = [token for token in range(max(0, now - catch_up), now) if token not in done]
            step.append(now)
        done.update(step)
        steps.append(step)
    return steps


def processed(routed: Sequence[bool], catch_up: int) -> list[bool]:
    """Return which tokens of a row one expert processes in the end."""
    done = {token for step in processed_in_order(routed, catch_up) for token in step}
    return [token in done for token in range(len(routed))]
