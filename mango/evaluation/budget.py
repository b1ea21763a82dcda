"""The budget knob: the fused model at several amounts of compute, and what that curve dominates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mango.evaluation.schema_base import SystemKind
from mango.fusion import MolForCausalLM
from mango.fusion.routers import Selection

COMPARED: tuple[SystemKind, ...] = ("trunk", "expert", "merge", "ensemble", "routing", "control")
"""Kinds that a curve is held against; oracles choose with hindsight."""

_ROUNDING = 1e-9
"""Costs are quotients of counts."""

_MEASURES = {"pure": ("pure_mean", "cost"), "switching": ("switching", "cost_switching")}


def points(model: MolForCausalLM, masses: Sequence[float]) -> Iterator[tuple[str, str, str, Selection]]:
    """Yield name, label, note and selection of each point between one expert and all of them.

    Args:
        model: the fused model; one without a choice has no such points.
        masses: shares of the router's probability that the experts of a token make up.

    Yields:
        the cheapest point first: one expert that catches up on nothing.
    """
    routers = list(model.iter_routers())
    if not routers or not masses:
        return
    hard = routers[0].hard_selection
    yield (
        "fused_no_catch_up",
        "Fused, hard, no catch-up",
        "each token is processed by one expert, which reads only what it was given",
        replace(hard, catch_up=0),
    )
    for mass in sorted(set(masses)):
        yield (
            f"fused_mass_{mass:g}",
            f"Fused, {mass:g} of the probability",
            f"each token is processed by the most probable experts that make up {mass:g} of the router's probability",
            replace(hard, k=len(model.layout.experts), mass=mass, stickiness=0.0),
        )


def dominance(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return, for each text, what the fused model's curve dominates.

    A system is dominated where a point of the curve is better and costs no more, in tokens that experts process.

    Args:
        rows: the evaluated systems.

    Returns:
        The section ``budget`` of ``reports/evaluation.json``.
    """
    return {text: found for text in _MEASURES if (found := _on(rows, *_MEASURES[text])) is not None}


def _on(rows: Sequence[Mapping[str, Any]], loss: str, cost: str) -> dict[str, Any] | None:
    known = [row for row in rows if row[loss] is not None and row[cost] is not None]
    curve = sorted((row for row in known if row["kind"] == "fused"), key=lambda row: (row[cost], row[loss]))
    if not curve:
        return None
    against = []
    for row in known:
        if row["kind"] not in COMPARED or row["name"] == "best_single":
            continue
        better = next((point for point in curve if point[loss] < row[loss]), None)
        against.append(
            {
                "system": row["name"],
                "kind": row["kind"],
                "cost": row[cost],
                "loss": row[loss],
                "beaten_by": None if better is None else better["name"],
                "beaten_at": None if better is None else better[cost],
                "dominated": better is not None and better[cost] <= row[cost] * (1 + _ROUNDING),
            }
        )
    kinds = dict.fromkeys(one["kind"] for one in against)
    return {
        "curve": [row["name"] for row in curve],
        "against": against,
        "dominates": {kind: all(one["dominated"] for one in against if one["kind"] == kind) for kind in kinds},
    }
