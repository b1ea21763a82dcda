"""Experts of other widths and architectures: how their adapters start, and what fusing one of them gains.

    python benchmarks/widths.py --seeds 0 1 2 --parallel 6

The trunk is the tiny base, a llama of width 192. Two strangers were trained on maths alone with the same tokenizer: the
tiny GPT-2 of width 160 and 5 blocks, and a llama of width 192 and 6 blocks with weights of its own, which this script
trains first. *Starts* cuts a stranger in two and compares starts of its adapters, on the same text in the same order.
*Joined* fuses trunk and stranger by params.yaml, uncut and cut, beside what ``fusion.layers: auto`` proposes.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fusion import spread
from study import run_jobs

GUESTS = {"maths_gpt2": ("ridge", "random"), "maths_llama": ("procrustes", "ridge", "identity", "random")}
"""How the adapters of each stranger start; between widths, the closed form is ridge regression."""
KINDS = {
    "maths_gpt2": "GPT-2 of width 160, 5 blocks",
    "maths_llama": "llama of width 192, 6 blocks, weights of its own",
}


UNDONE = """Where every token goes to one stranger of equal width, adapters that undo each other give the stranger back:
the identity, and a rotation on the way out with its inverse on the way in. So Procrustes loses nothing there, however
badly it fits the trunk (R² says so); ridge regression does. Between widths there is no such way."""


def reached(curve: dict[str, float], bound: float) -> int | None:
    """Return the first step at which a curve is as low as a bound, if it ever is."""
    return next((int(step) for step in sorted(curve, key=int) if curve[step] <= bound), None)


def cell(values: Sequence[float], digits: int = 3) -> str:
    """Return a mean with its standard error."""
    mean, error = spread(list(values))
    return f"{mean:.{digits}f} ± {error:.{digits}f}" if len(values) > 1 else f"{mean:.{digits}f}"


def starts_table(runs: Sequence[dict[str, Any]], guest: str) -> list[str]:
    """Return the section on how the adapters of a stranger start."""
    arms = {arm: [r for r in runs if (r["guest"], r["arm"]) == (guest, arm)] for arm in GUESTS[guest]}
    curves = {arm: [r["bits_per_byte"] for r in found] for arm, found in arms.items()}
    steps = sorted(curves["random"][0], key=int)
    shown = [s for s in steps if int(s) in (0, 5, 10, 20, 40, 60, 80, 100) or s == steps[-1]]
    lines = [f"### {KINDS[guest]}", "", "| start | " + " | ".join(f"step {s}" for s in shown)]
    lines[-1] += f" | as good as random after {steps[-1]} steps at step |"
    lines.append("|---" * (len(shown) + 2) + "|")
    for arm, found in curves.items():
        cells = [cell([c[s] for c in found]) for s in shown]
        when = [reached(c, r[steps[-1]]) for c, r in zip(found, curves["random"], strict=True)]
        cells.append("" if arm == "random" else ", ".join("never" if w is None else str(w) for w in when))
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    fits = {arm: found[0]["fits"] for arm, found in arms.items() if found[0]["fits"]}
    told = "; ".join(f"{arm}: " + ", ".join(f"{k} {v:.2f}" for k, v in fit.items()) for arm, fit in fits.items())
    return [*lines, "", f"R² of the closed forms, seed {arms['random'][0]['seed']}: {told}.", ""]


def joined_table(runs: Sequence[dict[str, Any]], guest: str) -> list[str]:
    """Return the section on what fusing trunk and stranger gains."""
    mine = {cut: [r for r in runs if (r["guest"], r["arm"]) == (guest, cut)] for cut in ("whole", "cut")}
    common = set.intersection(*({r["seed"] for r in found} for found in mine.values()))
    mine = {cut: [r for r in found if r["seed"] in common] for cut, found in mine.items()}
    lines = [f"### {KINDS[guest]}", "", f"Seeds: {', '.join(map(str, sorted(common)))}.", ""]
    lines += ["| system | mixture | maths | own score kept on maths | switching | cost | cost, switching |"]
    lines += ["|---|---|---|---|---|---|---|"]
    whole = mine["whole"]
    rows = [("trunk", whole, "base"), ("stranger", whole, guest)]
    rows += [(f"fused, {cut}, {mode}", found, mode) for cut, found in mine.items() for mode in ("soft", "hard")]
    for label, found, name in rows:
        systems = [r["systems"][name] for r in found]
        kept = [r["systems"][guest]["maths"] / r["systems"][name]["maths"] for r in found]
        costs = [cell([s[k] for s in systems]) if k in systems[0] else "" for k in ("cost", "cost_switching")]
        cells = [cell([s[k] for s in systems]) for k in ("mixture", "maths")]
        cells += [cell(kept), cell([s["switching"] for s in systems]), *costs]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    auto = whole[0]["auto"]
    most = max(max(row) for row in auto["fit"])
    taken = f"cuts it at {auto['taken']}" if auto["taken"] else "leaves it whole"
    lines += ["", f"`layers: auto` {taken}: the best held-out R² of any inner cut is {most:.2f}, "
              f"and it wants {auto['least']}.", ""]  # fmt: skip
    return lines


def page(result: dict[str, Any]) -> str:
    """Return the page."""
    lines = [
        "# Experts of other widths and architectures",
        "",
        f"Written by `{result['command']}` on {result['device']}, torch {result['torch']}. The "
        "trunk is the tiny base, a llama of width 192 and 4 blocks; both strangers were trained on maths alone, with "
        "the same tokenizer. Bits per byte of held-out text, nats per token on text that switches domain; means over "
        "seeds with standard errors.",
        "",
        *([result["note"], ""] if "note" in result else []),
        "## How adapters start",
        "",
        "A stranger is cut in two, and every token is routed to it, so that what is trained is its adapters alone, on "
        "maths. All else is the same in all rows, the text and its order too. Bits per byte of held-out maths, looked "
        f"at every {result['every']} steps.",
        "",
    ]
    for guest in GUESTS:
        lines += starts_table(result["starts"], guest)
    lines += [UNDONE, ""]
    lines += ["## What fusing gains", "", "Trunk and one stranger, fused and trained as params.yaml says.", ""]
    for guest in GUESTS:
        lines += joined_table(result["joined"], guest)
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark, or one of its jobs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=5, help="steps between two looks at held-out text")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--sequences", type=int, default=32, help="held-out sequences, and test sequences a domain")
    parser.add_argument("--stranger-steps", type=int, default=1000, help="training of the stranger of equal width")
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--work", type=Path, default=Path(".widths"))
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("docs/results/widths.json"))
    parser.add_argument("--job", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        import widths_jobs

        widths_jobs.run(args)
        return
    begun = time.monotonic()
    args.work.mkdir(parents=True, exist_ok=True)
    given = sys.argv[1:]

    def job(*what: object) -> list[str]:
        return [*given, "--job", *map(str, what)]

    run_jobs([job("stranger")], 1, __file__)
    jobs = [job("joined", g, cut, seed) for seed in args.seeds for g in GUESTS for cut in ("whole", "cut")]
    jobs += [job("starts", guest, arm, seed) for seed in args.seeds for guest in GUESTS for arm in GUESTS[guest]]
    run_jobs(jobs, args.parallel, __file__)
    parts = [json.loads(p.read_text()) for p in sorted((args.work / "results").glob("*.json"))]
    result = {
        "command": shlex.join(["python", "benchmarks/widths.py", *given]),
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu",
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - begun),
        "every": args.every,
        "starts": [p for p in parts if p["kind"] == "starts"],
        "joined": [p for p in parts if p["kind"] == "joined"],
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(page(result))
    print(page(result))


if __name__ == "__main__":
    main()
