"""Check the corpus, then start and train the fused model's adapters and routers, and the controls beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stages.run import GATES, Stage, run_stage
from stages.store import open_store

NAME = "train-adapters-and-routers"
SECTIONS = ("seed", "corpus", "fusion", "router", "adapter", "train", "gates")
OUT = Path("models/fused")
CONTROLS = Path("models/controls")
WORK = Path("models/.training")
"""Checkpoints, which a run that was killed goes on from; gone when the training is done."""


def train(stage: Stage) -> Mapping[str, float]:
    """Replace the fused model and its controls when the corpus passes its gate and all of them are trained.

    Args:
        stage: parameters and run.

    Returns:
        Losses on the validation split, in nats per token.

    Raises:
        GateError: the corpus breaks a bound; the page says which rows and why, and nothing is trained.
        MangoError: the models do not fit together, or the corpus has too little text.
    """
    from mango.corpus import corpus_sha256
    from mango.gates import run_corpus_gate
    from mango.training import Job, train_all

    params = stage.params
    gate = run_corpus_gate(params.corpus, params.gates, GATES)
    stage.log_gate(gate)
    gate.raise_if_failed()
    stage.run.log_dataset("corpus", params.corpus.path, corpus_sha256(params.corpus.path), "training")
    job = Job(params.seed, params.corpus, params.fusion, params.router, params.adapter, params.train)
    return train_all(
        job,
        open_store(params),
        out=OUT,
        controls=CONTROLS,
        work=WORK,
        device=stage.device(),
        log=stage.run.log_metrics,
    )


if __name__ == "__main__":
    run_stage(NAME, train, sections=SECTIONS, help_text=__doc__)
