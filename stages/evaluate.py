"""Compare the fused model, soft and hard, with everything that a user would pick instead, and write the report."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.run import REPORTS, Stage, run_stage
from stages.store import open_store

NAME = "evaluate"
SECTIONS = ("seed", "corpus", "evaluate")
FUSED = Path("models/fused")
MERGED = Path("models/merged")
CONTROLS = Path("models/controls")
MADE_OF = ("seed", "models", "corpus", "merge", "fusion", "router", "adapter", "train", "evaluate")
"""Sections that the figures depend on, for the report."""


def evaluate(stage: Stage) -> Mapping[str, float]:
    """Replace the evaluation, its page and its plots when every system is measured.

    Args:
        stage: parameters and run.

    Returns:
        The headline figures.

    Raises:
        MangoError: a model is missing or damaged, or the test split has too little text.
    """
    from mango.checkpoints import verify, write_file
    from mango.corpus import corpus_sha256
    from mango.evaluation import Subjects, evaluate_all, validate, write_report
    from stages.params import effective

    params = stage.params
    for folder in (FUSED, MERGED, CONTROLS):
        verify(folder)
    stage.run.log_dataset("corpus", params.corpus.path, corpus_sha256(params.corpus.path), "test")
    evaluation = evaluate_all(
        Subjects(FUSED, open_store(params), MERGED, CONTROLS),
        params.corpus,
        params.evaluate,
        seed=params.seed,
        device=stage.device(),
        parameters=effective(params, MADE_OF),
        provenance=provenance(stage),
    )
    validate(evaluation)
    written = write_report(evaluation, REPORTS)
    for path in sorted((REPORTS / "plots").iterdir()):
        if path not in written:  # a picture of an older evaluation
            path.unlink()
    write_file(REPORTS / "evaluation.json", json.dumps(evaluation, indent=1, allow_nan=False) + "\n")
    for path in (REPORTS / "evaluation.json", REPORTS / "report.html"):
        stage.run.log_artifact(path, "report")
    stage.run.log_artifacts(REPORTS / "plots", "report/plots")
    return headline_metrics(evaluation)


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
            measures = ("pure_mean", "switching", "cost_switching")
            figures |= {f"{system['name']}.{m}": float(system[m]) for m in measures if system[m] is not None}
        elif system["kind"] == "merge":
            figures[f"{system['name']}.pure_mean"] = float(system["pure_mean"])
    for text, found in evaluation.get("budget", {}).items():
        figures |= {f"budget.{text}.dominates_{kind}": float(on) for kind, on in found["dominates"].items()}
    for one in (evaluation.get("images") or {"systems": []})["systems"]:
        figures |= {f"{one['system']}.images.{which}": float(one[which]) for which in ("own_image", "other_image")}
    return figures | task_metrics(evaluation)


def task_metrics(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores of every system on tasks of the lm-evaluation-harness, as ``SYSTEM.lm_eval.TASK.METRIC``."""
    found = evaluation.get("lm_eval") or {"scores": []}
    figures: dict[str, float] = {}
    for score in found["scores"]:
        if score["value"] is not None:
            metric = score["metric"] if score["filter"] == "none" else f"{score['metric']}.{score['filter']}"
            name = f"{score['system']}.lm_eval.{score['task']}.{metric}"
            figures[re.sub(r"[^\w./-]", "_", name)] = float(score["value"])
            if score["stderr"] is not None:
                figures[re.sub(r"[^\w./-]", "_", f"{name}_stderr")] = float(score["stderr"])
    return figures


if __name__ == "__main__":
    run_stage(NAME, evaluate, sections=SECTIONS, help_text=__doc__)
