"""``mango repair``: mend what a killed DVC left behind."""

from __future__ import annotations


def repair() -> None:
    """Mend what a killed DVC left behind."""
    from mango import console, tracking

    done = tracking.repair()
    for line in done or ["nothing to repair: `dvc repro` goes on by itself"]:
        console.result(line)
