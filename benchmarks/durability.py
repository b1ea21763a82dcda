"""What durable writing costs: a folder that survives a power cut, beside a plain save of the same tensors.

    python benchmarks/durability.py

All sides write the same tensors to the same disk over an older version, in turn, in one process, each with nothing left
to write when it begins (``sync`` is not timed):

- ``plain``: ``safetensors.torch.save_file``, which leaves the bytes in memory for the kernel to write some time;
- ``plain, on disk``: the same and an ``fsync`` of file and folder: what the disk alone costs;
- ``written``: `write_tensors` inside `replace_folder`, as merges and extraction do: hashed, durable, one swap;
- ``saved``: ``save_file`` inside `replace_folder`, as ``save_pretrained`` of a trained model does.

The target is 2.5 times ``plain``. Two waits for the disk are the least that a swap of whole versions takes: everything
new must be on disk before it takes its place, and so must its place after. Where they alone take longer than the plain
save, the target cannot be met; the column ``waits`` is what two waits cost when there is next to nothing to write.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from mango.checkpoints import TensorSpec, replace_folder, write_tensors
from mango.console import table

REPORT = Path(__file__).parents[1] / "build" / "durability.json"
SIDES = ("plain", "plain, on disk", "written", "saved")


def sync(path: Path) -> None:
    """Wait until a file or the names in a folder are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def writers(root: Path, tensors: dict[str, torch.Tensor]) -> dict[str, Callable[[], None]]:
    """Return each way to write the tensors."""
    specs = [TensorSpec(name, "F32", tuple(tensor.shape)) for name, tensor in tensors.items()]
    metadata = {"format": "pt"}

    def plain() -> None:
        save_file(tensors, root / "plain.safetensors", metadata=metadata)

    def on_disk() -> None:
        save_file(tensors, root / "on_disk.safetensors", metadata=metadata)
        sync(root / "on_disk.safetensors")
        sync(root)

    def written() -> None:
        with replace_folder(root / "written") as folder:
            write_tensors(folder, specs, tensors.__getitem__)

    def saved() -> None:
        with replace_folder(root / "saved") as folder:
            save_file(tensors, folder / "model.safetensors", metadata=metadata)

    return dict(zip(SIDES, (plain, on_disk, written, saved), strict=True))


def waits(root: Path) -> float:
    """Return the seconds of two waits for the disk with next to nothing to write."""
    started = time.perf_counter()
    for number in range(2):
        (root / f"empty{number}").write_bytes(os.urandom(16))
        sync(root / f"empty{number}")
    return time.perf_counter() - started


def compare(root: Path, mebibytes: int, repeats: int) -> dict[str, float]:
    """Return median seconds of each side, and ratios to the plain save with their quartiles."""
    tensors = {f"layer.{i}": torch.randn(mebibytes * 2**20 // 4 // 16, 1).squeeze(1) for i in range(16)}
    sides = writers(root, tensors)
    for write in sides.values():
        write()
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    for _ in range(repeats):
        for name, write in sides.items():
            os.sync()
            started = time.perf_counter()
            write()
            seconds[name].append(time.perf_counter() - started)
    found = {f"{name}_s": statistics.median(values) for name, values in seconds.items()}
    os.sync()
    found["waits_s"] = statistics.median(waits(root) for _ in range(repeats))
    for name in SIDES[1:]:
        ratios = [ours / theirs for ours, theirs in zip(seconds[name], seconds["plain"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        found |= {f"{name}_ratio": middle, f"{name}_ratio_low": low, f"{name}_ratio_high": high}
    return found


def main() -> None:
    """Measure all sizes and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mebibytes", type=int, nargs="+", default=[1, 4, 16, 64, 256, 1024])
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--folder", type=Path, help="where to write; the folder for temporary files if not given")
    parser.add_argument("--out", type=Path, default=REPORT)
    given = parser.parse_args()
    results = []
    for mebibytes in given.mebibytes:
        with tempfile.TemporaryDirectory(dir=given.folder) as name:
            results.append({"mebibytes": mebibytes, **compare(Path(name), mebibytes, given.repeats)})
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"cpus": os.cpu_count(), "repeats": given.repeats, "results": results}, indent=1))
    rows = [
        [
            r["mebibytes"],
            f"{r['plain_s']:.4f}",
            f"{r['waits_s']:.4f}",
            *(f"{r[f'{n}_ratio']:.2f} ({r[f'{n}_ratio_low']:.2f}-{r[f'{n}_ratio_high']:.2f})" for n in SIDES[1:]),
        ]
        for r in results
    ]
    print(table(rows, ["MiB", "plain s", "waits s", *(f"{name}, times plain" for name in SIDES[1:])]))


if __name__ == "__main__":
    main()
