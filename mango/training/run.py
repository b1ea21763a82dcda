"""The whole training of a fused model and its controls, from a block store to folders."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, set_seed

from mango.architectures.tasks import CAUSAL
from mango.blocks import BlockStore, load_source
from mango.checkpoints import (
    check_room,
    copy_tokenizer,
    only_writer,
    open_tokenizer,
    replace_folders,
    saving,
    write_file,
)
from mango.corpus import CorpusParams, ImageReader, Sequences, corpus_sha256
from mango.errors import TrainingError
from mango.fusion import (
    ROUTERS,
    AdapterParams,
    FusionParams,
    MolForCausalLM,
    Router,
    RouterParams,
    bridged_losses,
    build_fused,
    make_layout,
)
from mango.fusion.tasks import TEXT_TASKS
from mango.signals import resumes
from mango.training.alignment import Alignment, propose_layers
from mango.training.checkpoints import KEPT, how_it_resumes
from mango.training.controls import ResumedTrunk, continue_trunk, save_ordinary, self_stitch
from mango.training.data import TokenDataset, mixture
from mango.training.fitting import Trained, fit, resume_or_start
from mango.training.heads import HeadData, prepare_head, train_head
from mango.training.params import TrainParams
from mango.training.posterior_start import start_posterior
from mango.training.starts import (
    StartReport,
    entering_losses,
    routing_targets,
    source_losses,
    start_adapters,
    start_routers,
)
from mango.training.teaching import Teacher, best_sources
from mango.training.trainer import LogMetrics

TRAINING_FILE = "training.json"


@dataclass(frozen=True)
class Job:
    """Everything that a training depends on.

    Args:
        seed: of data, order, and starts.
        corpus: the corpus.
        fusion: what is fused.
        router: the router.
        adapter: the adapter.
        train: how it is trained.
    """

    seed: int
    corpus: CorpusParams
    fusion: FusionParams
    router: RouterParams
    adapter: AdapterParams
    train: TrainParams

    def fingerprint(self, what: str, store: BlockStore) -> str:
        """Return a hash of the parameters, the corpus and the blocks, to tell a checkpoint of this run."""
        models = {
            name: [store.block_sha256(name, block.index) for block in store.model(name).blocks]
            for name in self.model_names()
        }
        sections = [
            part.model_dump(mode="json") for part in (self.corpus, self.fusion, self.router, self.adapter, self.train)
        ]
        text = json.dumps([what, self.seed, sections, models, corpus_sha256(self.corpus.path)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def decides_once(self) -> bool:
        """Return whether the router decides once a sequence, from its first tokens."""
        return self._untrained_router().pool.kind == "prompt"

    def check(self) -> None:
        """Refuse a training in which a router would get no gradient, or a control that there is not.

        Raises:
            TrainingError: routers choose one expert in training, and nothing supervises them.
        """
        if self._untrained_router().training_selection.k == 1 and not self.train.losses.supervision:
            raise TrainingError(
                f"train.losses.supervision: 0, but router.{self.router.type} is trained on one expert a token, and the "
                "loss says nothing about the others: set it above 0, or train the router softly"
            )
        self.check_task(self.fusion.layers)
        if self.train.losses.distill and self.fusion.task != CAUSAL:
            raise TrainingError(
                f"train.losses.distill: {self.train.losses.distill}, but tokens of a model for {self.fusion.task} have "
                "no teacher so far: set it to 0"
            )
        if self.train.start.mixture_steps and self.fusion.task not in TEXT_TASKS:
            raise TrainingError(
                f"train.start.mixture_steps: {self.train.start.mixture_steps}, but a model for {self.fusion.task} "
                "predicts no next token whose loss could be mixed: set it to 0"
            )
        if self.train.controls.continued_trunk and self.fusion.task not in TEXT_TASKS:
            raise TrainingError(
                f"train.controls.continued_trunk: true, but the trunk of a model for {self.fusion.task} is not trained "
                "further so far: set it to false"
            )

    def check_task(self, layers: str) -> None:
        """Refuse a proposal of layers for a model that is no causal language model.

        Args:
            layers: how layers are chosen.

        Raises:
            TrainingError: they are to be proposed.
        """
        if layers == "auto" and self.fusion.task != CAUSAL:
            raise TrainingError(
                f"fusion.layers: auto compares states of language models on text, and fusion.task is "
                f"{self.fusion.task}: give the cuts of experts yourself (fusion.layers: given)"
            )

    def _untrained_router(self) -> Router:
        make: Any = ROUTERS[self.router.type]
        router: Router = make(1, len(self.fusion.experts) + 1, self.router.chosen())
        return router

    def model_names(self) -> list[str]:
        """Return the names of the models that are fused."""
        return sorted({self.fusion.trunk, *(expert.model for expert in self.fusion.experts)})


@dataclass(frozen=True)
class _Data:
    train: Sequences
    calibration: Sequences
    validation: Sequences
    losses: dict[str, torch.Tensor]
    train_losses: dict[str, torch.Tensor] | None


def calibration_text(job: Job, tokenizer: PreTrainedTokenizerBase, num_domains: int | None = None) -> Sequences:
    """Return the text that adapters and routers start from, and that layers are proposed on.

    Args:
        job: everything that the training depends on.
        tokenizer: the models' tokenizer.
        num_domains: how many domains the text has, where that is known; else the corpus is asked.

    Raises:
        DataError: the training split has too little text.
    """
    share = 0.0 if job.decides_once() else job.train.switching_share
    if num_domains is None:
        some = mixture(job.corpus, "train", tokenizer, num_sequences=0, switching_share=0.0, seed=job.seed)
        num_domains = len(some.domains)
    return mixture(
        job.corpus,
        "train",
        tokenizer,
        num_sequences=2 * job.train.start.sequences * num_domains,
        switching_share=share and 0.5,
        seed=job.seed + 1,
    )


def prepare(job: Job, store: BlockStore, tokenizer: PreTrainedTokenizerBase, device: torch.device | str) -> _Data:
    """Draw sequences, and run every source model on the calibration text."""
    train = job.train
    per_step = train.batch_size * train.accumulation
    share = 0.0 if job.decides_once() else train.switching_share
    sequences = mixture(
        job.corpus,
        "train",
        tokenizer,
        num_sequences=train.steps * per_step,
        switching_share=share,
        seed=job.seed,
    )
    domains = len(job.corpus.domains) or len(sequences.domains)
    calibration = calibration_text(job, tokenizer, domains)
    validation = mixture(
        job.corpus,
        "validation",
        tokenizer,
        num_sequences=2 * train.validation_sequences * domains,
        switching_share=0.5,
        seed=job.seed,
    )
    names = [name for name in job.model_names() if name not in job.fusion.across_bridges()]
    losses = source_losses(
        store,
        names,
        calibration.input_ids,
        batch_size=train.start.batch_size or train.batch_size,
        device=device,
        trunk=job.fusion.trunk,
    )
    train_losses = None
    if (train.losses.supervision or train.losses.distill) and len(sequences):
        train_losses = source_losses(
            store, names, sequences.input_ids, batch_size=train.batch_size, device=device, trunk=job.fusion.trunk
        )
    return _Data(sequences, calibration, validation, losses, train_losses)


def train_one(
    job: Job,
    store: BlockStore,
    data: _Data,
    *,
    what: str,
    work: Path,
    device: torch.device | str,
    targets_from: MolForCausalLM | None = None,
    log: LogMetrics | None = None,
) -> Trained:
    """Build, start and train one fused model; resume it when a checkpoint of the same run is there.

    Args:
        job: everything that it depends on.
        store: the blocks.
        data: from :func:`prepare`.
        what: its name, in messages and folders.
        work: folder for checkpoints.
        device: where to train.
        targets_from: the model whose experts its routers are started on; its own without.
        log: takes metrics and their step.
    """
    set_seed(job.seed % 2**32)
    model = build_fused(store, job.fusion, job.router, job.adapter, seed=job.seed)
    model.to(device)  # type: ignore[arg-type]
    params = job.train.start
    batch_size = params.batch_size or job.train.batch_size
    assert isinstance(model, MolForCausalLM)
    judge = targets_from or model
    losses = data.losses | bridged_losses(judge, data.calibration.input_ids, batch_size=batch_size)
    targets = routing_targets(judge, losses, params.window) if judge.iter_routers() else None
    mixed = entering_losses(judge, losses) if params.mixture_steps else []
    train_targets = None
    if data.train_losses is not None and targets is not None and job.train.losses.supervision:
        lost = data.train_losses | bridged_losses(judge, data.train.input_ids, batch_size=job.train.batch_size)
        train_targets = routing_targets(judge, lost, params.window)
    teacher = best = None
    if data.train_losses is not None and job.train.losses.distill:
        own = store.model(job.fusion.trunk).tokenizer_sha256  # another one's distribution is over other tokens
        names = [name for name in sorted(data.train_losses) if store.model(name).tokenizer_sha256 == own]
        teacher = Teacher(store, names, device)
        best = best_sources(data.train_losses, names, params.window)
    fingerprint = job.fingerprint(what, store)
    folder = work / what

    def start(report: StartReport) -> None:
        report.adapters = start_adapters(model, store, data.calibration, params, batch_size=batch_size)
        if targets is not None:
            ids = data.calibration.input_ids
            report.routers = start_routers(model, ids, targets, params, batch_size=batch_size, losses=mixed)
            report.posterior = start_posterior(model, ids, batch_size=batch_size)

    checkpoint, starts = resume_or_start(folder, what, fingerprint, start)
    return fit(
        model,
        job,
        what=what,
        folder=folder,
        device=device,
        fingerprint=fingerprint,
        checkpoint=checkpoint,
        train=TokenDataset(data.train, train_targets, best),
        validation=TokenDataset(data.validation),
        starts=starts,
        log=log,
        teacher=teacher,
    )


def train_all(
    job: Job,
    store: BlockStore,
    *,
    out: Path,
    controls: Path,
    work: Path,
    device: torch.device | str = "cpu",
    log: LogMetrics | None = None,
) -> dict[str, float]:
    """Train the fused model and its controls; replace both folders when everything is done.

    Args:
        job: everything that it depends on.
        store: the blocks.
        out: folder of the fused model.
        controls: folder of the controls.
        work: folder for checkpoints; it goes away at the end.
        device: where to train.
        log: takes metrics of the fused model and their step.

    Returns:
        Headline numbers.
    """
    job.check()
    check_room(out, _needed_bytes(job, store))
    trunk = job.fusion.trunk
    tokenizer_folder = store.tokenizer_folder(trunk)
    resumed = resumes(lambda: how_it_resumes(work))
    with resumed, only_writer(work), replace_folders(controls, out) as (new_controls, new_out):
        causal = job.fusion.task in TEXT_TASKS
        data: _Data | HeadData
        if causal:
            data = prepare(job, store, open_tokenizer(tokenizer_folder), device)
        else:
            images = job.fusion.task == "image-classification"
            reader = ImageReader.of(tokenizer_folder) if images else open_tokenizer(tokenizer_folder)
            data = prepare_head(job, store, reader, device)
        alignments: Sequence[Alignment] = ()
        if job.fusion.layers == "auto" and isinstance(data, _Data):
            proposal = propose_layers(
                store,
                job.fusion,
                job.adapter,
                data.calibration,
                ridge=job.train.start.ridge,
                batch_size=job.train.batch_size,
                device=device,
            )
            job, alignments = replace(job, fusion=proposal.fusion), proposal.alignments
        layout = make_layout(job.fusion, {name: store.model(name).architecture for name in job.model_names()})
        fused = _train(job, store, data, what="fused", work=work, device=device, log=log)
        summary = {"validation_loss": fused.summary["validation"]}
        _save(fused, new_out, tokenizer_folder, alignments)
        if job.train.controls.self_stitch:
            stitched = Job(job.seed, job.corpus, self_stitch(job.fusion, layout), job.router, job.adapter, job.train)
            control = _train(
                stitched, store, data, what="self_stitch", work=work, device=device, targets_from=fused.model
            )
            summary["self_stitch_validation_loss"] = control.summary["validation"]
            _save(control, new_controls / "self_stitch", tokenizer_folder)
        if job.train.controls.continued_trunk and isinstance(data, _Data):
            model = load_source(store, trunk, device=device)
            resume = ResumedTrunk(work / "continued_trunk", job.fingerprint("continued_trunk", store))
            trained = continue_trunk(model, data.train, job.train, device=device, seed=job.seed, resume=resume)
            save_ordinary(trained, new_controls / "continued_trunk")
            copy_tokenizer(tokenizer_folder, new_controls / "continued_trunk")
    shutil.rmtree(work, ignore_errors=True)
    return summary


def _train(job: Job, store: BlockStore, data: _Data | HeadData, **how: Any) -> Trained:
    if isinstance(data, HeadData):
        return train_head(job, store, data, **how)
    return train_one(job, store, data, **how)


def _needed_bytes(job: Job, store: BlockStore) -> int:
    """Return about how much a training writes before its work folder goes away."""
    sizes = {name: _bytes_of(store, name) for name in job.model_names()}
    fused, trunk = sum(sizes.values()), sizes[job.fusion.trunk]
    checkpoints = KEPT + 1 if job.train.save_every else 0
    total = fused * (1 + checkpoints)
    if job.train.controls.self_stitch:
        total += fused * (1 + checkpoints)
    if job.train.controls.continued_trunk:
        total += trunk * (1 + 3 * checkpoints)  # weights and the two moments of each
    return total


def _bytes_of(store: BlockStore, name: str) -> int:
    model = store.model(name)
    return sum(block.num_bytes for block in model.blocks) + sum(at.end - at.start for at in model.edges)


def _save(trained: Trained, folder: Path, tokenizer_folder: Path, alignments: Sequence[Alignment] = ()) -> None:
    Path(folder).mkdir(exist_ok=True, parents=True)
    with saving(folder):
        trained.model.save_pretrained(folder)
    copy_tokenizer(tokenizer_folder, folder)
    record: dict[str, Any] = {"curve": trained.curve, "starts": asdict(trained.starts), "summary": trained.summary}
    if alignments:
        record["layers"] = [one.to_dict() for one in alignments]
    write_file(folder / TRAINING_FILE, json.dumps(record, indent=1))
