"""Writes tests/evaluation/example.json: an invented evaluation of a realistic shape, for the tests of the report.

Usage: python tests/evaluation/make_example.py
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

DOMAINS = ["code", "novels", "manuals", "maths"]
OFFSET = {"code": -0.25, "novels": 0.55, "manuals": 0.3, "maths": -0.6}
TEXT = {
    "code": "def total(items):\n    return sum(item.price for item in items if item.price > 0)\n\n",
    "novels": "It was a truth which the whole neighbourhood had long acknowledged, and Emma smiled. ",
    "manuals": "Öffnen Sie das Menü »Extras« und wählen Sie die Schaltfläche <Optionen>, um fortzufahren. ",
    "maths": "|- ( ( A e. CC /\\ B e. CC ) -> ( A + B ) = ( B + A ) ) ",
}


TIES = {"method": "ties", "models": ["code", "novels"], "parameters": "weight 1; density 0.5 for <mlp> or 0.2"}


def system(name: str, label: str, kind: str, mean: float, switching: float | None, cost: float, **more: Any) -> Any:
    gain = more.get("gain", {})
    pure = {domain: round(mean + OFFSET[domain] + gain.get(domain, 0.0), 4) for domain in DOMAINS}
    return {
        "name": name,
        "label": label,
        "kind": kind,
        "pure": pure,
        "pure_mean": round(sum(pure.values()) / len(pure), 4),
        "pure_se": more.get("se", 0.008),
        "switching": switching,
        "switching_se": None if switching is None else 0.017,
        "cost": cost,
        "cost_switching": more.get("cost_switching", cost),
        "flops": 3.7e6 * cost,
        "flops_switching": 3.7e6 * more.get("cost_switching", cost),
        "tokens_per_s": more.get("speed", round(8200 / cost, 1)),
        "peak_memory_mb": more.get("memory", round(210 + 31 * cost, 1)),
        "note": more.get("note", ""),
        **({"merge": more["merge"]} if "merge" in more else {}),
    }


def systems() -> list[Any]:
    experts = {"code": 1.911, "novels": 1.942, "manuals": 1.921, "maths": 2.013}
    oracle = "over the four domain experts"
    rows = [
        system("fused_soft", "Fused, soft", "fused", 1.329, 3.03, 6.0),
        system("fused_hard", "Fused, hard top-1", "fused", 1.352, 3.08, 1.07, cost_switching=1.11, speed=6120.4),
        system("trunk", "Trunk", "trunk", 1.763, 3.83, 1.0),
        system("best_single", "Best single expert", "expert", 1.911, 4.02, 1.0, gain={"code": -0.5, "maths": 0.5}),
    ]
    for name, mean in experts.items():
        gain = {domain: -0.62 if domain == name else 0.21 for domain in DOMAINS}
        rows.append(system(f"expert_{name}", f"Expert {name}", "expert", mean, 4.1 + mean / 9, 1.0, gain=gain))
    rows += [
        system("merge_soup", "Uniform soup", "merge", 2.027, 4.29, 1.0),
        system("merge_ties", "TIES, density 0.5", "merge", 2.101, 4.41, 1.0, merge=TIES),
        system("merge_main", "Task arithmetic, scale 0.6", "merge", 4.03, 8.05, 1.0),
        system("self_stitch", "Self-stitch", "control", 1.741, 3.74, 6.0),
        system("continued_trunk", "Trunk trained on", "control", 1.575, 3.49, 1.0),
        system("ensemble_uniform", "Ensemble, uniform", "ensemble", 1.544, 3.41, 5.0),
        system("ensemble_posterior", "Ensemble, posterior-weighted", "ensemble", 1.302, 3.18, 5.0),
        system("whole_model_by_prompt", "Whole model by prompt", "routing", 1.338, 4.21, 1.0),
        system("oracle_sequence", "Oracle per sequence", "oracle", 1.302, 4.19, 1.0, note=oracle),
        system("oracle_segment", "Oracle per segment", "oracle", 1.302, 3.01, 1.0, note=oracle),
    ]
    return rows


def routing() -> dict[str, Any]:
    chance = random.Random(0)
    positions = []
    for position in range(4):
        experts = ["anchor", "code", "novels", "manuals", "maths"] + (["maths_gpt2"] if position == 0 else [])
        by_domain = {}
        for domain in DOMAINS:
            raw = [chance.uniform(0.002, 0.03) + (0.9 if expert == domain else 0.0) for expert in experts]
            if domain == "maths" and "maths_gpt2" in experts:
                raw[experts.index("maths_gpt2")] = 0.55
            share = [value / sum(raw) for value in raw]
            entropy = -sum(p * math.log(p) for p in share)
            by_domain[domain] = {"utilisation": [round(p, 4) for p in share], "entropy_nats": round(entropy, 4)}
        positions.append({"position": position, "experts": experts, "by_domain": by_domain})
    processed = {
        domain: {expert: 15200 if expert == domain else chance.randrange(90, 900) for expert in positions[0]["experts"]}
        for domain in DOMAINS
    }
    tokens = []
    for domain in DOMAINS:
        text, expert = TEXT[domain], "anchor"
        pieces = [text[i : i + 4] for i in range(0, len(text), 4)]
        for i, piece in enumerate(pieces):
            expert = expert if i < 2 else domain
            tokens.append({"text": piece, "expert": expert, "domain": domain, "path": [expert] * 4})
        tokens[-3]["expert"] = "maths_gpt2" if domain == "maths" else domain
        tokens[-3]["path"] = [tokens[-3]["expert"], domain, "anchor", domain]
    return {
        "positions": positions,
        "processed": processed,
        "sample": [{"title": "Test text that switches domain", "tokens": tokens}],
    }


def retention(rows: list[Any]) -> list[dict[str, Any]]:
    pure = {row["name"]: row["pure"] for row in rows}
    out = []
    for domain in DOMAINS:
        own, soft, hard = (pure[name][domain] for name in (f"expert_{domain}", "fused_soft", "fused_hard"))
        kept = {"kept_soft": round(own / soft, 4), "kept_hard": round(own / hard, 4)}
        out.append({"expert": domain, "domain": domain, "own": own, "soft": soft, "hard": hard, **kept, "given": 0.93})
    return out


def calibration() -> dict[str, Any]:
    bins = [{"confidence": p, "accuracy": round(p - 0.02, 4), "share": 0.25} for p in (0.15, 0.35, 0.65, 0.95)]
    return {name: {"error": 0.02, "bins": bins} for name in ("trunk", "fused_soft", "fused_hard")}


def curve() -> list[dict[str, Any]]:
    chance = random.Random(1)
    points = []
    for step in range(1, 161, 3):
        decay = math.exp(-step / 40)
        lm = 3.05 + 0.8 * decay + chance.gauss(0, 0.03)
        parts = {"balance": 1.0 + 0.4 * decay, "entropy": 0.9 * decay - 0.7, "adapter": 0.02 * (1 - decay)}
        loss = lm + 0.01 * parts["balance"] + 0.02 * parts["entropy"] + parts["adapter"]
        point = {"step": step, "loss": loss, "lm": lm, **parts}
        point = {key: round(value, 4) for key, value in point.items()}
        points.append({**point, "validation": round(lm + 0.03, 4) if step % 30 == 1 else None})
    return points


def example() -> dict[str, Any]:
    return {
        "schema_version": 1,
        "seed": 0,
        "units": {
            "pure": "bits_per_byte",
            "switching": "nats_per_token",
            "cost": "tokens processed by experts, in units of one expert",
        },
        "domains": DOMAINS,
        "systems": systems(),
        "headline": {
            "gap_closed_soft": 0.941,
            "gap_closed_hard": 0.892,
            "switching_hard_minus_posterior_ensemble": -0.1,
            "cost_hard_switching": 1.11,
            "beats_every_static_merge": True,
            "beats_self_stitch": True,
            "least_kept_soft": 0.969,
            "least_kept_hard": 0.944,
            "worst_against_best_single_soft": 0.031,
            "worst_against_best_single_hard": 0.059,
            "calibration_error_soft": 0.02,
            "calibration_error_hard": 0.02,
            "flops_hard": 1.07,
            "flops_hard_switching": 1.11,
        },
        "retention": retention(systems()),
        "calibration": calibration(),
        "layers": [
            {
                "expert": "code",
                "cka": [[1.0, 0.6, 0.3], [0.7, 0.95, 0.5], [0.2, 0.6, 0.9]],
                "fit": [[0.91]],
                "trunk_cuts": [1],
                "taken": [[1, 1]],
                "measure": "fit",
                "least": 0.8,
            }
        ],
        "routing": routing(),
        "training": {"curve": curve()},
        "corpus": {
            "domains": {
                name: {"test_bytes": 61000 + 97 * i, "test_tokens": 17300 + 31 * i} for i, name in enumerate(DOMAINS)
            },
            "sha256": "4b" * 32,
        },
        "parameters": {
            "seed": 0,
            "router": {"type": "topk", "topk": {"k": 1, "window": 32, "catch_up": 16}},
            "adapter": {"type": "linear", "linear": {"rank": 64}},
        },
        "provenance": {
            "git_revision": "0123456789abcdef0123456789abcdef01234567",
            "mango_version": "0.1.0",
            "device": "CPU, 2 threads",
            "packages": {"torch": "2.13.0", "transformers": "5.23.0"},
            "commands": ["dvc repro evaluate"],
        },
    }


if __name__ == "__main__":
    path = Path(__file__).with_name("example.json")
    path.write_text(json.dumps(example(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
