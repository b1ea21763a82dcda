"""Merge the source models by params.yaml and by merge documents, each into a checkpoint below models/merged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stages.run import Stage, run_stage

NAME = "merge"
SECTIONS = ("models", "security", "merge")
OUT = Path("models/merged")


def merge(stage: Stage) -> Mapping[str, float]:
    """Replace all merged checkpoints in one step, when every merge is done; a run after a killed one goes on with it.

    Args:
        stage: parameters and run.

    Returns:
        Numbers of merges, parameters and bytes.

    Raises:
        MangoError: a document is wrong, or models do not fit together; the older checkpoints stay.
    """
    from mango import console
    from mango.merging import DOCUMENT_NAME, merge_into_one

    params, settings = stage.params, stage.settings
    reports = merge_into_one(
        params.merge.all_documents(),
        OUT,
        params.models,
        cache=settings.cache,
        threads=settings.threads,
        watch=lambda name: console.Meter(f"merge {name}", unit="bytes"),
    )
    for name, report in reports.items():
        if report.num_resumed:
            console.note(f"merge {name}: {report.num_resumed} of {report.num_tensors} tensors were there already")
        stage.run.log_artifact(OUT / name / DOCUMENT_NAME, f"merged/{name}")
    return {
        "num_merges": len(reports),
        "num_parameters": sum(report.num_parameters for report in reports.values()),
        "num_bytes": sum(report.num_bytes for report in reports.values()),
    }


if __name__ == "__main__":
    run_stage(NAME, merge, sections=SECTIONS, help_text=__doc__)
