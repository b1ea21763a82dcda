"""Running a merge: piece by piece, in little memory, into a folder that appears whole or not at all."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mango.checkpoints import check_hashes, check_room, size_of, write_file
from mango.checkpoints.reader import INDEX_NAME
from mango.checkpoints.writer import DEFAULT_SHARD_BYTES, check_specs, index_text, shard_names, split_shards
from mango.errors import CheckpointError, MergeError
from mango.merging.card import merge_card
from mango.merging.combining import TensorMaker, combine_whole
from mango.merging.devices import check_devices, parse_devices
from mango.merging.document import MergeDocument
from mango.merging.estimate import declared_licence
from mango.merging.inputs import ModelValue
from mango.merging.pipeline import Lane, Maker, compute_threads, merge_threads
from mango.merging.plain import ArrayMaker, is_plain
from mango.merging.plan import MergePlan, plan
from mango.merging.resolved import DOCUMENT_NAME, resolved_yaml
from mango.merging.settling import scratch_bench, settled
from mango.merging.shards import Shard
from mango.merging.workspace import Growing, Work, file_states, growing_folder, work_of

_log = logging.getLogger(__name__)
_COPIED = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "normalizer.json",
)
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class MergeReport:
    """What a merge did.

    Attributes:
        out: the folder written.
        method: names of the merge methods, joined by commas.
        models: where each model of the document came from.
        num_tensors: tensors of the result.
        num_resumed: those of them that an earlier, interrupted run had written.
        num_parameters: elements of the result.
        num_bytes: size of the result's weights.
        tied: whether the result's head is its embedding.
        tokenizer: where the result's tokenizer comes from.
        seconds: wall-clock time from plan to durable result.
        notes: what a person should know and is no error.
    """

    out: Path
    method: str
    models: dict[str, str]
    num_tensors: int
    num_resumed: int
    num_parameters: int
    num_bytes: int
    tied: bool
    tokenizer: str
    seconds: float
    notes: tuple[str, ...]

    @classmethod
    def of(cls, ready: MergePlan, out: Path, *, num_resumed: int, seconds: float) -> MergeReport:
        """Return the report of a plan that was run."""
        return cls(
            out=out,
            method=", ".join(ready.methods) or "copy",
            models={key: model.place for key, model in ready.inputs.items()},
            num_tensors=len(ready.tensors),
            num_resumed=num_resumed,
            num_parameters=ready.num_parameters,
            num_bytes=ready.num_bytes,
            tied=ready.tied,
            tokenizer=ready.tokenizer,
            seconds=seconds,
            notes=ready.notes,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values for JSON."""
        return {**asdict(self), "out": self.out.as_posix(), "notes": list(self.notes)}


def merge(
    document: MergeDocument | Mapping[str, Any],
    out: Path | str,
    models: Mapping[str, ModelValue] | None = None,
    *,
    cache: Path | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    verify_inputs: bool = True,
    threads: int | None = None,
    device: str = "cpu",
    on_tensor: OnProgress | None = None,
    on_bytes: OnProgress | None = None,
) -> MergeReport:
    """Merge models into an ordinary checkpoint with configuration, head, tokenizer and the resolved document.

    A merge that was killed goes on where it was when the same merge is started again into the same folder.

    Args:
        document: what to merge; a mapping is validated first.
        out: folder of the result; an older version is replaced in one step at the end.
        models: where the models are that the document names.
        cache: see :func:`mango.checkpoints.resolve`.
        max_shard_bytes: largest weight file.
        verify_inputs: check models that have a manifest against its hashes before reading them.
        threads: how many threads merge; as many as this process has processors by default.
        device: ``cpu``, ``cuda``, ``cuda:1``, several joined by commas, or ``auto``.
        on_tensor: called with (tensors done, tensors in all) after each tensor.
        on_bytes: called with (bytes done, bytes in all) after each tensor.

    Returns:
        What was done.

    Raises:
        ConfigError: the document is wrong.
        MergeError: the models do not fit together, or the result has elements that are not finite.
        CheckpointError: a model is damaged, or the result cannot be written; an older version is intact.
    """
    check_devices(device)
    ready = plan(document, models, cache=cache)
    check_output(ready, out)
    if ready.unread:
        ready = plan(document, models, cache=cache, download=True)
    return merge_plan(
        ready,
        out,
        work=work_of(ready, max_shard_bytes, device),
        max_shard_bytes=max_shard_bytes,
        verify_inputs=verify_inputs,
        threads=threads,
        device=device,
        on_tensor=on_tensor,
        on_bytes=on_bytes,
    )


