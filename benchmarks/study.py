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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from study_corpus import CORE

COMPOSITES = ("german_in_python", "licences_in_novels", "maths_in_german")
ORDER = (*CORE, "wikipedia", "c", "perl", "manpages", "french", "spanish", "polish", "russian", "turkish", "hungarian",
         "finnish")  # fmt: skip
BUDGETS = (0.7, 0.9, 0.97, 0.995)
STICKINESS = (1.0, 2.0, 4.0)


def recipe(train: dict[str, Any] | None = None, **topk: Any) -> dict[str, Any]:
    """Return what a recipe changes: parameters of the router, and of the training."""
    return {"router": {"type": "topk", "topk": topk}, "train": train or {}}


RECIPES: dict[str, dict[str, Any]] = {
    "evidence": recipe(window=1, switch=0.01),
    "window 32": recipe(window=32),
    "windows, hidden layer": recipe(pooling="windows", windows=[8, 32, 128], hidden=64),
    "windows 8, 32, 128": recipe(pooling="windows", windows=[8, 32, 128]),
    "evidence, window 4": recipe(window=4, switch=0.01),
    "evidence, window 16": recipe(window=16, switch=0.01),
    "evidence, windows 1, 4, 16": recipe(pooling="windows", windows=[1, 4, 16], switch=0.01),
    "evidence, hidden layer": recipe(window=1, switch=0.01, hidden=64),
    "evidence, not trained on": recipe({"steps": 0}, window=1, switch=0.01),
    "evidence, without balance": recipe({"losses": {"balance": 0.0, "entropy": 0.0}}, window=1, switch=0.01),
}
"""Recipes by name; all are trained softly, and used softly and hard."""


def run_jobs(jobs: Sequence[list[str]], parallel: int) -> None:
    """Run jobs of this script in processes of their own, so many at a time, in order; stop at the first that fails."""
    waiting, running = list(jobs), []
    while waiting or running:
        while waiting and len(running) < parallel:
            argv = waiting.pop(0)
            running.append((subprocess.Popen([sys.executable, __file__, *argv]), argv, time.monotonic()))
        time.sleep(0.2)
        for entry in list(running):
            process, argv, start = entry
            if process.poll() is not None:
                running.remove(entry)
                print(f"[{time.monotonic() - start:.0f} s] {' '.join(argv)}: {process.returncode}", flush=True)
                if process.returncode:
                    raise SystemExit(process.returncode)


def models_in(root: Path) -> list[str]:
    """Return the source models that were trained, the base first."""
    names = sorted(p.name for p in (root / "models").iterdir() if (p / "config.json").is_file())
    return ["base", *(n for n in ORDER if n in names)]


def main() -> None:
    """Run the study, or one of its jobs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=Path(".study/corpus"))
    parser.add_argument("--work", type=Path, default=Path(".study/work"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/study.json"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--experts", type=int, nargs="+", default=[2, 8, 16], help="numbers of experts of the curve")
    parser.add_argument("--recipe", default="evidence", choices=RECIPES)
    parser.add_argument("--compare", nargs="*", default=["window 32", "windows, hidden layer"], metavar="RECIPE")
    parser.add_argument("--size", default="full", choices=("full", "tiny"), help="tiny: a trial on a CPU")
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

    print(f"[{time.monotonic() - start:.0f} s] base", flush=True)
    run_jobs([job("base")], 1)
    run_jobs([job("dense", "all"), *(job("expert", d) for d in domains), job("dense", "expert")], args.parallel)
    trained = time.monotonic() - start
    jobs = [job("main", args.recipe, seed) for seed in args.seeds]
    jobs += [job("compare", name, args.seeds[0]) for name in args.compare[:1]]
    jobs += [job("number", args.recipe, n) for n in args.experts]
    jobs += [job("compare", name, args.seeds[0]) for name in args.compare[1:]]
    run_jobs(jobs, args.parallel)
    parts = {p.stem: json.loads(p.read_text()) for p in sorted((args.work / "results").glob("*.json"))}
    seeds, experts = " ".join(map(str, args.seeds)), " ".join(map(str, args.experts))
    device = "cpu"
    if args.device == "cuda":
        import torch

        device = torch.cuda.get_device_name()
    out = {
        "command": f"python benchmarks/study.py --seeds {seeds} --experts {experts} --parallel {args.parallel}",
        "device": device,
        "seconds": {"sources": round(trained), "all": round(time.monotonic() - start)},
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
