"""What a model says of examples, whether it is one source model or a fused one, and how wrong it is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, normalize

from mango.corpus.examples import IGNORED, Examples
from mango.errors import UnknownNameError

TOKEN_TASKS = ("masked-lm", "seq2seq-lm")
"""Tasks that ask for tokens."""


@torch.no_grad()
def predictions(
    task: str,
    model: nn.Module,
    examples: Examples,
    *,
    batch_size: int,
    watch: Callable[[object, dict[str, Tensor]], None] | None = None,
) -> Tensor:
    """Return what a model says of examples.

    Args:
        task: of the examples.
        model: a source model for the task, or a fused one.
        examples: the examples, on any device.
        batch_size: examples a forward pass.
        watch: is given the output and the inputs of each forward pass.

    Returns:
        For tasks that ask for tokens, the log-probability of each of them, float32 ``[examples, length]`` and zero
        elsewhere; for ``image-classification``, log-probabilities ``[examples, classes]``; for ``sentence-embedding``,
        vectors of length one, ``[examples, 2, width]``.
    """
    device = next(model.parameters()).device
    found: list[Tensor] = []
    for batch in examples.batches(batch_size):
        inputs = {name: value.to(device) for name, value in batch.items()}
        labels = inputs.pop("labels")
        if task == "sentence-embedding":
            pairs = inputs["input_ids"]
            output, vectors = embed(model, pairs.flatten(0, 1))
            found.append(vectors.view(*pairs.shape[:2], -1).cpu())
        elif task == "image-classification":
            output = model(**inputs)
            found.append(log_softmax(output.logits.float(), -1).cpu())
        elif task in TOKEN_TASKS:
            output = model(**inputs, labels=labels) if task == "seq2seq-lm" else model(**inputs)
            losses = cross_entropy(
                output.logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
            )
            found.append(-losses.view(labels.shape).cpu())
        else:
            raise UnknownNameError(f"unknown task {task!r} of examples")
        if watch is not None:
            watch(output, inputs)
    return torch.cat(found)


def embed(model: nn.Module, input_ids: Tensor) -> tuple[object, Tensor]:
    """Return a model's output and one vector of length one for each row: the mean of its states.

    Args:
        model: an encoder, with a head or without; a fused one gives its own vectors.
        input_ids: token ids, ``[rows, length]``, none of them padding.
    """
    output = getattr(model, "base_model", model)(input_ids=input_ids)
    vectors = getattr(output, "pooler_output", None) if getattr(model, "layout", None) is not None else None
    if vectors is None:
        vectors = normalize(output.last_hidden_state.float().mean(1), dim=-1)
    return output, vectors


def mistakes(task: str, said: Tensor, examples: Examples) -> Tensor:
    """Return how wrong each example was answered, float64 ``[examples]``.

    For tasks that ask for tokens bits, the sum over them; for ``sentence-embedding`` 1 where another right half of the
    domain is nearer to the left one than its own, and for ``image-classification`` where another class is more
    probable than the image's, else 0.

    Args:
        task: of the examples.
        said: from :func:`predictions`.
        examples: all of one domain for ``sentence-embedding``.
    """
    if task in TOKEN_TASKS:
        return -said.double().sum(1) / torch.log(torch.tensor(2.0, dtype=torch.float64))
    if task == "image-classification":
        return (said.argmax(1) != examples.inputs["labels"]).double()
    scores = said[:, 0].double() @ said[:, 1].double().T
    return (scores.argmax(1) != torch.arange(len(said))).double()


def regrets(task: str, said: Tensor, examples: Examples) -> Tensor:
    """Return a smooth measure of how wrong each example was answered, by which routers learn, float64 ``[examples]``.

    Args:
        task: of the examples.
        said: from :func:`predictions`.
        examples: the examples.
    """
    if task == "image-classification":
        return -said.double().gather(1, examples.inputs["labels"].unsqueeze(1)).squeeze(1)
    if task in TOKEN_TASKS:
        return -said.double().sum(1)
    scores = said[:, 0].double() @ said[:, 1].double().T / 0.05
    return cross_entropy(scores, torch.arange(len(said)), reduction="none")
