"""Retention: how much of each expert's own strength a fused model keeps on the expert's domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mango.evaluation.routing import RoutingTotals


def own_domain(expert: Mapping[str, float], trunk: Mapping[str, float]) -> str:
    """Return the domain on which an expert is furthest ahead of the trunk, or least behind.

    Args:
        expert: its loss on each domain.
        trunk: the trunk's.
    """
    return min(sorted(expert), key=lambda domain: (expert[domain] - trunk[domain]) / max(trunk[domain], 1e-12))


def kept(own: float, fused: float) -> float | None:
    """Return the expert's loss over the fused model's: 1 is all of its strength; None where the fused one has none."""
    return own / fused if fused > 0 else None


def retention(
    rows: Sequence[Mapping[str, Any]], hard: Mapping[str, RoutingTotals], sources: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return, for each expert, what the fused model keeps of it on its own domain.

    Args:
        rows: the evaluated systems.
        hard: what hard routing chose in each domain.
        sources: the source model of each expert, by the expert's name.
    """
    by_name = {row["name"]: row["pure"] for row in rows}
    trunk, soft, sparse = by_name["trunk"], by_name["fused_soft"], by_name["fused_hard"]
    out: list[dict[str, Any]] = []
    for name in dict.fromkeys(sources.values()):
        own = by_name.get(f"expert_{name}")
        if own is None:  # the trunk
            continue
        domain = own_domain(own, trunk)
        processed = hard[domain].by_expert()
        given = sum(count for expert, count in processed.items() if sources[expert] == name)
        out.append(
            {
                "expert": name,
                "domain": domain,
                "own": own[domain],
                "soft": soft[domain],
                "hard": sparse[domain],
                "kept_soft": kept(own[domain], soft[domain]),
                "kept_hard": kept(own[domain], sparse[domain]),
                "given": given / max(sum(processed.values()), 1e-12),
            }
        )
    return out


def worst_against_best(rows: Sequence[Mapping[str, Any]], system: str) -> float | None:
    """Return by how large a share a system's loss exceeds that of the best source model, on its worst domain.

    Args:
        rows: the evaluated systems.
        system: name of the system.

    Returns:
        0.01 where it is 1% worse; below 0 where it is better on every domain; None where the best model has no loss.
    """
    single = [row["pure"] for row in rows if row["kind"] in ("trunk", "expert")]
    own = next(row["pure"] for row in rows if row["name"] == system)
    best = {domain: min(pure[domain] for pure in single) for domain in own}
    if any(loss <= 0 for loss in best.values()):
        return None
    return float(max(own[domain] / loss - 1 for domain, loss in best.items()))
