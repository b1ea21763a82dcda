"""Damages a fused model at random: flipped bits, cut files, missing shards, missing tensors. All must be refused.

    python -m tests.robustness.damage --times 100

Each kind of damage is done so many times, to a file chosen at random, and opened in turn by the Auto class, by Mango's
own functions and by ``mango verify``. What counts as refused is an error that names the file; of a missing tensor, the
tensor too.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

REPORT = Path(__file__).parents[2] / "build" / "damage.json"


def make_model(root: Path) -> Path:
    """Write a small fused model in shards, as a stage writes it, and return its folder."""
    import torch

    from mango.blocks import extract
    from mango.checkpoints import ModelSource, copy_tokenizer, replace_folder
    from tests.blocks.families import save_model
    from tests.fusion.models import LAYOUTS, ROUTERS, config_named, fuse

    torch.set_num_threads(1)
    names = ("base", "sister", "brother")
    for seed, name in enumerate(names):
        family, config = config_named(name)
        save_model(root / name, family, seed=seed, config=config)
    store = extract({name: ModelSource(source=str(root / name)) for name in names}, root / "blocks", "reference")
    folder = root / "fused"
    with replace_folder(folder) as new:
        fuse(store, LAYOUTS["siblings"], ROUTERS["top-1 window"]).save_pretrained(new, max_shard_size="40KB")
        copy_tokenizer(root / "base", new)
    return folder


def flip(random: Random, folder: Path) -> tuple[Path, str]:
    """Flip one bit of one file, and set its time back."""
    path = random.choice(sorted(path for path in folder.iterdir() if path.is_file()))
    content, found = bytearray(path.read_bytes()), path.stat()
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    return path, ""


def cut(random: Random, folder: Path) -> tuple[Path, str]:
    """Cut one file off somewhere."""
    path = random.choice(sorted(path for path in folder.iterdir() if path.is_file()))
    os.truncate(path, random.randrange(path.stat().st_size))
    return path, ""


def lose_shard(random: Random, folder: Path) -> tuple[Path, str]:
    """Remove a shard."""
    path = random.choice(sorted(folder.glob("*.safetensors")))
    path.unlink()
    return path, ""


def lose_tensor(random: Random, folder: Path) -> tuple[Path, str]:
    """Remove a tensor from its shard and from the index, and write hashes that fit: only the configuration tells."""
    from mango.checkpoints import Checkpoint, replace_folder
    from mango.checkpoints.reader import INDEX_NAME
    from mango.checkpoints.writer import TensorSpec, write_tensors

    opened = Checkpoint.open(folder)
    lost = random.choice(opened.names())
    specs = [TensorSpec(i.name, i.dtype, i.shape) for i in opened.infos() if i.name != lost]
    with replace_folder(folder) as new:
        for path in folder.iterdir():
            if path.suffix == ".json" and path.name not in ("MANIFEST.json", INDEX_NAME):
                (new / path.name).write_bytes(path.read_bytes())
        write_tensors(new, specs, opened.tensor, max_shard_bytes=40_000)
    return folder / INDEX_NAME, lost


KINDS: dict[str, Callable[[Random, Path], tuple[Path, str]]] = {
    "bit flips": flip,
    "truncations": cut,
    "missing shards": lose_shard,
    "missing tensors": lose_tensor,
}


def by_auto_class(folder: Path) -> None:
    """Open as a user of transformers does."""
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(folder)


def by_mango(folder: Path) -> None:
    """Open as Mango's stages do."""
    from mango.checkpoints import open_model

    open_model(folder)


def by_verify(folder: Path) -> None:
    """Check as ``mango verify`` does."""
    from mango.errors import IntegrityError
    from mango.packaging import examine

    found = examine(folder)
    if found.problems:
        raise IntegrityError("\n".join(found.problems))


WAYS = {"Auto class": by_auto_class, "open_model": by_mango, "mango verify": by_verify}


def damage(times: int, root: Path, *, seed: int = 0) -> dict[str, Any]:
    """Do every kind of damage so many times and return what was refused, with what was not."""
    from mango.checkpoints import open_model
    from mango.errors import MangoError

    whole = make_model(root)
    content = {path.name: path.read_bytes() for path in whole.iterdir()}
    open_model(whole)
    missed: list[str] = []
    counts: Counter[str] = Counter()
    for kind, act in KINDS.items():
        for number in range(times):
            random = Random(f"{seed} {kind} {number}")
            for path in whole.iterdir():
                path.unlink()
            for name, data in content.items():
                (whole / name).write_bytes(data)
            path, tensor = act(random, whole)
            way = list(WAYS)[number % len(WAYS)]
            try:
                WAYS[way](whole)
            except Exception as error:  # noqa: BLE001  # which errors count is decided here
                # A config.json that is no JSON stops transformers before it knows whose model it is.
                kinds = (MangoError, OSError) if way == "Auto class" else MangoError
                named = isinstance(error, kinds) and path.name in str(error) and tensor in str(error)
                counts[f"{kind}, by {way}"] += named
                if not named:
                    missed.append(f"{kind} {number} of {path.name} {tensor} by {way}: {error!r}"[:600])
            else:
                missed.append(f"{kind} {number} of {path.name} {tensor} by {way}: opened")
    return {"times": times, "seed": seed, "refused": dict(counts), "missed": missed}


def main() -> None:
    """Damage a model in every way and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=REPORT)
    given = parser.parse_args()
    os.environ.update(
        {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "critical", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    )
    with tempfile.TemporaryDirectory() as name:
        report = damage(given.times, Path(name), seed=given.seed)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=1) + "\n")
    from mango.console import table

    print(
        table([[*key.split(", by "), count] for key, count in report["refused"].items()], ["damage", "by", "refused"])
    )
    print(*report["missed"], sep="\n")
    total = sum(report["refused"].values())
    print(f"{total} of {len(KINDS) * given.times} refused with the file named; {given.out}")
    sys.exit(1 if report["missed"] else 0)


if __name__ == "__main__":
    main()
