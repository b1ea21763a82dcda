"""What a model says of examples, whether it is one source model or a fused one, and how wrong it is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from mango.corpus.examples import IGNORED, Examples
from mango.errors import UnknownNameError


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
        For ``masked-lm``, the log-probability of each token that is asked for, float32 ``[examples, length]`` and zero
        elsewhere; for ``sentence-embedding``, cosines of each left with each right half of the pairs of one domain,
        ``[examples, 2, width]`` vectors of length one.
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
        elif task == "masked-lm":
            output = model(**inputs)
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

    For ``masked-lm`` bits, the sum over its tokens; for ``sentence-embedding`` 1 where, of all right halves of the
    domain, another is nearer to the left one than its own, else 0.

    Args:
        task: of the examples.
        said: from :func:`predictions`.
        examples: all of one domain for ``sentence-embedding``.
    """
    if task == "masked-lm":
        return -said.double().sum(1) / torch.log(torch.tensor(2.0, dtype=torch.float64))
    scores = said[:, 0].double() @ said[:, 1].double().T
    return (scores.argmax(1) != torch.arange(len(said))).double()


def regrets(task: str, said: Tensor) -> Tensor:
    """Return a smooth measure of how wrong each example was answered, by which routers learn, float64 ``[examples]``.

    Args:
        task: of the examples.
        said: from :func:`predictions`.
    """
    if task == "masked-lm":
        return -said.double().sum(1)
    scores = said[:, 0].double() @ said[:, 1].double().T / 0.05
    return cross_entropy(scores, torch.arange(len(said)), reduction="none")
