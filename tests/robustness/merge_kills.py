"""``kill -9`` of ``mango merge`` at random moments: each time the same command goes on, and ends with the same bits.

``python -m tests.robustness.merge_kills`` kills 50 runs, prints what was found and writes it to
``build/merge-kills.json``; exit code 1 says that bits differed, that work was lost, or that something was left behind.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import save_file

from mango.checkpoints import MANIFEST_NAME, sha256_file, verify
from mango.console import result, table
from tests.merging.conftest import save_tokenizer, tiny_llama
from tests.pipeline.project import leftovers
from tests.robustness.forks import Ended, random_kill, run_forked
from tests.robustness.victims import kept_tensors

ROOT = Path(__file__).parents[2]
VERSIONS = {"few": ("0.5", str(6 << 20)), "many": ("1.0", str(2 << 20))}
"""Two merges that replace each other's results, of other weights and of other numbers of files."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--rows", type=int, default=2**17, help="of embedding and head, which are most of a model")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "merge-kills.json", help="report")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="mango-merge-kills-") as folder:
        found = kill_merges(Path(folder), given.kills, given.rows, random.Random(given.seed))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    rows = [[name, len(value) if isinstance(value, list) else value] for name, value in found.items()]
    result(table(rows, ["kill -9", "found"]))
    return 1 if any(found[name] for name in ("different", "lost", "left")) else 0


def write_models(folder: Path, rows: int) -> list[str]:
    """Write two models, most of which is two tensors of ``rows`` times 16 elements, and some small ones."""
    found = []
    for seed, name in enumerate("ab"):
        place = folder / name
        model = tiny_llama(seed, tie_word_embeddings=False, num_hidden_layers=3)
        model.config.vocab_size = rows
        place.mkdir()
        model.config.save_pretrained(place)
        save_tokenizer(place)
        tensors = {n: t.detach().bfloat16() for n, t in model.state_dict().items()}
        generator = torch.Generator().manual_seed(seed)
        for tensor in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[tensor] = torch.randn(rows, 16, generator=generator).bfloat16()
        save_file({n: t.contiguous() for n, t in tensors.items()}, place / "model.safetensors", {"format": "pt"})
        found.append(str(place))
    return found


def ties_document(names: list[str], lambda_: float = 1.0) -> dict[str, Any]:
    """Return a merge of two models by TIES."""
    models = [{"model": name, "parameters": {"weight": 1.0, "density": 0.5}} for name in names]
    parameters = {"lambda": lambda_}
    return {"merge_method": "ties", "base_model": names[0], "models": models, "parameters": parameters}


def kill_merges(root: Path, wanted: int, rows: int, chance: random.Random) -> dict[str, Any]:
    """Kill ``mango merge`` until it has been done often enough, and return what was found.

    Args:
        root: an empty folder.
        wanted: kills.
        rows: see `write_models`.
        chance: of the moments.
    """
    names, log, out = write_models(root, rows), root / "log", root / "out"
    commands, whole, usual = {}, {}, {}
    for version, (lambda_, shard_bytes) in VERSIONS.items():
        path = root / f"{version}.json"
        path.write_text(json.dumps(ties_document(names, float(lambda_))))
        commands[version] = ["merge", str(path), str(out), "--threads", "1", "--json", "--max-shard-size", shard_bytes]
        for _ in range(2):  # the first one imports what is not there yet
            usual[version] = must(run_forked(lambda v=version: mango_command(commands[v]), log, count=True))  # type: ignore[misc]
        whole[version] = hashes(out)
    found: dict[str, Any] = {
        "kills": 0, "with nothing to go on from": 0, "with a part to go on from": 0, "with all in its place": 0,
        "runs to the end": 0, "that went on": 0, "share of tensors found again, median": 0.0,
        "different": [], "lost": [], "left": [],
    }  # fmt: skip
    shares, target, kept, num_tensors = [], "few", 0, 0
    while found["kills"] < wanted or kept:
        kill = random_kill(chance, usual[target].seconds, usual[target].num_events)
        if found["kills"] >= wanted or (kept and chance.random() < 0.4):
            kill = None
        ended = run_forked(lambda v=target: mango_command(commands[v]), log, kill=kill)  # type: ignore[misc]
        if ended.killed:
            found["kills"] += 1
            before, kept = kept, kept_tensors(out)
            in_place = hashes(out) == whole[target]
            if kept < before and not in_place:
                found["lost"].append(f"{before} tensors were done, and {kept} are left after another kill")
            found["with all in its place" if in_place else "with a part to go on from" if kept else
                  "with nothing to go on from"] += 1  # fmt: skip
            continue
        said = must(ended).said
        resumed, num_tensors = (int(re.findall(rf'"{key}": (\d+)', said)[0]) for key in ("num_resumed", "num_tensors"))
        found["runs to the end"] += 1
        if resumed < kept:
            found["lost"].append(f"{kept} tensors were done, and the next run found {resumed}")
        if kept:
            found["that went on"] += resumed > 0
            shares.append(resumed / num_tensors)
        if hashes(out) != whole[target]:
            found["different"].append(target)
        verify(out)
        found["left"] += leftovers(root)
        kept, target = 0, "many" if target == "few" else "few"
    found["share of tensors found again, median"] = round(median(shares), 3) if shares else 0.0
    return found


def mango_command(arguments: list[str]) -> None:
    """Run the command line in this process, which it ends."""
    from mango.cli.app import main

    main(arguments)


def must(ended: Ended) -> Ended:
    """Return how a process ended; one that failed is an error."""
    if ended.code != 0:
        raise RuntimeError(f"exit code {ended.code}: {ended.said}")
    return ended


def hashes(folder: Path) -> dict[str, str]:
    """Return the hash of each file of a result."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return {name: sha256_file(folder / name) for name in names if name != MANIFEST_NAME}


if __name__ == "__main__":
    sys.exit(main())
