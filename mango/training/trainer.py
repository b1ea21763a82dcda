"""The trainer: ``transformers.Trainer`` with the further losses, two learning rates, and checkpoints that are whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mango import console
from mango.checkpoints import saving
from mango.errors import TrainingError
from mango.fusion import MolOutput, MolPreTrainedModel, Routing
from mango.training.checkpoints import new_checkpoint, read_state
from mango.training.losses import balance_loss, entropy_loss, load_of, supervision_loss, z_loss
from mango.training.params import TrainParams
from mango.training.stopping import EarlyStopping
from mango.training.teaching import Teacher, distillation_loss

LogMetrics = Callable[[Mapping[str, float], int], None]


class FusedTrainer(Trainer):
    """Trains adapters and routers of a fused model.

    Args:
        train: parameters of the training.
        fingerprint: of everything that the run depends on; it goes into checkpoints.
        resumed: the checkpoint that `train` is going to resume.
        stopping: what ends the training early, if anything does.
        teacher: what tokens learn from, where ``train.losses.distill`` is above 0.
        kwargs: what ``transformers.Trainer`` takes.
    """

    def __init__(
        self,
        *,
        train: TrainParams,
        fingerprint: str = "",
        resumed: Path | None = None,
        stopping: EarlyStopping | None = None,
        teacher: Teacher | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.train_params = train
        self.fingerprint = fingerprint
        self.resumed = resumed
        self.stopping = stopping
        self.teacher = teacher
        if stopping is not None:
            self.add_callback(stopping)
        self._saves_into: Path | None = None
        self.add_callback(_RestoreSums(self))
        self._parts: dict[str, Tensor] = {}
        self._num_parts = 0
        self._loads: list[Tensor] = []
        self._taken: list[Tensor] = []

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the language-modelling loss, plus the further losses while training."""
        inputs = dict(inputs)
        targets = inputs.pop("targets", None)
        best = inputs.pop("best", None)
        taught = self.teacher is not None and best is not None and model.training
        if num_items_in_batch is not None:
            inputs["num_items_in_batch"] = num_items_in_batch
        output: MolOutput = model(**inputs) if taught else model(**inputs, losses_only=True)
        assert output.loss is not None
        if not model.training:
            return (output.loss, output) if return_outputs else output.loss
        # The language-modelling loss is a share of the mean over all devices and accumulated steps, and devices'
        # gradients are averaged; the other losses are means of this part of the batch.
        share = 1.0
        if num_items_in_batch is not None:
            share /= self.train_params.accumulation
            output.loss = output.loss * self.accelerator.num_processes
        parts = self._further(output, targets)
        if taught:
            assert self.teacher is not None
            assert output.logits is not None
            parts["distill"] = distillation_loss(output.logits, self.teacher.log_probs(inputs["input_ids"], best))
        weights = self.train_params.losses
        total = output.loss
        for name, part in parts.items():
            total = total + share * getattr(weights, name) * part.to(total.device)
        self._note({"lm": output.loss / share, **parts})
        return (total, output) if return_outputs else total

    def _further(self, output: MolOutput, targets: Tensor | None) -> dict[str, Tensor]:
        model = self.accelerator.unwrap_model(self.model)
        assert isinstance(model, MolPreTrainedModel)
        weights = self.train_params.losses
        parts: dict[str, Tensor] = {}
        routing = output.routing or ()
        if routing:
            parts["balance"] = balance_loss(routing, self._global_load([load_of(r) for r in routing]))
            parts["entropy"] = entropy_loss(routing)
            if targets is not None and weights.supervision:
                parts["supervision"] = supervision_loss(routing, _for_tokens(targets, routing[0].present))
            if weights.z:
                parts["z"] = z_loss(routing)
            self._take_load(model, routing)
        adapters = model.iter_adapters()
        if adapters:
            parts["adapter"] = torch.stack([adapter.distance() for adapter in adapters]).mean()
        return parts

    def _global_load(self, loads: list[Tensor]) -> list[Tensor]:
        """Return the load over all devices, and over the steps whose gradients are being added up."""
        sizes = [len(load) for load in loads]
        self._loads.append(self.accelerator.reduce(torch.cat(loads), reduction="mean"))
        mean = torch.stack(self._loads).mean(0)
        if self.accelerator.sync_gradients:
            self._loads.clear()
        return list(mean.split(sizes))

    def _take_load(self, model: MolPreTrainedModel, routing: Sequence[Routing]) -> None:
        """Add up the tokens that each expert was given, over devices and accumulated steps; move biases at a step."""
        routers = model.iter_routers()
        if not any(router.balance for router in routers):
            return
        loads = [(taken.weights > 0).flatten(0, -2).sum(0).float() for taken in routing]
        sizes = [len(load) for load in loads]
        self._taken.append(self.accelerator.reduce(torch.cat(loads), reduction="sum"))
        if not self.accelerator.sync_gradients:
            return
        for router, load in zip(routers, torch.stack(self._taken).sum(0).split(sizes), strict=True):
            if router.balance is not None:
                router.balance.update(load)
        self._taken.clear()

    def _note(self, parts: Mapping[str, Tensor]) -> None:
        for name, value in parts.items():
            value = value.detach().float()
            self._parts[name] = self._parts[name] + value if name in self._parts else value
        self._num_parts += 1

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with the mean of each part of the loss since the last time."""
        if "loss" in logs and self._num_parts:
            logs = {**logs, **{name: float(value) / self._num_parts for name, value in self._parts.items()}}
            self._parts.clear()
            self._num_parts = 0
        super().log(logs, *args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Make AdamW with one learning rate for adapters and one for routers."""
        if self.optimizer is None:
            params = self.train_params
            groups: dict[str, list[nn.Parameter]] = {"adapters": [], "routers": []}
            assert self.model is not None
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    groups["routers" if name.startswith("routers.") else "adapters"].append(parameter)
            if not any(groups.values()):
                raise TrainingError("nothing to train: the fused model has neither adapters nor routers")
            rates = {"adapters": params.adapter_learning_rate, "routers": params.router_learning_rate}
            self.optimizer = torch.optim.AdamW(
                [{"params": group, "lr": rates[name]} for name, group in groups.items() if group],
                betas=(0.9, 0.95),
                weight_decay=params.weight_decay,
            )
        return self.optimizer

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint as one durable folder, with the sums of what is logged next."""
        assert self.args.output_dir is not None
        folder = Path(self.args.output_dir)
        step = self.state.global_step
        sums = {
            "loss": self._tr_loss.item(),
            "logged_step": self._globalstep_last_logged,
            "parts": {name: float(value) for name, value in self._parts.items()},
            "num_parts": self._num_parts,
        }
        numbers: dict[str, Any] = {"sums": sums}
        with new_checkpoint(folder, step, self.fingerprint, numbers) as new:
            if self.stopping is not None:
                numbers["best"] = self.stopping.save(new)
            with saving(folder / f"checkpoint-{step}"):
                self._saves_into = new
                try:
                    super()._save_checkpoint(model, trial)
                finally:
                    self._saves_into = None
            made = new / f"checkpoint-{step}"
            for path in made.iterdir():
                path.rename(new / path.name)
            made.rmdir()

    def _get_output_dir(self, trial: Any) -> str:
        """Return where checkpoints go: while one is written, into the folder that is not seen yet."""
        return str(self._saves_into) if self._saves_into is not None else super()._get_output_dir(trial)

    def restore_sums(self) -> None:
        """Take the sums of what is logged next from the checkpoint that is resumed."""
        if self.resumed is None:
            return
        sums = read_state(self.resumed)["sums"]
        self._tr_loss.fill_(sums["loss"])
        self._globalstep_last_logged = sums["logged_step"]
        self._parts = {name: torch.tensor(value, device=self.args.device) for name, value in sums["parts"].items()}
        self._num_parts = sums["num_parts"]


def _for_tokens(targets: Tensor, present: Tensor) -> Tensor:
    """Return targets for each token, ``[rows, length, positions]``, also of those that are for each example."""
    if targets.ndim == 3:
        return targets
    rows = targets.repeat_interleave(present.shape[0] // targets.shape[0], 0)  # an example may have several rows
    return rows.unsqueeze(1).expand(-1, present.shape[1], -1)


class _RestoreSums(TrainerCallback):
    """Restores the sums of a trainer once it has set its own to zero.

    Args:
        trainer: the trainer.
    """

    def __init__(self, trainer: FusedTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore them."""
        self.trainer.restore_sums()


