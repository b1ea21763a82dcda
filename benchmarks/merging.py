"""Merge three models of 271M parameters with mergekit and with Mango, side by side: wall time and anonymous memory.

    python benchmarks/merging.py                    # linear, slerp, task arithmetic, TIES, DARE-TIES, --help
    python benchmarks/merging.py --tensors 100000   # Mango alone: cost of a tensor from 1,000 to 100,000

Every figure is of a whole process. The two programs alternate, one run of each is thrown away, and the median of the
others is shown with the least and the most. The models are random, and are made below build/ on the first run.

Mango's result is on disk when it ends, with its hashes; mergekit leaves the bytes to the kernel. ``on disk`` compares
with mergekit's time and the wait until its files are on disk too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

ROOT = Path("build/merging")
WIDTH, LAYERS, INNER, VOCABULARY = 1024, 16, 2816, 32_000
BIN = Path(sys.executable).parent
LIMITS = {"linear": 4, "slerp": 4, "task_arithmetic": 4, "ties": 6, "dare_ties": 6, "help": 8}


def config(layers: int, width: int, inner: int, vocabulary: int) -> dict[str, Any]:
    """Return the configuration of a Llama."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": vocabulary,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "rope_theta": 10000.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def shapes() -> dict[str, tuple[int, ...]]:
    """Return the tensors of a model."""
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, WIDTH),
        "lm_head.weight": (VOCABULARY, WIDTH),
        "model.norm.weight": (WIDTH,),
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        found |= {f"{prefix}self_attn.{part}_proj.weight": (WIDTH, WIDTH) for part in "qkvo"}
        found |= {f"{prefix}mlp.{part}_proj.weight": (INNER, WIDTH) for part in ("gate", "up")}
        found[f"{prefix}mlp.down_proj.weight"] = (WIDTH, INNER)
        found |= {f"{prefix}{part}_layernorm.weight": (WIDTH,) for part in ("input", "post_attention")}
    return found


def make_models() -> list[Path]:
    """Make three random models: the second and third are near the first."""
    found = []
    for seed in range(3):
        folder = ROOT / f"model-{seed}"
        found.append(folder)
        if (folder / "config.json").is_file():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        common, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed + 1)
        tensors: dict[str, torch.Tensor] = {}
        for name, shape in shapes().items():
            start = torch.randn(*shape, generator=common) * 0.02
            step = torch.randn(*shape, generator=own) * 0.002
            tensors[name] = (start + (step if seed else 0)).bfloat16()
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config(LAYERS, WIDTH, INNER, VOCABULARY)))
    return found


def documents(models: list[Path]) -> dict[str, dict[str, Any]]:
    """Return a document for each method."""
    first, second, third = map(str, models)
    weighted = [{"model": m, "parameters": {"weight": 0.5, "density": 0.5}} for m in (second, third)]
    plain = [{"model": m, "parameters": {"weight": 0.5}} for m in (second, third)]
    made: dict[str, dict[str, Any]] = {
        "linear": {"models": [{"model": m, "parameters": {"weight": 1.0}} for m in (first, second, third)]},
        "slerp": {
            "base_model": first,
            "models": [{"model": first}, {"model": second}],
            "parameters": {"t": 0.3},
        },
        "task_arithmetic": {"base_model": first, "models": plain},
        "ties": {"base_model": first, "models": weighted},
        "dare_ties": {"base_model": first, "models": weighted},
    }
    for method, document in made.items():
        document |= {"merge_method": method, "dtype": "bfloat16"}
    return made


def wait_for_disk(folder: Path) -> float:
    """Wait until the files of a folder are on disk, and return how long that took in seconds."""
    start = time.perf_counter()
    for path in [*folder.rglob("*"), folder] if folder.is_dir() else []:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return time.perf_counter() - start


