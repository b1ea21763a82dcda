"""Mutated headers, indexes, configurations, tokenizers and merge documents: opened, or refused with a MangoError.

    python -m tests.robustness.fuzz --cases 100000

Each case runs in a worker process that may take 512 MB beyond what it holds after its imports, and 5 s. A worker that
dies is a crash of its case. Every case follows from the seed and its number alone: ``--only NUMBER`` runs one again.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

LIMIT_S = 5.0
LIMIT_BYTES = 512 * 2**20
KILL_S = 60.0
REPORT = Path(__file__).parents[2] / "build" / "fuzz.json"


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def run_case(kind: str, seed: int, number: int, root: Path) -> dict[str, Any]:
    """Run one case and return how it ended, with its time and memory."""
    from mango.errors import MangoError
    from tests.robustness.cases import CASES

    folder = root / "case"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    run = CASES[kind](Random(f"{seed} {kind} {number}"), folder)
    gc.collect() if number % 200 < len(CASES) else None
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is resident now
    before = _status("VmHWM")
    wall, cpu = time.perf_counter(), time.process_time()
    problem = None
    try:
        run()
        outcome = "opened"
    except MangoError as error:
        outcome = "refused"
        if not str(error).strip():
            problem = "an error without a message"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome = "failed"
        problem = f"{type(error).__name__}: {str(error)[:300]}\n{(traceback.format_exc(limit=-6)[:1800])}"
    result = {
        "outcome": outcome,
        "problem": problem,
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "bytes": max(0, _status("VmHWM") - before),
    }
    if result["cpu_s"] > LIMIT_S:
        result |= {"outcome": "slow", "problem": f"took {result['cpu_s']:.1f} s"}
    if result["bytes"] > LIMIT_BYTES:
        result |= {"outcome": "large", "problem": f"took {result['bytes'] >> 20} MiB"}
    return result


def _work(connection: Connection, seed: int) -> None:
    os.environ.update({"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "critical"})
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    import logging
    import warnings

    import torch
    from transformers.utils import logging as theirs

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    theirs.disable_progress_bar()
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)  # a panic of a library in Rust writes there, and is counted by its exception
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        root = Path(name)
        from tests.robustness.cases import CASES

        for number, kind in enumerate(CASES):  # what the first use imports belongs to no case
            run_case(kind, -1, number, root)
        limit = _status("VmData") + LIMIT_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        while True:
            job = connection.recv()
            if job is None:
                return
            kind, number = job
            connection.send(run_case(kind, seed, number, root))


class Worker:
    """A process that runs cases, started anew when one ends it."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, self._seed), daemon=True)
        self._process.start()
        theirs.close()

    def give(self, kind: str, number: int) -> None:
        """Start a case."""
        self._connection.send((kind, number))
        self._since = time.monotonic()

    def take(self) -> dict[str, Any]:
        """Return how the case ended."""
        try:
            if not self._connection.poll(KILL_S):
                self._process.kill()
            return dict(self._connection.recv())
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            self._start()
            spent = time.monotonic() - self._since
            what = "hung" if spent >= KILL_S else "crashed"
            return {
                "outcome": what,
                "problem": f"the process ended with {code}",
                "wall_s": spent,
                "cpu_s": spent,
                "bytes": 0,
            }

    def stop(self) -> None:
        """End the process."""
        self._connection.send(None)
        self._process.join(30)


def fuzz(cases: int, *, seed: int = 0, workers: int = 1, first: int = 0) -> dict[str, Any]:
    """Run so many cases, in turn of every kind, and return the report."""
    from tests.robustness.cases import CASES

    kinds = list(CASES)
    crew = [Worker(seed) for _ in range(workers)]
    outcomes: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    worst = {kind: {"wall_s": 0.0, "cpu_s": 0.0, "bytes": 0} for kind in kinds}
    failures: list[dict[str, Any]] = []
    started = time.perf_counter()
    numbers = range(first, first + cases)
    for at in range(0, len(numbers), workers):
        batch = list(zip(crew, numbers[at : at + workers], strict=False))
        for worker, number in batch:
            worker.give(kinds[number % len(kinds)], number)
        for worker, number in batch:
            kind = kinds[number % len(kinds)]
            result = worker.take()
            outcomes[kind][result["outcome"]] += 1
            for key in worst[kind]:
                worst[kind][key] = max(worst[kind][key], result[key])
            if result["problem"]:
                failures.append({"kind": kind, "number": number, **result})
                print(f"{kind} {number}: {result['outcome']}: {result['problem']}", file=sys.stderr)
        if at and at % 5000 < workers:
            print(f"{at} cases, {len(failures)} failures, {time.perf_counter() - started:.0f} s", file=sys.stderr)
    for worker in crew:
        worker.stop()
    return {
        "cases": cases,
        "seed": seed,
        "limits": {"seconds": LIMIT_S, "bytes": LIMIT_BYTES},
        "failures": failures,
        "kinds": {kind: {"outcomes": dict(outcomes[kind]), **worst[kind]} for kind in kinds},
        "seconds": time.perf_counter() - started,
    }


def table(report: dict[str, Any]) -> str:
    """Return the report as a table."""
    from mango.console import table as draw

    rows = [
        [
            kind,
            sum(found["outcomes"].values()),
            found["outcomes"].get("opened", 0),
            found["outcomes"].get("refused", 0),
            sum(n for name, n in found["outcomes"].items() if name not in ("opened", "refused")),
            round(found["cpu_s"], 2),
            round(found["wall_s"], 2),
            round(found["bytes"] / 2**20),
        ]
        for kind, found in report["kinds"].items()
    ]
    return draw(rows, ["kind", "cases", "opened", "refused", "failed", "most cpu s", "most wall s", "most MiB"])


def main() -> None:
    """Run the fuzzer and write its report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", type=int, help="run this case alone")
    parser.add_argument("--out", type=Path, default=REPORT)
    given = parser.parse_args()
    if given.only is not None:
        report = fuzz(1, seed=given.seed, first=given.only)
    else:
        report = fuzz(given.cases, seed=given.seed, workers=given.workers)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))
    print(f"{report['cases']} cases, {len(report['failures'])} failures, {report['seconds']:.0f} s; {given.out}")
    sys.exit(1 if report["failures"] else 0)


if __name__ == "__main__":
    main()
