"""Starting and training fused models that are no causal language models: examples in rows, compared row by row."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase, set_seed

from mango.architectures.tasks import SEQ2SEQ
from mango.blocks import BlockStore, load_source
from mango.corpus import Examples, ImageReader, examples, image_examples, predictions, regrets
from mango.fusion import MolRowModel, Router, build_fused
from mango.training.fitting import Trained, fit, resume_or_start
from mango.training.starts import StartReport, fit_router, start_adapters_on
from mango.training.trainer import LogMetrics

if TYPE_CHECKING:
    from mango.training.run import Job


class ExampleDataset(Dataset[dict[str, Tensor]]):
    """Examples as a model takes them.

    Args:
        examples: the examples, in order.
        targets: for each example the number of its best source model at each position with a choice, or None.
    """

    def __init__(self, examples: Examples, targets: Tensor | None = None) -> None:
        self.examples = examples
        self.targets = targets

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        item = {name: value[index] for name, value in self.examples.inputs.items()}
        if self.targets is not None:
            item["targets"] = self.targets[index]
        return item


@dataclass(frozen=True)
class HeadData:
    """Examples that a training rests on, and how well every source model does on those that it starts from."""

    train: Examples
    calibration: Examples
    validation: Examples
    regrets: dict[str, Tensor]
    train_regrets: dict[str, Tensor] | None


def prepare_head(
    job: Job, store: BlockStore, reader: PreTrainedTokenizerBase | ImageReader, device: torch.device | str
) -> HeadData:
    """Draw examples, and run every source model on those that adapters and routers start from.

    Args:
        job: everything that the training depends on.
        store: the blocks.
        reader: the models' tokenizer, or how they want their pixels.
        device: where to run models.

    Raises:
        DataError: the corpus has too little text.
    """
    train, task = job.train, job.fusion.task
    wanted = train.steps * train.batch_size * train.accumulation

    def draw(split: str, number: int, seed: int) -> Examples:
        if isinstance(reader, ImageReader):
            return image_examples(job.corpus, split, reader, per_domain=number, seed=seed)
        return examples(task, job.corpus, split, reader, per_domain=number, seed=seed)

    sizes = 2 * train.start.sequences, 2 * train.validation_sequences
    calibration = draw("train", sizes[0], job.seed + 1)
    domains = len(calibration.domains)
    training = draw("train", max(1, -(-wanted // domains)), job.seed)
    validation = draw("validation", sizes[1], job.seed)

    def judge(given: Examples) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name in job.model_names():
            model = load_source(store, name, device=device)
            said = predictions(task, model, given, batch_size=train.start.batch_size or train.batch_size)
            found[name] = regrets(task, said, given)
        return found

    supervised = judge(training) if train.losses.supervision and wanted else None
    return HeadData(training, calibration, validation, judge(calibration), supervised)


def row_targets(model: MolRowModel, found: dict[str, Tensor]) -> Tensor:
    """Return the best expert of each example among those that can be entered at each position with a choice.

    Args:
        model: the fused model.
        found: how wrong each source model is on each example, by name.

    Returns:
        int64 ``[examples, positions with a choice]``.
    """
    targets: list[Tensor] = []
    for position in range(model.layout.num_positions):
        entering = model.layout.entering(position)
        if len(entering) > 1:
            targets.append(torch.stack([found[model.layout.experts[e].source] for e, _ in entering]).argmin(0))
    return torch.stack(targets, -1)


def train_head(
    job: Job,
    store: BlockStore,
    data: HeadData,
    *,
    what: str,
    work: Path,
    device: torch.device | str,
    targets_from: MolRowModel | None = None,
    log: LogMetrics | None = None,
) -> Trained:
    """Build, start and train one fused model; resume it when a checkpoint of the same run is there.

    Args:
        job: everything that it depends on.
        store: the blocks.
        data: from :func:`prepare_head`.
        what: its name, in messages and folders.
        work: folder for checkpoints.
        device: where to train.
        targets_from: the model whose experts its routers are started on; its own without.
        log: takes metrics and their step.
    """
    set_seed(job.seed % 2**32)
    model = build_fused(store, job.fusion, job.router, job.adapter, seed=job.seed)
    assert isinstance(model, MolRowModel)
    model.to(device)  # type: ignore[arg-type]
    judge = targets_from or model
    chooses = bool(judge.iter_routers())
    fingerprint = job.fingerprint(what, store)
    folder = work / what

    def start(report: StartReport) -> None:
        size = job.train.start.batch_size or job.train.batch_size
        batches = [_without_labels(batch, model.task) for batch in data.calibration.batches(size)]
        report.adapters = start_adapters_on(model, store, batches, job.train.start)
        if chooses:
            report.routers = _start_routers(model, job, batches, row_targets(judge, data.regrets))

    checkpoint, starts = resume_or_start(folder, what, fingerprint, start)
    targets = row_targets(judge, data.train_regrets) if chooses and data.train_regrets is not None else None
    return fit(
        model,
        job,
        what=what,
        folder=folder,
        device=device,
        fingerprint=fingerprint,
        checkpoint=checkpoint,
        train=ExampleDataset(data.train, targets),
        validation=ExampleDataset(data.validation),
        starts=starts,
        log=log,
    )


def _without_labels(batch: dict[str, Tensor], task: str) -> dict[str, Tensor]:
    """Return what a source model and a fused one take alike: texts one by one, and labels where they are inputs."""
    ids = batch.get("input_ids")
    if ids is not None and ids.ndim == 3:
        return {"input_ids": ids.flatten(0, 1)}
    return {name: value for name, value in batch.items() if name != "labels" or task == SEQ2SEQ}


def _start_routers(model: MolRowModel, job: Job, batches: list[dict[str, Tensor]], targets: Tensor) -> dict[str, float]:
    """Fit each router to the best expert of each example, from the first position to the last; return its accuracy."""
    device = next(model.parameters()).device
    accuracy: dict[str, float] = {}
    rows = sum(len(next(iter(batch.values()))) for batch in batches)
    targets = targets.repeat_interleave(rows // len(targets), 0)  # both texts of a pair have its target
    if not job.train.start.router_steps:
        return accuracy
    model.set_routing("soft")
    try:
        for place, (position, router) in enumerate(model.routers.items()):
            assert isinstance(router, Router)
            pooled: list[Tensor] = []
            for batch in batches:
                inputs = {name: value.to(device) for name, value in batch.items()}
                pooled.append(model.routing_at(int(position), **inputs).pooled)
            every = torch.cat(pooled)
            wanted = targets[:, place].to(device).unsqueeze(1).expand(every.shape[:2])
            accuracy[position] = round(fit_router(router, every, wanted, job.train.start), 4)
    finally:
        model.set_routing(None)
    return accuracy
