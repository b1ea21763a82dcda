"""What comes before the first weight is merged: measuring models on text, and finding what text decides."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from mango import console
from mango.merging.devices import parse_devices
from mango.merging.plan import MergePlan, plan_with


@contextmanager
def scratch_bench() -> Iterator[Path]:
    """Give a folder for what a merge into memory measures; it is gone at the end."""
    with TemporaryDirectory(prefix="mango-calibration-") as folder:
        yield Path(folder)


def settled(ready: MergePlan, bench: Path, device: str) -> MergePlan:
    """Measure what a plan needs to know of its models, and find the values that calibration text decides.

    Args:
        ready: the plan, with all weights on this machine.
        bench: folder where everything that was measured is kept; what an earlier run has left there is not measured
            again.
        device: what names where tensors are computed; models run on the first of these places.

    Returns:
        The plan with its values fixed; the same one where text decides nothing.

    Raises:
        MergeError: something is not finite.
        CheckpointError: there is no room.
    """
    if not ready.measurements and ready.quest is None:
        return ready
    bench.mkdir(exist_ok=True)
    first = parse_devices(device)[0]
    _measure(ready, bench, first, tell=True)
    if ready.quest is None:
        return ready
    found = plan_with(ready.quest.solve(bench, first), ready.inputs)
    _measure(found, bench, first)
    return found


def _measure(ready: MergePlan, bench: Path, device: torch.device, *, tell: bool = False) -> None:
    for number, one in enumerate(ready.measurements):
        what = f"measure {one.kind} of {one.key}"
        with console.Meter(what) as meter:
            is_new = one.run(bench / f"{number}-{one.kind}.bin", device, meter)
        if tell and not is_new:
            console.note(f"{what}: was there already")
