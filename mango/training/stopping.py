"""Early stopping: a training ends when validation no longer improves, with the weights of its best validation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mango import console
from mango.checkpoints import Checkpoint, TensorSpec, write_tensors
from mango.tensors import dtype_name

BEST_FOLDER = "best"


class EarlyStopping(TrainerCallback):
    """Keeps what is trained as it was at the best validation, and ends the training when that is long ago.

    Args:
        model: the fused model; only adapters and routers are kept.
        patience: validations in a row without a better loss after which the training ends.

    Source:
        Prechelt, "Early Stopping - But When?" (1998), the rule UP with the best state kept.
    """

    def __init__(self, model: nn.Module, patience: int) -> None:
        self._model = model
        self._patience = patience
        self._waited = 0
        self._kept: dict[str, Tensor] = {}
        self.best_loss: float | None = None
        self.best_step = 0

    @property
    def has_stopped(self) -> bool:
        """Whether the training is over."""
        return self._waited >= self._patience

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Take a validation."""
        loss = float((metrics or {})["eval_loss"])
        if self.best_loss is None or loss < self.best_loss:
            self.best_loss, self.best_step, self._waited = loss, state.global_step, 0
            self._kept = {name: value.detach().cpu().clone() for name, value in self._trained().items()}
            return
        self._waited += 1
        if self.has_stopped:
            console.note(
                f"step {state.global_step}: validation has not improved in {self._waited} looks; the training ends "
                f"with the weights of step {self.best_step}"
            )
            control.should_training_stop = True

    def take_best(self) -> None:
        """Set what is trained to what it was at the best validation; nothing where there was none."""
        with torch.no_grad():
            for name, value in self._trained().items():
                if name in self._kept:
                    value.copy_(self._kept[name])

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the best weights into a checkpoint, and return the numbers that go with them.

        Raises:
            CheckpointError: they cannot be written.
        """
        if self._kept:
            (folder / BEST_FOLDER).mkdir()
            specs = [TensorSpec(name, dtype_name(t.dtype), tuple(t.shape)) for name, t in sorted(self._kept.items())]
            write_tensors(folder / BEST_FOLDER, specs, lambda name: self._kept[name])
        return {"loss": self.best_loss, "step": self.best_step, "waited": self._waited}

    def restore(self, folder: Path, numbers: Mapping[str, Any]) -> None:
        """Go on from what :meth:`save` wrote.

        Raises:
            CheckpointError: it cannot be read.
        """
        self.best_loss, self.best_step, self._waited = numbers["loss"], numbers["step"], numbers["waited"]
        if (folder / BEST_FOLDER).is_dir():
            checkpoint = Checkpoint.open(folder / BEST_FOLDER)
            self._kept = {info.name: checkpoint.tensor(info.name).clone() for info in checkpoint.infos()}

    def _trained(self) -> dict[str, Tensor]:
        """Return adapters and routers, with the biases of balanced ones, which move without gradients."""
        named = self._model.named_parameters()
        return {name: value for name, value in named if value.requires_grad or name.startswith("routers.")}
