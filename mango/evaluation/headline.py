"""The few figures that a verdict rests on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mango.evaluation.metrics import gap_closed


def headline(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the headline figures of an evaluation's systems."""
    by_name = {row["name"]: row for row in rows}
    trunk, oracle = by_name["trunk"]["pure_mean"], by_name["oracle_sequence"]["pure_mean"]
    soft, hard = by_name["fused_soft"], by_name["fused_hard"]
    merges = [row for row in rows if row["kind"] == "merge"]
    stitch = by_name.get("self_stitch")
    return {
        "gap_closed_soft": gap_closed(trunk, oracle, soft["pure_mean"]),
        "gap_closed_hard": gap_closed(trunk, oracle, hard["pure_mean"]),
        "switching_hard_minus_posterior_ensemble": None
        if hard["switching"] is None
        else hard["switching"] - by_name["ensemble_posterior"]["switching"],
        "cost_hard_switching": hard["cost_switching"],
        "beats_every_static_merge": all(_beats((soft, hard), merge) for merge in merges) if merges else None,
        "beats_self_stitch": None if stitch is None else _beats((soft, hard), stitch),
    }


def _beats(fused: Sequence[dict[str, Any]], other: dict[str, Any]) -> bool:
    texts = [text for text in ("pure_mean", "switching") if other[text] is not None]
    return all(row[text] < other[text] for row in fused for text in texts)
