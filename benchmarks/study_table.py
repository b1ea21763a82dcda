"""Write docs/results/study.md from the JSON file that benchmarks/study.py makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from study import spread

FOLDER = Path("docs/results")
HARD = "fused, hard, sticky 4"
INTRODUCTION = """# The fusion study

Written by `python benchmarks/study_table.py` from `study.json`. A base of 15.7M parameters (8 blocks of width 384,
vocabulary 4,096) is trained 200 steps on five domains, and one expert a domain 300 steps from it; they are cut at every
second block and fused, with 80 steps for adapters and routers. The recipe: each router gathers evidence from single
states (`window: 1`, `switch: 0.01`), and hard routing sticks to its expert until another is 4 nats more probable
(`stickiness: 4`). A figure is the mean over three seeds with its standard error; seeds change training text, starts and
test sequences, and the source models are the same. Pure and composite text are in bits per byte, text that switches
domain every 128 tokens in nats per token, cost is tokens that experts really processed, in units of one expert.
"""


def cell(values: list[float], digits: int = 3) -> str:
    """Return a mean with its standard error."""
    mean, error = spread(values)
    return f"{mean:.{digits}f} ± {error:.{digits}f}" if len(values) > 1 else f"{mean:.{digits}f}"


def gap(systems: dict[str, Any], name: str) -> float:
    """Return the share of the gap from trunk to per-sequence oracle that a system closes on pure text."""
    trunk, oracle = systems["base"]["pure"], systems["oracle, sequence"]["pure"]
    return float((trunk - systems[name]["pure"]) / (trunk - oracle))


def retention(systems: dict[str, Any], name: str) -> list[float]:
    """Return how much of each expert's strength is kept on its domain: its bits over those of the system."""
    bits = systems[name]["bits"]
    return [systems[d]["bits"][d] / bits[d] for d in bits if d in systems]


