"""Merge the source models by params.yaml and by merge documents, each into a checkpoint below models/merged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stages.run import Stage, run_stage

NAME = "merge"
SECTIONS = ("models", "security", "merge")
OUT = Path("models/merged")


def merge(stage: Stage) -> Mapping[str, float]:
    """Replace all merged checkpoints in one step, when every merge is done.

    Args:
        stage: parameters and run.

    Returns:
        Numbers of merges, parameters and bytes.

    Raises:
        MangoError: a document is wrong, or models do not fit together; the older checkpoints stay.
    """
    from mango import console
    from mango.checkpoints import replace_folder
    from mango.merging import DOCUMENT_NAME
    from mango.merging import merge as merge_models

    params = stage.params
    documents = params.merge.all_documents()
    reports = {}
    with replace_folder(OUT) as folder:
        for name, document in documents.items():
            with console.Meter(f"merge {name}") as meter:
                reports[name] = merge_models(
                    document, folder / name, params.models, cache=stage.settings.cache, on_tensor=meter
                )
    for name in reports:
        stage.run.log_artifact(OUT / name / DOCUMENT_NAME, f"merged/{name}")
    return {
        "num_merges": len(reports),
        "num_parameters": sum(report.num_parameters for report in reports.values()),
        "num_bytes": sum(report.num_bytes for report in reports.values()),
    }


if __name__ == "__main__":
    run_stage(NAME, merge, sections=SECTIONS, help_text=__doc__)