def measure(command: list[str], out: Path | None = None) -> tuple[float, float, float]:
    """Run a command and return its seconds, its most anonymous memory in MiB, and the seconds until all is on disk."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    status, most = Path(f"/proc/{child.pid}/status"), 0
    while child.poll() is None:
        try:
            text = status.read_text()
            most = max(most, int(text.split("RssAnon:")[1].split()[0]))
        except (OSError, IndexError):  # it ended between two looks
            pass
        time.sleep(0.005)
    taken = time.perf_counter() - start
    if child.returncode:
        sys.exit(f"{' '.join(command)} failed: {(child.stderr.read() if child.stderr else b'').decode()[-2000:]}")
    return taken, most / 1024, 0.0 if out is None else wait_for_disk(out)


def compare(runs: int, only: list[str]) -> list[dict[str, Any]]:
    """Measure both programs on every method, alternating."""
    models = make_models()
    rows = []
    for name, document in {**documents(models), "help": {}}.items():
        if only and name not in only:
            continue
        path = ROOT / f"{name}.yml"
        path.write_text(json.dumps(document))
        commands = {
            "mergekit": [str(BIN / "mergekit-yaml"), str(path), str(ROOT / "out-mergekit")],
            "mango": [str(BIN / "mango"), "merge", str(path), str(ROOT / "out-mango")],
        }
        if name == "help":
            commands = {
                "mergekit": [str(BIN / "mergekit-yaml"), "--help"],
                "mango": [str(BIN / "mango"), "merge", "--help"],
            }
        found: dict[str, list[tuple[float, float, float]]] = {program: [] for program in commands}
        for _ in range(runs + 1):
            for program, command in commands.items():
                found[program].append(measure(command, ROOT / f"out-{program}" if document else None))
        row: dict[str, Any] = {"method": name, "limit": LIMITS[name]}
        for program, values in found.items():
            times, memory, waits = zip(*values[1:], strict=True)
            row[program] = {
                "seconds": statistics.median(times),
                "least": min(times),
                "most": max(times),
                "anonymous_mib": statistics.median(memory),
                "on_disk_seconds": statistics.median(map(sum, zip(times, waits, strict=True))),
            }
        row["times_faster_on_disk"] = row["mergekit"]["on_disk_seconds"] / row["mango"]["on_disk_seconds"]
        row["times_faster"] = row["mergekit"]["seconds"] / row["mango"]["seconds"]
        row["times_less_memory"] = row["mergekit"]["anonymous_mib"] / row["mango"]["anonymous_mib"]
        rows.append(row)
        print(
            f"{name:16} mergekit {row['mergekit']['seconds']:6.2f} s ({row['mergekit']['least']:.2f} to "
            f"{row['mergekit']['most']:.2f}), {row['mergekit']['anonymous_mib']:5.0f} MiB; mango "
            f"{row['mango']['seconds']:6.2f} s ({row['mango']['least']:.2f} to {row['mango']['most']:.2f}), "
            f"{row['mango']['anonymous_mib']:5.0f} MiB; {row['times_faster']:.1f} times faster "
            f"(wanted {LIMITS[name]}), {row['times_faster_on_disk']:.1f} on disk; "
            f"{row['times_less_memory']:.1f} times less memory",
            flush=True,
        )
    return rows


def by_count(most: int) -> list[dict[str, Any]]:
    """Measure Mango on models of more and more small tensors."""
    rows = []
    count = 1000
    while count <= most:
        layers = count // 10
        folders = []
        for seed in range(2):
            folder = ROOT / f"many-{count}-{seed}"
            folders.append(str(folder))
            folder.mkdir(parents=True, exist_ok=True)
            generator = torch.Generator().manual_seed(seed)
            tensors = {
                f"model.layers.{layer}.part_{part}.weight": torch.randn(16, generator=generator).bfloat16()
                for layer in range(layers)
                for part in range(10)
            }
            save_file(tensors, folder / "model.safetensors", {"format": "pt"})
            (folder / "config.json").write_text(json.dumps(config(layers, 16, 16, 16)))
        path = ROOT / "many.yml"
        models = [{"model": folder, "parameters": {"weight": 1.0}} for folder in folders]
        path.write_text(json.dumps({"merge_method": "linear", "models": models}))
        seconds = min(measure([str(BIN / "mango"), "merge", str(path), str(ROOT / "out-many")])[0] for _ in range(2))
        rows.append({"tensors": count, "seconds": seconds})
        print(f"{count:7} tensors: {seconds:6.2f} s, {1e6 * seconds / count:6.0f} microseconds a tensor", flush=True)
        count *= 10
    return rows


def main() -> None:
    """Measure, and write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tensors", type=int, default=0, help="largest number of tensors; measures Mango alone")
    parser.add_argument("--only", nargs="*", default=[], choices=list(LIMITS))
    parser.add_argument("--json", type=Path, default=ROOT / "figures.json")
    given = parser.parse_args()
    ROOT.mkdir(parents=True, exist_ok=True)
    rows = by_count(given.tensors) if given.tensors else compare(given.runs, given.only)
    given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