_WANTED = (
    "loss",
    "lm",
    "balance",
    "entropy",
    "adapter",
    "supervision",
    "z",
    "distill",
    "grad_norm",
    "learning_rate",
    "eval_loss",
)
_RENAMED = {"eval_loss": "validation"}


class MetricsLog(TrainerCallback):
    """Hands every logged number on, and keeps the curve.

    Args:
        log: takes metrics and their step; None keeps the curve only.
    """

    def __init__(self, log: LogMetrics | None) -> None:
        self.send = log
        self.curve: dict[int, dict[str, float]] = {}

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Take what was logged."""
        values = self._take(state.global_step, logs or {})
        if not values:
            return
        if self.send is not None:
            self.send(values, state.global_step)
        if "loss" in values and (state.global_step % 10 == 0 or state.global_step in (1, args.max_steps)):
            console.note(f"step {state.global_step}/{args.max_steps}: loss {values['loss']:.3f}")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take and hand on what was logged before the checkpoint that is resumed."""
        for entry in state.log_history:
            step = int(entry.get("step", 0))
            values = self._take(step, entry)
            if values and self.send is not None:
                self.send(values, step)

    def _take(self, step: int, logs: Mapping[str, float]) -> dict[str, float]:
        values = {_RENAMED.get(name, name): float(logs[name]) for name in _WANTED if name in logs}
        if values:
            self.curve.setdefault(step, {}).update(values)
        return values
