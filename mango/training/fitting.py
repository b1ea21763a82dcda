"""Training the adapters and routers of a started fused model, whatever it is for."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset
from transformers import PrinterCallback, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from mango import console
from mango.checkpoints import write_file
from mango.fusion import MolPreTrainedModel
from mango.training.checkpoints import latest_checkpoint, read_state, step_of
from mango.training.starts import StartReport
from mango.training.stopping import EarlyStopping
from mango.training.teaching import Teacher
from mango.training.trainer import FusedTrainer, LogMetrics, MetricsLog

if TYPE_CHECKING:
    from mango.training.run import Job


@dataclass
class Trained:
    """What came out of a training.

    Args:
        model: the fused model, in evaluation mode.
        curve: logged numbers, a mapping a step.
        starts: how well adapters and routers started.
    """

    model: MolPreTrainedModel
    curve: list[dict[str, float]]
    starts: StartReport
    summary: dict[str, float] = field(default_factory=dict)


def _arguments(job: Job, work: Path, device: torch.device | str) -> TrainingArguments:
    train = job.train
    terminal = sys.stderr.isatty()
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=train.steps,
        per_device_train_batch_size=train.batch_size,
        per_device_eval_batch_size=train.batch_size,
        gradient_accumulation_steps=train.accumulation,
        max_grad_norm=train.max_grad_norm,
        warmup_steps=max(1, round(train.warmup * train.steps)),
        lr_scheduler_type="cosine",
        learning_rate=train.adapter_learning_rate,
        bf16=train.precision == "bf16",
        fp16=train.precision == "fp16",
        logging_steps=train.log_every,
        logging_first_step=True,
        save_strategy="steps" if train.save_every else "no",
        save_steps=train.save_every or 1,
        eval_strategy="steps" if train.validate_every else "no",
        eval_steps=train.validate_every or None,
        seed=job.seed % 2**32,
        data_seed=job.seed % 2**32,
        report_to="none",
        disable_tqdm=not terminal,
        remove_unused_columns=False,
        label_names=["labels"],
        use_cpu=torch.device(device).type == "cpu",
        dataloader_num_workers=0,
        dataloader_pin_memory=torch.device(device).type == "cuda",
        prediction_loss_only=True,
    )
    # One process trains on one device: DataParallel would split what a fused model says of its routing.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def resume_or_start(
    folder: Path, what: str, fingerprint: str, start: Callable[[StartReport], None]
) -> tuple[Path | None, StartReport]:
    """Find the checkpoint that a training goes on from; without one, start its adapters and routers.

    Args:
        folder: of its checkpoints; those of another run go away.
        what: its name, in messages.
        fingerprint: of everything that the training depends on.
        start: starts adapters and routers, and fills in how well that went.

    Returns:
        The checkpoint, None where the training begins; and how well adapters and routers started.
    """
    checkpoint = latest_checkpoint(folder, fingerprint)
    starts_file = folder / f"starts-{fingerprint[:16]}.json"
    if checkpoint is not None and starts_file.is_file():
        console.note(f"{what}: resuming from step {step_of(checkpoint)} ({checkpoint.as_posix()})")
        return checkpoint, StartReport(**json.loads(starts_file.read_text()))
    shutil.rmtree(folder, ignore_errors=True)
    console.note(f"{what}: starting adapters and routers")
    starts = StartReport()
    start(starts)
    write_file(starts_file, json.dumps(asdict(starts)))
    return None, starts


def fit(
    model: MolPreTrainedModel,
    job: Job,
    *,
    what: str,
    folder: Path,
    device: torch.device | str,
    fingerprint: str,
    checkpoint: Path | None,
    train: Dataset[Any],
    validation: Dataset[Any],
    starts: StartReport,
    log: LogMetrics | None,
    teacher: Teacher | None = None,
) -> Trained:
    """Train a started model from its first step, or from a checkpoint on.

    Args:
        model: the model.
        job: how it is trained.
        what: its name, in messages.
        folder: of its checkpoints.
        device: where to train.
        fingerprint: of everything that the training depends on.
        checkpoint: the checkpoint that is resumed.
        train: training examples, in order.
        validation: validation examples.
        starts: how adapters and routers started.
        log: takes metrics and their step.
        teacher: what tokens learn from; nothing without.
    """
    if job.train.gradient_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    metrics = MetricsLog(log)
    stopping = EarlyStopping(model, job.train.patience) if job.train.patience else None
    if stopping is not None and checkpoint is not None:
        stopping.restore(checkpoint, read_state(checkpoint)["best"])
    trainer = FusedTrainer(
        train=job.train,
        fingerprint=fingerprint,
        resumed=checkpoint,
        stopping=stopping,
        teacher=teacher,
        model=model,
        args=_arguments(job, folder, device),
        train_dataset=train,
        eval_dataset=validation,
        callbacks=[metrics],
    )
    trainer.remove_callback(PrinterCallback)
    if job.train.steps and (model.iter_routers() or model.iter_adapters()):
        if stopping is not None and checkpoint is not None and stopping.has_stopped:
            trainer.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
            metrics.on_train_begin(trainer.args, trainer.state, trainer.control)
        else:
            console.note(f"{what}: training {job.train.steps} steps")
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if stopping is None or not stopping.has_stopped:
        last = metrics.curve.setdefault(job.train.steps, {})
        if "validation" not in last:
            last["validation"] = float(trainer.evaluate()["eval_loss"])
        summary = {"validation": last["validation"]}
    if stopping is not None and stopping.best_loss is not None:
        stopping.take_best()
        summary = {"validation": stopping.best_loss, "best_step": float(stopping.best_step)}
    model.train(False)
    curve = [{"step": float(step), **values} for step, values in sorted(metrics.curve.items())]
    return Trained(model, curve, starts, summary)