def merge_plan(
    ready: MergePlan,
    out: Path | str,
    *,
    work: Work,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    verify_inputs: bool = True,
    threads: int | None = None,
    device: str = "cpu",
    on_tensor: OnProgress | None = None,
    on_bytes: OnProgress | None = None,
    remember: bool = False,
) -> MergeReport:
    """Run a merge that is planned, with its weights on this machine.

    Args:
        ready: the merge.
        out: folder of the result.
        work: that of this plan and these options, see :func:`mango.merging.workspace.work_of`.
        max_shard_bytes: see :func:`merge`.
        verify_inputs: see :func:`merge`.
        threads: see :func:`merge`.
        device: see :func:`merge`.
        on_tensor: see :func:`merge`.
        on_bytes: see :func:`merge`.
        remember: see :func:`mango.merging.workspace.growing_folder`.

    Returns:
        What was done.

    Raises:
        MergeError: the result has elements that are not finite.
        CheckpointError: a model is damaged or was changed meanwhile, or the result cannot be written.
    """
    start = time.monotonic()
    for note in ready.notes:
        _log.warning("%s", note)
    if verify_inputs:
        _verify(ready)
    _check_spare_heads(ready)
    with growing_folder(out, work.mark, remember=remember) as growing:
        progress = _Progress(ready, on_tensor, on_bytes)
        num_resumed = len(ready.tensors)
        if growing.is_done:
            progress.add(num_resumed, ready.num_bytes)
        else:
            asked, ready = ready, settled(ready, growing.bench, device)
            num_resumed = _write_weights(ready, growing, max_shard_bytes, threads, device, progress)
            _write_beside(ready, growing.folder)
            if file_states(asked) != work.states:
                raise CheckpointError(f"{out}: a model was changed while it was merged; start the merge again")
    return MergeReport.of(ready, Path(out), num_resumed=num_resumed, seconds=time.monotonic() - start)


def merge_tensors(
    document: MergeDocument | Mapping[str, Any],
    models: Mapping[str, ModelValue] | None = None,
    *,
    cache: Path | None = None,
    threads: int | None = None,
    device: str = "cpu",
) -> dict[str, torch.Tensor]:
    """Merge models and return the result's weights, without writing anything.

    Args:
        document: what to merge; a mapping is validated first.
        models: the models that the document names: places, state dicts or modules.
        cache: see :func:`mango.checkpoints.resolve`.
        threads: how many threads merge.
        device: see :func:`merge`.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        ConfigError: the document is wrong.
        MergeError: the models do not fit together, or the result has elements that are not finite.
    """
    check_devices(device)
    ready = plan(document, models, cache=cache, download=True)
    _check_spare_heads(ready)
    with scratch_bench() as bench:
        return _tensors_of(settled(ready, bench, device), threads, parse_devices(device))


def _tensors_of(ready: MergePlan, threads: int | None, devices: Sequence[torch.device]) -> dict[str, torch.Tensor]:
    result: dict[str, torch.Tensor] = {}
    parts: list[torch.Tensor] = []

    def done(index: int) -> None:
        spec = ready.tensors[index].spec
        whole = parts[0] if len(parts) == 1 else torch.cat(parts) if parts else torch.empty(0)
        result[spec.name] = whole.clone().view(spec.shape).to(whole.dtype)
        parts.clear()

    with compute_threads(threads) as (pool, count):
        empty = {i for i, output in enumerate(ready.tensors) if output.spec.num_elements == 0}
        full = [i for i in range(len(ready.tensors)) if i not in empty]
        Lane(pool, count, TensorMaker(devices)).run(
            [ready.tensors[i] for i in full], parts.append, lambda position: done(full[position])
        )
        for i in empty:
            result[ready.tensors[i].spec.name] = combine_whole(ready.tensors[i])
    return {output.spec.name: result[output.spec.name] for output in ready.tensors}


def check_output(ready: MergePlan, out: Path | str) -> None:
    """Refuse a result that could not be written, before anything is computed.

    Raises:
        MergeError: no model gives a configuration.
        CheckpointError: there is no room for it, or a name cannot be written.
    """
    if not ready.config:
        raise MergeError(
            "none of the models has a config.json, so the result would be no model: name a folder as base_model, or "
            "take the tensors themselves (leave out the output folder)"
        )
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out}: is a file; a folder was to be written there. Move it or choose another path")
    check_specs(out, [output.spec for output in ready.tensors])
    growing = sum(size_of(folder) for folder in out.parent.glob(f".{out.name}.mango-new-merge-*"))
    measured = sum(one.num_bytes for one in ready.measurements)
    check_room(out, max(0, ready.num_bytes + measured - growing))


