"""``python -m tests.conformance``: check every architecture of the installed transformers and write the table."""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Sequence

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

import mango.fusion  # registers the fused model's own type, and is imported once for all processes
from mango.architectures.tasks import TASKS
from tests.conformance import pool, table
from tests.conformance.checks import Row, check

LIMIT_S = 90.0


def model_types() -> list[str]:
    """Return every model type of the installed transformers that has a model class of some task."""
    found: set[str] = set()
    for task in TASKS.values():
        names = getattr(modeling_auto, f"{task.mapping}_NAMES", {})
        found |= {name for name in names if name in CONFIG_MAPPING_NAMES}
    return sorted(found - {"mol"})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the suite."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", help="model types, whose rows replace those in the table; all without")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds for one model type")
    parser.add_argument("--write", action="store_true", help="write docs/architectures.md and the package's JSON")
    chosen = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    types = chosen.types or model_types()
    start = time.monotonic()
    rows: list[Row] = []
    for item, row, taken, problem in pool.run(check, types, jobs=chosen.jobs, limit_s=chosen.limit):
        row = row or Row(item, reason=f"not checked: {problem}")
        row.seconds = round(taken, 1)
        rows.append(row)
        if chosen.write and len(rows) % 25 == 0:
            table.write(table.merged(rows), transformers.__version__)  # what is cut off keeps what it found
        if len(rows) % 50 == 0:
            print(f"{len(rows)} of {len(types)} after {time.monotonic() - start:.0f} s", flush=True)
    rows.sort(key=lambda row: row.model_type)
    if chosen.types and not chosen.write:
        for row in rows:
            print(row.to_dict())
    print(table.summary(rows))
    print(f"transformers {transformers.__version__}, {time.monotonic() - start:.0f} s with {chosen.jobs} processes")
    if chosen.write:
        table.write(table.merged(rows) if chosen.types else rows, transformers.__version__)


if __name__ == "__main__":
    assert mango.fusion is not None
    main()
