"""Merge three 8B-shaped bfloat16 models on the CPU and on an accelerator, against the speed of copying as many bytes.

    python benchmarks/merging_large.py --folder /dev/shm/merging --devices cpu cuda

Copying means: every byte of the three models is read, and as many as one of them has are written and made durable: what
any merge must do. It is done by one thread and by as many as there are processors, and the faster is
the measure. All runs take turns, from a warm page cache; one of each is thrown away. The share is copying time divided
by merging time: 1 would be the speed of copying. `--layers 2 --width 512` is a small form for any machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1"}

import torch

import mango
from mango.checkpoints import TensorSpec
from mango.checkpoints.writer import index_text, shard_header, shard_names, split_shards
from mango.console import note, result, table

REPORT = Path(__file__).parents[1] / "build" / "merging_large.json"
BUFFER = 1 << 24


def config(layers: int, width: int, vocabulary: int) -> dict[str, Any]:
    """Return a Llama configuration in the proportions of its 8B model."""
    return {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "bfloat16", "hidden_size": width,
        "intermediate_size": width * 7 // 2, "num_hidden_layers": layers, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": vocabulary, "tie_word_embeddings": False,
    }  # fmt: skip


def specs(layers: int, width: int, vocabulary: int) -> list[TensorSpec]:
    """Return its tensors."""
    inner, few = width * 7 // 2, width // 4
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width)}
    for i in range(layers):
        block = f"model.layers.{i}."
        attention = {"q": (width, width), "k": (few, width), "v": (few, width), "o": (width, width)}
        shapes |= {f"{block}self_attn.{part}_proj.weight": shape for part, shape in attention.items()}
        shapes |= {f"{block}mlp.{part}_proj.weight": (inner, width) for part in ("gate", "up")}
        shapes[f"{block}mlp.down_proj.weight"] = (width, inner)
        shapes |= {f"{block}{part}_layernorm.weight": (width,) for part in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (width,), "lm_head.weight": (vocabulary, width)}
    return [TensorSpec(name, "BF16", shape) for name, shape in shapes.items()]


def make_models(root: Path, shape: tuple[int, int, int]) -> list[Path]:
    """Write three random models: the second and third are near the first."""
    shards = split_shards(specs(*shape), 5 * 10**9)
    names = shard_names(len(shards))
    folders = [root / f"model-{seed}" for seed in range(3)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config(*shape)))
        if len(shards) > 1:
            (folder / "model.safetensors.index.json").write_text(index_text(shards))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [(seed, number) for seed in range(3) for number in range(len(shards))]
        list(pool.map(lambda job: _write(folders[job[0]] / names[job[1]], shards[job[1]], *job), jobs))
    return folders


def _write(path: Path, shard: Sequence[TensorSpec], seed: int, number: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    common, own = (torch.Generator(device).manual_seed(s) for s in (number, 1000 * (seed + 1) + number))
    with path.open("wb", buffering=0) as file:
        file.write(shard_header(shard, {"format": "pt"}))
        for spec in shard:
            values = torch.randn(spec.num_elements, generator=common, device=device).mul_(0.02)
            if seed:
                values.add_(torch.randn(spec.num_elements, generator=own, device=device), alpha=0.002)
            left = values.bfloat16().cpu().view(torch.uint8).numpy().data
            while left:
                left = left[file.write(left) :]


def copy(models: list[Path], out: Path, threads: int) -> None:
    """Read every weight file, and write of every third part as much as it has."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    jobs = [
        (file, out / file.name if folder == models[0] else None)
        for folder in models
        for file in sorted(folder.glob("*.safetensors"))
    ]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda job: _copy_file(*job), jobs))


def _copy_file(source: Path, target: Path | None) -> None:
    buffer = memoryview(bytearray(BUFFER))
    with source.open("rb", buffering=0) as file:
        if target is None:
            while file.readinto(buffer):
                pass
            return
        with target.open("wb", buffering=0) as written:
            while count := file.readinto(buffer):
                left = buffer[:count]
                while left:
                    left = left[written.write(left) :]
            os.fsync(written.fileno())


def documents(models: list[Path]) -> dict[str, dict[str, Any]]:
    """Return a document for each method."""
    first, second, third = map(str, models)
    weighted = [{"model": m, "parameters": {"weight": 0.5, "density": 0.5}} for m in (second, third)]
    return {
        "linear": {
            "merge_method": "linear", "dtype": "bfloat16",
            "models": [{"model": m, "parameters": {"weight": 1.0}} for m in (first, second, third)],
        },
        "ties": {"merge_method": "ties", "dtype": "bfloat16", "base_model": first, "models": weighted},
    }  # fmt: skip


def runs(
    models: list[Path], root: Path, devices: list[str], copying: list[int]
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield what is measured, by name."""
    for threads in copying:
        yield f"copy, {threads} threads", lambda threads=threads: copy(models, root / "copied", threads)  # type: ignore[misc]
    for name, document in documents(models).items():
        for device in devices:
            yield (
                f"{name}, {device}",
                lambda document=document, device=device: mango.merge(document, root / "merged", device=device),  # type: ignore[misc]
            )


def main() -> None:
    """Measure everything and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("build/merging_large"), help="for 70 GB")
    parser.add_argument("--devices", nargs="+", default=["cpu"])
    parser.add_argument("--copy-threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=128256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=REPORT)
    given = parser.parse_args()
    shape = given.layers, given.width, given.vocabulary
    shutil.rmtree(given.folder, ignore_errors=True)
    start = time.monotonic()
    models = make_models(given.folder, shape)
    note(f"wrote three models in {time.monotonic() - start:.0f} s")
    found: dict[str, list[float]] = {}
    for turn in range(given.repeats + 1):
        for name, run in runs(models, given.folder, given.devices, given.copy_threads):
            for other in ("copied", "merged"):
                shutil.rmtree(given.folder / other, ignore_errors=True)
            start = time.perf_counter()
            run()
            taken = time.perf_counter() - start
            note(f"{name}: {taken:.2f} s{'' if turn else ', not counted'}")
            if turn:
                found.setdefault(name, []).append(taken)
    size = sum(file.stat().st_size for folder in models for file in folder.glob("*.safetensors"))
    fastest = min(statistics.median(times) for name, times in found.items() if name.startswith("copy"))
    rows: list[dict[str, Any]] = [
        {
            "run": name,
            "seconds": statistics.median(times),
            "least": min(times),
            "most": max(times),
            "gb_per_s": size * 4 / 3 / 1e9 / statistics.median(times),
            "share_of_copying": fastest / statistics.median(times),
        }
        for name, times in found.items()
    ]
    machine = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "cpus": os.cpu_count(),
        "torch": torch.__version__,
        "parameters": sum(spec.num_elements for spec in specs(*shape)),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({**machine, "runs": rows}, indent=1) + "\n")
    result(table([list(row.values()) for row in rows], list(rows[0])))
    shutil.rmtree(given.folder)


if __name__ == "__main__":
    main()
