"""What of each module an adapter can hold: factors, new weights, a bias, or nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from mango.architectures import build_meta
from mango.blocks import read_config
from mango.errors import IncompatibleBlocksError
from mango.surgery.lora.params import ExtractionParams
from mango.surgery.opened import OpenedModel

Kind = Literal["linear", "transposed", "embedding", "full", "bias", "left out"]


@dataclass(frozen=True)
class Pair:
    """A tensor of the fine-tuned model that differs from the base's.

    Attributes:
        name: its name in the model.
        module: path of its module.
        kind: how the adapter holds it: factors of a linear layer, of one that stores its weight transposed, or of an
            embedding; whole, with the rest of its module; a bias by itself; or not at all.
        wrapped: whether its module has factors, so that peft wraps it.
    """

    name: str
    module: str
    kind: Kind
    wrapped: bool = False


def check_same_shape(finetuned: OpenedModel, base: OpenedModel) -> None:
    """Check that two models have the same tensors, so that their difference means something.

    Raises:
        IncompatibleBlocksError: one line for each problem.
    """
    problems = []
    if finetuned.parts.architecture != base.parts.architecture:
        problems.append(
            f"{finetuned.reference}: is a {finetuned.parts.architecture}, the base {base.reference} a "
            f"{base.parts.architecture}; an adapter needs one architecture"
        )
    elif finetuned.parts.tied != base.parts.tied:
        with_head, without = (base, finetuned) if finetuned.parts.tied else (finetuned, base)
        problems.append(
            f"{with_head.reference}: has a head of its own and {without.reference} ties it to the embedding; "
            "save both in one form first"
        )
    else:
        for name in sorted(finetuned.tensors.keys() | base.tensors.keys()):
            problems += _tensor_problem(name, finetuned, base)
    if problems:
        more = [f"... and {len(problems) - 20} problems more"] if len(problems) > 20 else []
        raise IncompatibleBlocksError("\n".join([*problems[:20], *more]))


def _tensor_problem(name: str, finetuned: OpenedModel, base: OpenedModel) -> list[str]:
    for model, other in ((finetuned, base), (base, finetuned)):
        if name not in model.tensors:
            return [f"{model.reference}: has no tensor {name}, {other.reference} has; they are no model and its base"]
    shapes = finetuned.tensors[name].shape, base.tensors[name].shape
    if shapes[0] == shapes[1]:
        return []
    hint = (
        "; give one of them the other's vocabulary first (mango transplant)" if shapes[0][1:] == shapes[1][1:]
        else ""
    )  # fmt: skip
    return [f"{name}: {list(shapes[0])} in {finetuned.reference}, {list(shapes[1])} in {base.reference}{hint}"]


def differing(finetuned: OpenedModel, base: OpenedModel, params: ExtractionParams) -> list[Pair]:
    """Return every tensor that differs, with how the adapter is to hold it, in the model's order.

    A module that is stored whole has all of its tensors here, the equal ones too.

    Args:
        finetuned: the model to express.
        base: what it was tuned from.
        params: what to take.
    """
    model = build_meta(read_config(base.config, str(base.folder)))
    changed = [name for name in finetuned.tensors if not torch.equal(finetuned.tensor(name), base.tensor(name))]
    kinds = {name: _kind(name, model, params) for name in changed}
    whole = {_module(name) for name, kind in kinds.items() if kind == "full"}
    factored = {_module(name) for name, kind in kinds.items() if kind in ("linear", "transposed", "embedding")}
    pairs = [
        Pair(name, _module(name), "full" if _module(name) in whole else kinds[name], _module(name) in factored - whole)
        for name in finetuned.tensors
        if name in kinds or _module(name) in whole
    ]
    return list(_checked(pairs, model))


def _checked(pairs: list[Pair], model: nn.Module) -> Iterator[Pair]:
    paths = dict(model.named_modules())
    for pair in pairs:
        if pair.kind == "full" and any(path.startswith(f"{pair.module}.") for path in paths):
            raise IncompatibleBlocksError(
                f"{pair.name}: belongs to {pair.module} itself, which has modules inside, so an adapter cannot hold "
                f"it; leave it out with exclude: {re.escape(pair.module)}$"
            )
        yield pair


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _kind(name: str, model: nn.Module, params: ExtractionParams) -> Kind:
    from transformers.pytorch_utils import Conv1D

    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if any(re.search(pattern, path) for pattern in params.exclude):
        return "left out"
    if params.include and not any(re.search(pattern, path) for pattern in params.include):
        return "left out"
    if any(re.search(pattern, path) for pattern in params.full):
        return "full"
    if isinstance(module, nn.Embedding):
        choices: dict[str, Kind] = {"lora": "embedding", "full": "full", "skip": "left out"}
        return choices[params.embeddings]
    if isinstance(module, nn.Linear | Conv1D):
        weight: Kind = "linear" if isinstance(module, nn.Linear) else "transposed"
        return weight if leaf == "weight" else "bias"
    return "full"
