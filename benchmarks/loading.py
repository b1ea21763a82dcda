"""What hashing at load costs: a model opened with every check, beside a plain load of the same file.

    python benchmarks/loading.py

Both sides run in one process, in turn, from a warm page cache, the hashes forgotten before each run. Two things are
called a load, and both are measured:

- ``weights in memory``: ``from_pretrained`` with ``dtype=float32``, as Mango opens source models, of a bfloat16 file:
  every weight is read and lies in memory afterwards;
- ``mapped``: ``from_pretrained`` with ``dtype="auto"``, which maps the file and reads none of its weights; hashing must
  read them all.

The first is what the target of 1.3 is about. The second shows what the check costs somebody who would have read no
byte.
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
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from mango.checkpoints import open_model, replace_folder, vouching
from mango.console import table

REPORT = Path(__file__).parents[1] / "build" / "loading.json"


def write_model(folder: Path, mebibytes: int) -> int:
    """Write a bfloat16 model of about so many MiB with a manifest, and return the size of its weights in bytes."""
    width = 1024
    per_block = 2 * (width * width * 3 + 3 * width * 4096)
    layers = max(1, round((mebibytes * 2**20 - 2 * 8000 * width) / per_block))
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=4096,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        vocab_size=8000,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    with replace_folder(folder) as new:
        model.save_pretrained(new, max_shard_size="20GB")
    return (folder / "model.safetensors").stat().st_size


def plain(folder: Path, dtype: Any) -> None:
    """Load as transformers does, without any check."""
    AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def checked(folder: Path, dtype: Any) -> None:
    """Load as Mango does, with every hash computed anew."""
    vouching.forget()
    open_model(folder, dtype=dtype)


def seconds(run: Callable[[], None]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def compare(folder: Path, dtype: Any, repeats: int) -> dict[str, float]:
    """Return median times of both sides and of their ratio, with the quartiles of the ratio."""
    for load in (plain, checked):
        load(folder, dtype)
    pairs = [(seconds(lambda: plain(folder, dtype)), seconds(lambda: checked(folder, dtype))) for _ in range(repeats)]
    ratios = [ours / theirs for theirs, ours in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "plain_s": statistics.median(theirs for theirs, _ in pairs),
        "checked_s": statistics.median(ours for _, ours in pairs),
        "ratio": middle,
        "ratio_low": low,
        "ratio_high": high,
    }


def main() -> None:
    """Measure all sizes and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mebibytes", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=REPORT)
    given = parser.parse_args()
    logging.disable_progress_bar()
    results = []
    for mebibytes in given.mebibytes:
        with tempfile.TemporaryDirectory() as name:
            size = write_model(Path(name) / "model", mebibytes)
            for what, dtype in (("weights in memory", torch.float32), ("mapped", "auto")):
                found = compare(Path(name) / "model", dtype, given.repeats)
                results.append({"what": what, "mebibytes": round(size / 2**20), **found})
    given.out.parent.mkdir(parents=True, exist_ok=True)
    facts = {"threads": torch.get_num_threads(), "cpus": os.cpu_count(), "repeats": given.repeats, "results": results}
    given.out.write_text(json.dumps(facts, indent=1) + "\n")
    header = ["load", "MiB", "plain s", "checked s", "ratio", "quartile", "quartile"]
    print(table([list(result.values()) for result in results], header))


if __name__ == "__main__":
    main()
