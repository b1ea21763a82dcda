"""The few figures that a verdict rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mango.evaluation.metrics import gap_closed
from mango.evaluation.retention import worst_against_best


def headline(
    rows: Sequence[dict[str, Any]],
    kept: Sequence[Mapping[str, Any]] = (),
    calibrated: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Return the headline figures of an evaluation.

    Args:
        rows: its systems.
        kept: what is kept of each expert.
        calibrated: the calibration of systems, by name.
    """
    by_name = {row["name"]: row for row in rows}
    trunk, oracle = by_name["trunk"]["pure_mean"], by_name["oracle_sequence"]["pure_mean"]
    soft, hard = by_name["fused_soft"], by_name["fused_hard"]
    merges = [row for row in rows if row["kind"] == "merge"]
    stitch = by_name.get("self_stitch")
    return {
        "gap_closed_soft": gap_closed(trunk, oracle, soft["pure_mean"]),
        "gap_closed_hard": gap_closed(trunk, oracle, hard["pure_mean"]),
        "switching_hard_minus_posterior_ensemble": None
        if hard["switching"] is None or "ensemble_posterior" not in by_name
        else hard["switching"] - by_name["ensemble_posterior"]["switching"],
        "cost_hard_switching": hard["cost_switching"],
        "beats_every_static_merge": all(_beats((soft, hard), merge) for merge in merges) if merges else None,
        "beats_self_stitch": None if stitch is None else _beats((soft, hard), stitch),
        "least_kept_soft": _least(kept, "kept_soft"),
        "least_kept_hard": _least(kept, "kept_hard"),
        "worst_against_best_single_soft": worst_against_best(rows, "fused_soft"),
        "worst_against_best_single_hard": worst_against_best(rows, "fused_hard"),
        "calibration_error_soft": _error(calibrated, "fused_soft"),
        "calibration_error_hard": _error(calibrated, "fused_hard"),
        "flops_hard": _over(hard, by_name["trunk"], "flops"),
        "flops_hard_switching": _over(hard, by_name["trunk"], "flops_switching"),
    }


def _least(kept: Sequence[Mapping[str, Any]], which: str) -> float | None:
    return min((row[which] for row in kept if row[which] is not None), default=None)


def _error(calibrated: Mapping[str, Mapping[str, Any]] | None, name: str) -> float | None:
    found = (calibrated or {}).get(name)
    return None if found is None else float(found["error"])


def _over(row: Mapping[str, Any], trunk: Mapping[str, Any], which: str) -> float | None:
    return row[which] / trunk[which] if row.get(which) and trunk.get(which) else None


def _beats(fused: Sequence[dict[str, Any]], other: dict[str, Any]) -> bool:
    texts = [text for text in ("pure_mean", "switching") if other[text] is not None]
    return all(row[text] < other[text] for row in fused for text in texts)