def main() -> None:
    """Write the page."""
    result = json.loads((FOLDER / "study.json").read_text())
    parts = result["parts"]
    runs = [parts[name]["systems"] for name in sorted(parts) if name.startswith("main-")]
    first = parts["main-evidence-0"]

    def over(make: Any) -> list[float]:
        return [make(systems) for systems in runs]

    def bound(good: bool) -> str:
        return "met" if good else "missed"

    soft = over(lambda s: gap(s, "fused, soft"))
    hard = over(lambda s: gap(s, HARD))
    cost = over(lambda s: s[HARD]["tokens"]["pure"])
    turning = over(lambda s: s[HARD]["switching"] / s["ensemble, posterior"]["switching"])
    turning_cost = over(lambda s: s[HARD]["tokens"]["switching"])
    mixed = over(lambda s: s[HARD]["composite"] - s["oracle, sequence"]["composite"])
    kept = over(lambda s: sum(retention(s, "fused, soft")) / 5)
    least = over(lambda s: min(retention(s, "fused, soft")))
    stitch = over(lambda s: s[HARD]["pure"] - s["self-stitch"]["pure"])
    matched = "trunk trained further, as long as"
    one = over(lambda s: s[HARD]["pure"] - s[f"{matched} expert"]["pure"])
    every = over(lambda s: s[HARD]["pure"] - s[f"{matched} all"]["pure"])
    every_turning = over(lambda s: s[HARD]["switching"] - s[f"{matched} all"]["switching"])
    lines = [INTRODUCTION, f"`{result['command']}` on {result['device']}, {result['seconds']['all']} s.", ""]
    lines += ["| claim | wanted | found | |", "|---|---|---|---|"]
    rows = [
        ("gap from trunk to oracle that soft routing closes, pure text", "at least 0.97", soft, min(soft) >= 0.97),
        ("the same, hard top-1", "at least 0.94", hard, min(hard) >= 0.94),
        ("its cost", "at most 1.1", cost, max(cost) <= 1.1),
        ("hard top-1 over posterior-weighted ensemble, switching", "at most 0.97", turning, max(turning) <= 0.97),
        ("its cost, switching", "at most 1.15", turning_cost, max(turning_cost) <= 1.15),
        ("hard top-1 minus per-sequence oracle, composites, bits", "below 0", mixed, max(mixed) < 0),
        ("retention of the experts, soft, mean", "at least 0.98", kept, min(kept) >= 0.98),
        ("retention of the experts, soft, least", "at least 0.98", least, min(least) >= 0.98),
        ("hard top-1 minus self-stitch, pure, bits", "below 0 by 2 errors", stitch, max(stitch) < 0),
        ("hard top-1 minus trunk trained as long as one expert, pure, bits", "below 0 by 2 errors", one, max(one) < 0),
        (
            "hard top-1 minus trunk trained as long as all experts, pure, bits",
            "below 0 by 2 errors",
            every,
            max(every) < 0,
        ),
        ("the same, switching, nats", "below 0 by 2 errors", every_turning, max(every_turning) < 0),
    ]
    lines += [f"| {text} | {wanted} | {cell(values)} | {bound(good)} |" for text, wanted, values, good in rows]
    flops = first["systems"]["fused, hard, sticky 2"]["flops"]
    lines += [
        "",
        "Floating-point operations of matrix products and attention, counted by torch over two sequences of each text "
        f"with stickiness 2, seed 0, beside one whole expert: {flops['pure']:.3f} on pure text, "
        f"{flops['switching']:.3f} on text that switches. "
        "They were not counted with stickiness 4, which processes fewer tokens.",
        "",
        "## All systems",
        "",
        "| system | pure | switching | composite | cost, pure | cost, switching |",
        "|---|---|---|---|---|---|",
    ]
    for name in runs[0]:
        cells = [cell(over(lambda s, n=name, k=key: s[n][k])) for key in ("pure", "switching", "composite")]
        tokens = runs[0][name].get("tokens")
        cells += [
            cell(over(lambda s, n=name, k=key: s[n]["tokens"][k])) if tokens else "" for key in ("pure", "switching")
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "## Other routers, seed 0", ""]
    lines += ["| router | gap, soft | gap, hard | cost, hard | switching, hard | composite, hard | cost, switching |"]
    lines += ["|---|---|---|---|---|---|---|"]
    others = [("evidence, stickiness 4", first["systems"], HARD), ("evidence", first["systems"], "fused, hard")]
    others += [
        (parts[name]["recipe"], parts[name]["systems"], "fused, hard")
        for name in sorted(parts)
        if name.startswith("compare-")
    ]
    for label, s, mode in others:
        tokens = s[mode]["tokens"]
        values = [gap(s, "fused, soft"), gap(s, mode), tokens["pure"], s[mode]["switching"], s[mode]["composite"]]
        lines.append(f"| {label} | " + " | ".join(f"{v:.3f}" for v in (*values, tokens["switching"])) + " |")
    lines += ["", "## Number of experts, seed 0", ""]
    lines += [
        "Experts beyond five are trained 100 steps, on domains that the base never saw; fused models 48 steps.",
        "",
    ]
    lines += ["| experts | gap, soft | gap, hard | cost, hard | routing accuracy | least share of its own domain |"]
    lines += ["|---|---|---|---|---|---|"]
    for number in sorted(p["experts"] for n, p in parts.items() if n.startswith("number-")):
        part = parts[f"number-evidence-{number}"]
        s = part["systems"]
        shares = s["fused, hard"]["shares"]
        own = min(shares[d][d] for d in shares if d in s)
        values = [
            gap(s, "fused, soft"),
            gap(s, "fused, hard"),
            s["fused, hard"]["tokens"]["pure"],
            part["accuracy"],
            own,
        ]
        lines.append(f"| {number} | " + " | ".join(f"{v:.3f}" for v in values) + " |")
    lines += ["", "## The budget, seed 0", ""]
    lines += ["| mass | pure | cost | switching | cost, switching |", "|---|---|---|---|---|"]
    hard_row = first["systems"]["fused, hard"]
    for entry in [{"mass": 0.0, **hard_row}, *first["budget"], {"mass": 1.0, **first["systems"]["fused, soft"]}]:
        tokens = entry["tokens"]
        values = [entry["pure"], tokens["pure"], entry["switching"], tokens["switching"]]
        lines.append(f"| {entry['mass']} | " + " | ".join(f"{v:.3f}" for v in values) + " |")
    errors = {
        m: [parts[n]["calibration_error"][m] for n in sorted(parts) if n.startswith("main-")] for m in ("soft", "hard")
    }
    lines += ["", "## Calibration", ""]
    lines += ["Expected calibration error of next-token probabilities on pure text, ten bins: "
              f"soft {cell(errors['soft'])}, hard {cell(errors['hard'])}.", ""]  # fmt: skip
    lines += [NEGATIVE]
    (FOLDER / "study.md").write_text("\n".join(lines))


NEGATIVE = """## What did not work
- A trunk that is trained as long as all experts together is better than the fused model on pure text, on text that
  switches and on composites. It is also better than the per-sequence oracle, so no routing of these experts could beat
  it on pure text: experts of this size, branched this early, do not pay for their training there.
- Soft routing stays below 0.97 of the gap, and retention below 98%: what is lost is routing on unclear tokens. The
  ensemble that weighs experts by their own likelihood loses next to nothing.
- With eight and sixteen experts routers find the best one less often and switch more, and one of them gets a small part
  of its own domain only.
- Evidence alone switches more often than a window of 32 states; without stickiness it costs more than it gains on pure
  text.
"""


if __name__ == "__main__":
    main()
