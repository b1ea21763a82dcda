"""The state of a plain training loop in safetensors: weights, optimizer, schedule and random numbers, bit for bit."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mango.checkpoints import Checkpoint, TensorSpec, write_file, write_tensors
from mango.tensors import dtype_name

_FILE = "optimizer.json"


def save_state(folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write the state of a training into a new folder.

    Args:
        folder: an existing folder.
        step: how many steps are done.
        model: what is trained.
        optimizer: of its parameters; a schedule's state is in its groups and `step`.

    Raises:
        CheckpointError: it cannot be written.
    """
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {f"model.{name}": tensor for name, tensor in model.named_parameters()}
    for index, values in state["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
    tensors["random.cpu"] = torch.random.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    specs = [TensorSpec(name, dtype_name(t.dtype), tuple(t.shape)) for name, t in sorted(tensors.items())]
    write_tensors(folder, specs, lambda name: tensors[name].detach().cpu())
    python: Any = random.getstate()
    numpy: Any = np.random.get_state(legacy=True)
    document = {
        "step": step,
        "groups": state["param_groups"],
        "python": [python[0], list(python[1]), python[2]],
        "numpy": [numpy[0], numpy[1].tolist(), *numpy[2:]],
    }
    write_file(folder / _FILE, json.dumps(document) + "\n")


def load_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore what :func:`save_state` wrote, and return how many steps were done.

    Raises:
        CheckpointError: it cannot be read.
    """
    checkpoint = Checkpoint.open(folder)
    document = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(checkpoint.tensor(f"model.{name}"))
    state: dict[int, dict[str, Tensor]] = {}
    for info in checkpoint.infos():
        if info.name.startswith("optimizer."):
            _, index, name = info.name.split(".", 2)
            state.setdefault(int(index), {})[name] = checkpoint.tensor(info.name).clone()
    optimizer.load_state_dict({"state": state, "param_groups": document["groups"]})
    torch.random.set_rng_state(checkpoint.tensor("random.cpu").clone())
    if torch.cuda.is_available():
        torch.cuda.set_rng_state(checkpoint.tensor("random.cuda").clone())
    version, numbers, following = document["python"]
    random.setstate((version, tuple(numbers), following))
    kind, keys, *rest = document["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    return int(document["step"])