class _Progress:
    """Counts finished tensors and bytes of all lanes, and tells whoever wants to know."""

    def __init__(self, ready: MergePlan, on_tensor: OnProgress | None, on_bytes: OnProgress | None) -> None:
        self._totals = len(ready.tensors), ready.num_bytes
        self._done = [0, 0]
        self._told = on_tensor, on_bytes
        self._lock = threading.Lock()

    def add(self, num_tensors: int, num_bytes: int) -> None:
        with self._lock:
            for i, more in enumerate((num_tensors, num_bytes)):
                self._done[i] += more
                tell = self._told[i]
                if tell is not None:
                    tell(self._done[i], self._totals[i])


def _write_weights(
    ready: MergePlan,
    growing: Growing,
    max_shard_bytes: int,
    threads: int | None,
    device: str,
    progress: _Progress,
) -> int:
    """Write the weights and return how many tensors an earlier run had written."""
    shards = split_shards([output.spec for output in ready.tensors], max_shard_bytes)
    names = shard_names(len(shards))
    outputs = {output.spec.name: output for output in ready.tensors}
    folder, journal = growing.folder, growing.journal
    resumed = []

    def write(number: int) -> None:
        specs = shards[number]
        with ThreadPoolExecutor(2, thread_name_prefix="mango-hash") as hashing:
            shard = Shard(folder / names[number], specs, journal, hashing)
            try:
                first = shard.num_done
                resumed.append(first)
                if first:
                    progress.add(first, sum(spec.num_bytes for spec in specs[:first]))

                def done(index: int) -> None:
                    shard.tensor_done(first + index + 1)
                    progress.add(1, specs[first + index].num_bytes)

                lane.run(
                    [outputs[spec.name] for spec in specs[first:]], lambda piece: shard.write(maker.view(piece)), done
                )
                shard.finish()
            except BaseException:
                shard.abandon()
                raise

    plain = device == "cpu" and is_plain(ready.tensors)
    maker: Maker[Any] = ArrayMaker() if plain else TensorMaker(parse_devices(device))
    with (merge_threads if plain else compute_threads)(threads) as (pool, count), maker.loaders(count) as loaders:
        lane = Lane(pool, count, maker, loaders=loaders, window=maker.window())
        num_lanes = max(1, min(len(shards), maker.num_files(count)))
        # A thread even for one file: where a deep stack ends a page, Python 3.11 maps and unmaps it at each call.
        with ThreadPoolExecutor(num_lanes, thread_name_prefix="mango-lane") as lanes:
            try:
                list(lanes.map(write, range(len(shards))))
            except BaseException:
                lane.stop()
                raise
    if len(shards) > 1:
        write_file(folder / INDEX_NAME, index_text(shards))
    return sum(resumed)


def _write_beside(ready: MergePlan, folder: Path) -> None:
    write_file(folder / "config.json", json.dumps(ready.config, indent=2, sort_keys=True) + "\n")
    if ready.vocabulary is not None:
        ready.vocabulary.write(folder)
    for name in _COPIED:
        if ready.lead.folder is not None and (ready.lead.folder / name).is_file():
            write_file(folder / name, (ready.lead.folder / name).read_bytes())
    document = resolved_yaml(ready)
    write_file(folder / DOCUMENT_NAME, document)
    models = list(ready.all_inputs())
    base = ready.document.base_model
    card = merge_card(
        name=ready.document.name or "Merged model",
        method=", ".join(ready.methods),
        models={model.key: model.place for model in models},
        base=base if isinstance(base, str) else None,
        licences={model.key: declared_licence(model) for model in models},
        document=document,
        num_parameters=ready.num_parameters,
        dtype=str(ready.config.get("dtype") or ready.config.get("torch_dtype") or "the types of its parents"),
        tokenizer=ready.tokenizer,
    )
    write_file(folder / "README.md", card)


def _verify(ready: MergePlan) -> None:
    for folder in dict.fromkeys(model.folder for model in ready.all_inputs() if model.folder is not None):
        check_hashes(folder)


def _check_spare_heads(ready: MergePlan) -> None:
    for model in ready.all_inputs():
        if model.spare_head is None or model.embedding is None:
            continue
        if not torch.equal(model.spare_head.load(), model.tensors[model.embedding].load()):
            where = f" ({model.folder})" if model.folder else ""
            raise MergeError(
                f"model {model.key!r}: config.json ties head and embedding, but {model.spare_head.name} differs "
                f"from the embedding{where}; set tie_word_embeddings: false there, or remove that tensor"
            )
