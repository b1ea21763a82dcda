"""Train and evaluate the fused model over several seeds; print means with their standard errors.

``python benchmarks/fusion.py --seeds 0 1 2 --out docs/results/fusion.json`` reads params.yaml, as the pipeline does,
and takes changes to it with ``--set``. Everything else (block store, merges) is made in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import transformers

from mango import console
from mango.blocks import BlockStore, extract
from mango.evaluation import Subjects, evaluate_all
from mango.merging import merge
from mango.training import Job, train_all
from stages.params import Params, load_params


def measure(params: Params, seed: int, root: Path, device: str) -> dict[str, Any]:
    """Return the evaluation of one seed."""
    transformers.utils.logging.disable_progress_bar()
    store = BlockStore.open(root / "blocks")
    folder = root / f"seed-{seed}"
    job = Job(seed, params.corpus, params.fusion, params.router, params.adapter, params.train)
    start = time.monotonic()
    train_all(
        job,
        store,
        out=folder / "fused",
        controls=folder / "controls",
        work=folder / "work",
        device=device,
    )
    trained = time.monotonic() - start
    evaluation = evaluate_all(
        Subjects(folder / "fused", store, root / "merged", folder / "controls"),
        params.corpus,
        params.evaluate,
        seed=seed,
        device=device,
    )
    record = json.loads((folder / "fused" / "training.json").read_text())
    return {
        "seed": seed,
        "train_s": trained,
        "evaluate_s": time.monotonic() - start - trained,
        "starts": record["starts"],
        "headline": evaluation["headline"],
        "systems": evaluation["systems"],
    }


def spread(values: list[float]) -> tuple[float, float]:
    """Return the mean and its standard error over seeds."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return statistics.mean(values), error


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return mean and standard error of every system, and of its difference to the fused model."""
    names = [system["name"] for system in runs[0]["systems"]]
    by_run = [{system["name"]: system for system in run["systems"]} for run in runs]
    out: dict[str, Any] = {"systems": {}, "headline": {}}
    for name in names:
        entry: dict[str, Any] = {"label": by_run[0][name]["label"]}
        for key in ("pure_mean", "switching", "cost", "cost_switching"):
            values = [systems[name][key] for systems in by_run if systems[name][key] is not None]
            entry[key] = spread(values) if values else None
        for mode in ("fused_soft", "fused_hard"):
            for key in ("pure_mean", "switching"):
                entry[f"{key}_minus_{mode}"] = spread([s[name][key] - s[mode][key] for s in by_run])
        out["systems"][name] = entry
    for key, value in runs[0]["headline"].items():
        if isinstance(value, float):
            out["headline"][key] = spread([run["headline"][key] for run in runs])
        else:
            out["headline"][key] = all(run["headline"][key] for run in runs)
    return out


def shown(summary: dict[str, Any]) -> str:
    """Return the table and the headline as text."""

    def cell(pair: tuple[float, float] | None) -> str:
        return "-" if pair is None else f"{pair[0]:.3f} ±{pair[1]:.3f}"

    rows = [
        [entry["label"], *(cell(entry[key]) for key in ("pure_mean", "switching", "cost", "cost_switching"))]
        for entry in summary["systems"].values()
    ]
    header = ["system", "bits per byte", "nats, switching", "cost", "cost, switching"]
    lines = [console.table(rows, header), ""]
    for key, value in summary["headline"].items():
        lines.append(f"{key}: {value if isinstance(value, bool) else cell(value)}")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--parallel", type=int, default=1, help="seeds at a time, each in a process of its own")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    params = load_params(args.params, overrides=args.changes)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        extract(params.models, root / "blocks", "reference")
        for name, document in params.merge.all_documents().items():
            merge(document, root / "merged" / name, params.models)
        if args.parallel > 1:
            with ProcessPoolExecutor(args.parallel, mp_context=get_context("spawn")) as pool:
                runs = list(pool.map(partial(measure, params, root=root, device=args.device), args.seeds))
        else:
            runs = [measure(params, seed, root, args.device) for seed in args.seeds]
    summary = summarise(runs)
    result = {
        "command": " ".join(
            ["python benchmarks/fusion.py --seeds", *map(str, args.seeds), *(f"--set {c}" for c in args.changes)]
        ),
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "runs": runs,
        "summary": summary,
    }
    console.result(result["command"])
    console.result(shown(summary))
    console.result(f"starts: {runs[0]['starts']}")
    console.result(
        f"seconds: train {[round(r['train_s']) for r in runs]}, evaluate {[round(r['evaluate_s']) for r in runs]}"
    )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
