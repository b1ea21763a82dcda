"""What extraction by reference costs, and how fast models that cannot be extracted are refused.

    python benchmarks/extraction.py

Three measurements, each of whole processes, wall clock and peak memory as the kernel counts it:

- `mango extract` of a sharded checkpoint of 8 billion parameters, all of it holes, with a tokenizer of 128,000 entries;
  beside it, in turn, a process that does nothing but import torch and transformers' models, which is the least that
  watching a model would take;
- a forward pass of one of its blocks from the store, and how much of the weight files that mapped in;
- every way in (`mango inspect`, `mango extract`, the stage) on every kind of bad model.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1"}

from mango.console import table
from tests.blocks.bad_models import BAD
from tests.blocks.sparse import BIG, sparse_model

REPORT = Path(__file__).parents[1] / "build" / "extraction.json"
MANGO = "import sys; from mango.cli.app import main; main(sys.argv[1:])"
LIBRARIES = "import torch; from transformers import PreTrainedModel, LlamaForCausalLM"
BLOCK = """
import sys, torch
from mango.blocks import BlockStore
def mapped():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssFile:"))) * 1024
store = BlockStore.open(sys.argv[1])
store.load_block("big", 0)
before = mapped()
block = store.load_block("big", 17)
with torch.no_grad():
    rotary = (torch.ones(1, 1, 128, dtype=torch.bfloat16),) * 2
    block(torch.ones(1, 1, 4096, dtype=torch.bfloat16), position_embeddings=rotary)
print(mapped() - before, store.block("big", 17).num_bytes)
"""


def measure(arguments: Sequence[str], cwd: Path) -> dict[str, Any]:
    """Run a process and return its exit code, seconds, CPU seconds and peak MiB."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    said = process.stdout.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return {
        "code": process.returncode,
        "seconds": time.perf_counter() - started,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss / 1024,
        "said": said,
    }


def spread(values: Sequence[float]) -> str:
    """Return the median with the least and the largest value."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    """Measure, print tables and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        sparse_model(root / "big", **BIG, tokens=128_000)
        sides = {
            "mango extract": ("-c", MANGO, "extract", "big", "--out", "store"),
            "import torch and transformers": ("-c", LIBRARIES),
        }
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for repeat in range(chosen.repeats + 1):
            for side, arguments in sides.items():
                done = measure(arguments, root)
                assert done["code"] == 0, done["said"]
                if repeat:  # the first is a warm-up
                    runs[side].append(done)
        rows = [
            [side, *(spread([run[key] for run in own]) for key in ("seconds", "cpu_s", "peak_mib"))]
            for side, own in runs.items()
        ]
        ratio = [a["seconds"] / b["seconds"] for a, b in zip(*runs.values(), strict=True)]
        rows.append(["ratio", spread(ratio), "", ""])
        print(table(rows, ["8B checkpoint of holes, 5 shards", "seconds", "CPU seconds", "peak MiB"]))
        done = measure(("-c", BLOCK, str(root / "store")), root)
        assert done["code"] == 0, done["said"]
        mapped, size = map(int, done["said"].splitlines()[-1].split())
        print(f"\na block of {size / 2**20:.0f} MiB, opened and run: {mapped / 2**20:.0f} MiB of the files mapped in\n")
        refusals = refuse(root)
        print(table([list(row.values()) for row in refusals], ["bad model", "way in", "seconds", "peak MiB", "code"]))
    REPORT.parent.mkdir(exist_ok=True)
    document = {
        "command": f"python benchmarks/extraction.py --repeats {chosen.repeats}",
        "extraction": {s: [{k: v for k, v in r.items() if k != "said"} for r in own] for s, own in runs.items()},
        "ratio": ratio,
        "block_bytes": size,
        "mapped_bytes": mapped,
        "refusals": refusals,
    }
    REPORT.write_text(json.dumps(document, indent=1) + "\n")


def refuse(root: Path) -> list[dict[str, Any]]:
    """Return how each way in refuses each bad model, the slower of two runs."""
    rows = []
    for number, (kind, (make, words)) in enumerate(BAD.items()):
        folder = root / f"case{number}"
        make(folder / "bad")
        (folder / "params.yaml").write_text("models:\n  base: {source: bad}\n")
        ways = {
            "inspect": ("-c", MANGO, "inspect", "bad"),
            "extract": ("-c", MANGO, "extract", "bad", "--out", "store"),
            "stage": ("-m", "stages.extract_blocks"),
        }
        for way, arguments in ways.items():
            done = max((measure(arguments, folder) for _ in range(2)), key=lambda run: run["seconds"])
            assert words in done["said"], done["said"]
            rows.append(
                {
                    "model": kind,
                    "way": way,
                    "seconds": round(done["seconds"], 2),
                    "peak_mib": round(done["peak_mib"]),
                    "code": done["code"],
                }
            )
    return rows


if __name__ == "__main__":
    main()
