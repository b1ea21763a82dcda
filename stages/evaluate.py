"""Compare the fused model, soft and hard, with everything that a user would pick instead, and write the report."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.run import REPORTS, Stage, run_stage

if TYPE_CHECKING:
    from mango.blocks import BlockStore
    from stages.params import Params

NAME = "evaluate"
SECTIONS = ("seed", "corpus", "evaluate")
STORE = Path("models/blocks")
FUSED = Path("models/fused")
MERGED = Path("models/merged")
CONTROLS = Path("models/controls")


def evaluate(stage: Stage) -> Mapping[str, float]:
    """Replace the evaluation, its page and its plots when every system is measured.

    Args:
        stage: parameters and run.

    Returns:
        The headline figures.

    Raises:
        MangoError: a model is missing or damaged, or the test split has too little text.
    """
    from mango.checkpoints import write_file
    from mango.corpus import corpus_sha256
    from mango.evaluation import Subjects, evaluate_all, validate, write_report

    params = stage.params
    stage.run.log_dataset("corpus", params.corpus.path, corpus_sha256(params.corpus.path), "test")
    evaluation = evaluate_all(
        Subjects(FUSED, open_store(stage), MERGED, CONTROLS),
        params.corpus,
        params.evaluate,
        seed=params.seed,
        device=stage.device(),
        parameters=params.model_dump(mode="json"),
        provenance=provenance(stage),
    )
    validate(evaluation)
    write_report(evaluation, REPORTS)
    write_file(REPORTS / "evaluation.json", json.dumps(evaluation, indent=1, allow_nan=False) + "\n")
    for path in (REPORTS / "evaluation.json", REPORTS / "report.html"):
        stage.run.log_artifact(path, "report")
    stage.run.log_artifacts(REPORTS / "plots", "report/plots")
    figures = headline_metrics(evaluation)
    stage.run.log_headline(figures)
    return figures


def open_store(stage: Stage) -> BlockStore:
    """Return the block store that the fused model was built from."""
    from mango.blocks import BlockStore, extract
    from mango.checkpoints import ModelSource
    from stages.params import MERGED as MERGED_NAME

    names = {stage.params.fusion.trunk, *(expert.model for expert in stage.params.fusion.experts)}
    if MERGED_NAME not in names:
        return BlockStore.open(STORE)
    sources = {name: stage.params.models[name] for name in sorted(names) if name != MERGED_NAME}
    sources[MERGED_NAME] = ModelSource(source=str(MERGED / "main"))
    return extract(sources, CONTROLS.parent / ".evaluation" / "blocks", "reference")


def provenance(stage: Stage) -> dict[str, Any]:
    """Return where the figures come from: commit, versions, device and the command that makes them again."""
    import torch
    import transformers

    from mango import __version__
    from mango.packaging import git_state

    git = git_state(Path())
    device = stage.device()
    cuda = str(device).startswith("cuda")
    return {
        "git_revision": git.revision,
        "git_dirty": git.dirty,
        "mango_version": __version__,
        "device": torch.cuda.get_device_name(device) if cuda else f"cpu ({platform.machine()})",
        "packages": {"torch": torch.__version__, "transformers": transformers.__version__},
        "commands": ["dvc repro evaluate"],
    }


def headline_metrics(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures that experiments are compared by."""
    figures = {name: float(value) for name, value in evaluation["headline"].items() if value is not None}
    for system in evaluation["systems"]:
        if system["kind"] == "fused":
            figures[f"{system['name']}.pure_mean"] = system["pure_mean"]
            figures[f"{system['name']}.switching"] = system["switching"]
            figures[f"{system['name']}.cost_switching"] = system["cost_switching"]
    return figures


if __name__ == "__main__":
    run_stage(NAME, evaluate, sections=SECTIONS, help_text=__doc__)
