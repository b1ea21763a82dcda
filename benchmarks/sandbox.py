"""What converting a checkpoint in the sandbox costs beyond a direct load of it, by size.

    python benchmarks/sandbox.py --out build/sandbox.json

Both are run in turn after a warm-up, from warm files. The conversion is a whole one: hash of the input, scanners,
sandbox, safetensors written durably with its manifest, and opened.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from mango import console
from mango.checkpoints import Checkpoint, convert_pickles
from mango.security import Tier

ALLOWED_S, ALLOWED_S_PER_GIB = 2.0, 2.0


def measure(num_bytes: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Return the times of direct loads and conversions of a checkpoint of ``num_bytes``, in seconds."""
    count = max(1, num_bytes >> 24)
    state = {f"layers.{i}.weight": torch.randn(num_bytes // count // 2).bfloat16() for i in range(count)}
    file = folder / "pytorch_model.bin"
    torch.save(state, file)
    direct, converted = [], []
    for turn in range(rounds + 1):
        start = time.perf_counter()
        loaded = torch.load(file, weights_only=False)
        middle = time.perf_counter()
        found = Checkpoint.open(convert_pickles(file, folder / "cache", tier=Tier.UNKNOWN))
        end = time.perf_counter()
        assert all(torch.equal(found.tensor(name), tensor) for name, tensor in loaded.items())
        del loaded, found
        shutil.rmtree(folder / "cache")
        if turn:
            direct.append(middle - start)
            converted.append(end - middle)
    extra = [c - d for c, d in zip(converted, direct, strict=True)]
    return {
        "mib": num_bytes / 2**20,
        "direct_s": statistics.median(direct),
        "converted_s": statistics.median(converted),
        "extra_s": statistics.median(extra),
        "extra_s_least": min(extra),
        "extra_s_most": max(extra),
        "allowed_s": ALLOWED_S + ALLOWED_S_PER_GIB * num_bytes / 2**30,
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, nargs="+", default=[1, 64, 256, 1024])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    for mib in args.mib:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(mib << 20, args.rounds, Path(folder)))
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(rows, indent=1) + "\n")
    header = list(rows[0])
    console.result(console.table([[row[key] for key in header] for row in rows], header))


if __name__ == "__main__":
    main()
