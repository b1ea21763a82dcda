"""The fusion study: what a fused model of branched experts gains over everything simpler, in one command.

    python benchmarks/study_corpus.py --packages FOLDER --out .study/corpus
    python benchmarks/study.py --corpus .study/corpus --seeds 0 1 2

It trains a base on five domains and one expert a domain branched from it, fuses them, and measures every claim: the gap
from trunk to oracle, text that switches domain, text that mixes domains, retention, controls, the number of experts,
and the budget. Jobs run side by side in processes of their own. Sources are the same for all seeds; seeds change
training text, starts, and the test sequences that are drawn.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from study_corpus import CORE

COMPOSITES = ("german_in_python", "licences_in_novels", "maths_in_german")
ORDER = (*CORE, "wikipedia", "c", "perl", "manpages", "french", "spanish", "polish", "russian", "turkish", "hungarian",
         "finnish")  # fmt: skip
BUDGETS = (0.7, 0.9, 0.97, 0.995)
STICKINESS = (1.0, 2.0, 4.0, 8.0)
HARD_STICKINESS = 4.0
"""That of the recipe; the others show what it does."""


def recipe(train: dict[str, Any] | None = None, span: int = 2, **token: Any) -> dict[str, Any]:
    """Return what a recipe changes: parameters of the router and of the training, and how finely experts are cut."""
    return {"router": {"type": "token", "token": token}, "train": train or {}, "span": span}


def start(sequences: int, mixture_steps: int = 0, router_learning_rate: float = 1e-2, **train: Any) -> dict[str, Any]:
    """Return how routers start, on so many calibration sequences a domain, and how fast they learn from there."""
    begun = {"sequences": sequences, "mixture_steps": mixture_steps}
    return {"start": begun, "router_learning_rate": router_learning_rate, **train}


SEVERAL = {"pooling": "windows", "windows": [1, 8, 32], "switch": 0.01, "hidden": 64}
WINDOWS = {"pooling": "windows", "windows": [8, 32, 128], "hidden": 64}
EVIDENCE = {"window": 1, "switch": 0.01}
SLOW = start(64, 200, 1e-3)
BELIEVED = {**SEVERAL, "posterior": True}
RECIPES: dict[str, dict[str, Any]] = {
    "posterior": recipe(start(128, 400, 1e-3), span=8, **BELIEVED),
    "posterior, 64 sequences": recipe(SLOW, span=8, **BELIEVED),
    "posterior, 256 sequences": recipe(start(256, 800, 1e-3), span=8, **BELIEVED),
    "posterior, spans of 4": recipe(SLOW, span=4, **BELIEVED),
    "whole": recipe(SLOW, span=8, **SEVERAL),
    "whole, 128 sequences": recipe(start(128, 400, 1e-3), span=8, **SEVERAL),
    "whole, wide": recipe(start(64, 400, 1e-3), span=8, **{**SEVERAL, "windows": [1, 4, 16, 64], "hidden": 256}),
    "spans of 4": recipe(SLOW, span=4, **SEVERAL),
    "spans of 2": recipe(SLOW, **SEVERAL),
    "spans of 2, untrained": recipe({**SLOW, "steps": 0}, **SEVERAL),
    "spans of 2, faster": recipe(start(64, 200), **SEVERAL),
    "spans of 2, without mixture": recipe(start(64), **SEVERAL),
    "spans of 2, windows": recipe(SLOW, **WINDOWS),
    "spans of 2, windows, without mixture": recipe(start(64), **WINDOWS),
    "spans of 2, evidence": recipe(SLOW, **EVIDENCE),
    "spans of 2, evidence, without mixture": recipe(start(64), **EVIDENCE),
    "spans of 2, evidence, 16 sequences, without mixture": recipe(start(16), **EVIDENCE),
}
"""Recipes by name; all are trained softly, and used softly and hard."""


def run_jobs(
    jobs: Sequence[list[str]], parallel: int, script: str = __file__, needs: Mapping[int, Sequence[int]] | None = None
) -> None:
    """Run jobs of a script in processes of their own, so many at a time, in order; stop after them if one fails.

    Args:
        jobs: the arguments of each.
        parallel: how many run at a time.
        script: what they are arguments of.
        needs: for the number of a job, those of jobs that have to be done before.
    """
    waiting, done, failed = list(range(len(jobs))), set[int](), 0
    running: dict[int, tuple[subprocess.Popen[bytes], float]] = {}
    while waiting or running:
        for number in [n for n in waiting if done.issuperset((needs or {}).get(n, ()))][: parallel - len(running)]:
            waiting.remove(number)
            process = subprocess.Popen([sys.executable, script, *jobs[number]])
            running[number] = (process, time.monotonic())
        time.sleep(0.2)
        for number, (process, start) in list(running.items()):
            if process.poll() is not None:
                del running[number]
                done.add(number)
                took = time.monotonic() - start
                print(f"[{took:.0f} s] {' '.join(jobs[number])}: {process.returncode}", flush=True)
                failed = failed or process.returncode
    if failed:
        raise SystemExit(failed)


def main() -> None:
    """Run the study, or one of its jobs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=Path(".study/corpus"))
    parser.add_argument("--work", type=Path, default=Path(".study/work"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/study.json"))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--experts", type=int, nargs="*", default=[2, 8, 16], help="numbers of experts of the curve")
    parser.add_argument("--recipe", default="posterior", choices=RECIPES)
    parser.add_argument(
        "--compare",
        nargs="*",
        default=["posterior, 64 sequences", "posterior, 256 sequences", "posterior, spans of 4", "whole"],
        metavar="RECIPE",
    )
    parser.add_argument(
        "--size", default="full", choices=("full", "small", "tiny"), help="small: 1M parameters; tiny: a trial"
    )
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--job", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    common = ["--corpus", str(args.corpus), "--work", str(args.work), "--size", args.size, "--device", args.device]
    if args.job:
        import study_jobs

        study_jobs.run(args)
        return
    start = time.monotonic()
    args.work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    most = max(args.experts, default=0)
    domains = [*CORE, *(d for d in ORDER[len(CORE) : most] if d not in CORE)]

    def job(*what: object) -> list[str]:
        return [*common, "--job", *map(str, what)]

    run_jobs([job("base")], 1)
    jobs: list[list[str]] = []
    needs: dict[int, list[int]] = {}

    def add(after: Sequence[int], *what: object) -> int:
        jobs.append(job(*what))
        needs[len(jobs) - 1] = list(after)
        return len(jobs) - 1

    # What trains longest comes first; what needs everything comes last.
    long = [add((), "dense", "all")] if args.seeds else []
    experts = [add((), "expert", d) for d in domains]
    core = experts[: len(CORE)]
    short = [add((), "dense", "expert"), add(core, "merge", "core")] if args.seeds else []
    for count in sorted(args.experts, reverse=True):
        add(experts[: max(count, len(CORE))], "number", args.recipe, count)
    for seed in args.seeds:
        add(core, "main", args.recipe, seed)
    for name in args.compare:
        add(core, "compare", name, 0)
    for seed in args.seeds:
        add([*long, *short], "controls", args.recipe, seed)
    run_jobs(jobs, args.parallel, needs=needs)
    parts = {p.stem: json.loads(p.read_text()) for p in sorted((args.work / "results").glob("*.json"))}
    seeds, experts = " ".join(map(str, args.seeds)), " ".join(map(str, args.experts))
    device = "cpu"
    if args.device == "cuda":
        import torch

        device = torch.cuda.get_device_name()
    out = {
        "command": f"python benchmarks/study.py --seeds {seeds} --experts {experts} --parallel {args.parallel}",
        "device": device,
        "seconds": round(time.monotonic() - start),
        "recipe": {args.recipe: RECIPES[args.recipe]},
        "parts": parts,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(out, indent=1) + "\n")
    print(f"[{time.monotonic() - start:.0f} s] wrote {args.out}", flush=True)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, 0.0
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))


if __name__ == "__main__":
    main()
