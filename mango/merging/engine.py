"""Running a merge: tensor by tensor, in little memory, into a folder that appears whole or not at all."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mango.checkpoints import (
    MANIFEST_NAME,
    ModelSource,
    TensorInfo,
    copy_tokenizer,
    replace_folder,
    verify,
    write_file,
    write_tensors,
)
from mango.errors import MergeError
from mango.merging.document import MergeDocument
from mango.merging.outputs import OutputTensor
from mango.merging.plan import MergePlan, plan
from mango.merging.registry import MergeMethod
from mango.merging.resolved import DOCUMENT_NAME, resolved_yaml
from mango.merging.workers import Call, Workers, workers
from mango.tensors import torch_dtype
from mango.tensors.pieces import PIECE_ELEMENTS, pieces

DEFAULT_SHARD_BYTES = 5 * 10**9
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MergeReport:
    """What a merge did.

    Attributes:
        out: the folder written.
        method: name of the merge method.
        models: where each model of the document came from.
        num_tensors: tensors written.
        num_parameters: elements written.
        num_bytes: size of the weights written.
        tied: whether the result's head is its embedding.
        seconds: wall-clock time from plan to durable result.
        notes: what a person should know and is no error.
    """

    out: Path
    method: str
    models: dict[str, str]
    num_tensors: int
    num_parameters: int
    num_bytes: int
    tied: bool
    seconds: float
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values for JSON."""
        return {**asdict(self), "out": self.out.as_posix(), "notes": list(self.notes)}


def merge(
    document: MergeDocument | Mapping[str, Any],
    out: Path | str,
    models: Mapping[str, ModelSource] | None = None,
    *,
    cache: Path | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    verify_inputs: bool = True,
    on_tensor: Callable[[int, int], None] | None = None,
) -> MergeReport:
    """Merge models into an ordinary checkpoint with configuration, head, tokenizer and the resolved document.

    Args:
        document: what to merge; a mapping is validated first.
        out: folder of the result; an older version is replaced in one step at the end.
        models: where the models are that the document names.
        cache: see :func:`mango.checkpoints.resolve`.
        max_shard_bytes: largest weight file.
        verify_inputs: check models that have a manifest against its hashes before reading them.
        on_tensor: called with (tensors done, tensors in all) after each tensor.

    Returns:
        What was done.

    Raises:
        ConfigError: the document is wrong.
        MergeError: the models do not fit together, or the result has elements that are not finite.
        CheckpointError: a model is damaged, or the result cannot be written; an older version is intact.
    """
    start = time.monotonic()
    ready = plan(document, models, cache=cache)
    for note in ready.notes:
        _log.warning("%s", note)
    if verify_inputs:
        for model in ready.inputs.values():
            if (model.folder / MANIFEST_NAME).is_file():
                verify(model.folder)
    _check_spare_heads(ready)
    with replace_folder(out) as folder:
        _write_weights(ready, folder, max_shard_bytes, on_tensor)
        write_file(folder / "config.json", json.dumps(ready.config, indent=2, sort_keys=True) + "\n")
        copy_tokenizer(ready.inputs[ready.tokenizer].folder, folder, generation_config=False)
        generation = ready.lead.folder / "generation_config.json"
        if generation.is_file():
            write_file(folder / generation.name, generation.read_bytes())
        write_file(folder / DOCUMENT_NAME, resolved_yaml(ready))
    return MergeReport(
        out=Path(out),
        method=ready.document.merge_method,
        models={reference: model.source.source for reference, model in ready.inputs.items()},
        num_tensors=len(ready.tensors),
        num_parameters=ready.num_parameters,
        num_bytes=ready.num_bytes,
        tied=ready.tied,
        seconds=time.monotonic() - start,
        notes=ready.notes,
    )


def _write_weights(
    ready: MergePlan, folder: Path, max_shard_bytes: int, on_tensor: Callable[[int, int], None] | None
) -> None:
    outputs = {output.spec.name: output for output in ready.tensors}
    done = 0

    def produce(name: str) -> Iterator[torch.Tensor]:
        nonlocal done
        yield from _merged(ready, outputs[name], pool)
        done += 1
        if on_tensor is not None:
            on_tensor(done, len(outputs))

    specs = [output.spec for output in ready.tensors]
    with workers() as pool:
        write_tensors(folder, specs, produce, max_shard_bytes=max_shard_bytes, metadata={"format": "pt"})


def _merged(ready: MergePlan, output: OutputTensor, pool: Workers) -> Iterator[torch.Tensor]:
    """Yield the flat pieces of one merged tensor."""
    tensors = [_read(ready, source) for source in output.sources]
    base = None if output.base is None else _read(ready, output.base)
    if output.arguments is None:
        yield _equal_in_all(output, tensors if base is None else [base, *tensors])
        return
    method, dtype = ready.method, torch_dtype(output.spec.dtype)
    with_base: dict[str, Any] = {} if base is None else {"base": base}
    arguments: dict[str, Any] = {**output.arguments}
    if method.measure is not None:
        arguments.update(method.measure(tensors, **with_base, **output.arguments))
    if not method.elementwise:
        yield _finite(output, method.combine(tensors, **with_base, **arguments, dtype=dtype)).reshape(-1)
        return

    def calls() -> Iterator[Call]:
        position = 0
        for parts in pieces(tensors if base is None else [*tensors, base], PIECE_ELEMENTS):
            own: dict[str, Any] = {} if base is None else {"base": parts.pop()}
            if method.measure is not None:
                own["first_position"] = position
            position += parts[0].numel()
            yield partial(_combine_piece, output, method, parts, {**arguments, **own, "dtype": dtype})

    yield from pool.in_order(calls())


def _combine_piece(
    output: OutputTensor, method: MergeMethod, parts: list[torch.Tensor], arguments: dict[str, Any]
) -> torch.Tensor:
    return _finite(output, method.combine(parts, **arguments))


def _read(ready: MergePlan, source: tuple[str, TensorInfo]) -> torch.Tensor:
    model, info = source
    return ready.inputs[model].checkpoint.tensor(info.name)


def _finite(output: OutputTensor, merged: torch.Tensor) -> torch.Tensor:
    if not bool(torch.isfinite(merged).all()):
        raise MergeError(
            f"{output.spec.name}: the result has elements that are not finite in {output.spec.dtype}: a model holds "
            "NaN or infinity there, or the values are too large for that type (try out_dtype: float32)"
        )
    return merged


def _equal_in_all(output: OutputTensor, tensors: list[torch.Tensor]) -> torch.Tensor:
    if any(not torch.equal(tensor, tensors[0]) for tensor in tensors[1:]):
        raise MergeError(f"{output.spec.name}: holds integers that differ between the models, which cannot be merged")
    return tensors[0]


def _check_spare_heads(ready: MergePlan) -> None:
    for model in ready.inputs.values():
        if model.spare_head is None:
            continue
        head = model.checkpoint.tensor(model.spare_head.name)
        if not torch.equal(head, model.checkpoint.tensor(model.tensors[model.embeddings].name)):
            raise MergeError(
                f"model {model.reference!r}: config.json ties head and embedding, but {model.spare_head.name} differs "
                f"from the embedding ({model.folder}); set tie_word_embeddings: false there, or remove that tensor"
            )
