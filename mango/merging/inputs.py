"""The models that go into a merge: found, opened and laid out by their headers alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch

from mango.checkpoints import Checkpoint, ModelSource, default_cache, resolve
from mango.checkpoints.configurations import BOUNDS, CODE_KEYS, CONFIG_NAME
from mango.checkpoints.documents import read_json
from mango.checkpoints.gguf_heads import fetch_gguf_head
from mango.checkpoints.gguf_outline import gguf_file_of, outline_gguf
from mango.checkpoints.names import check_inside
from mango.errors import MangoError, MergeError
from mango.merging.adapters import adapted, find_adapter
from mango.merging.document import MergeDocument, key_of
from mango.merging.names import (
    COUNT_WORDS,
    count_keys,
    find_stacks,
    is_embedding,
    is_head,
    is_never_read,
    translation,
)
from mango.merging.quantised import dequantised
from mango.merging.references import Reference, parse_reference
from mango.merging.remote import is_hub_gguf, is_hub_id, open_remote
from mango.merging.tensor_sources import Held, Remote, Renamed, Stored, TensorSource
from mango.merging.vocabularies import Vocabulary

ModelValue: TypeAlias = "ModelSource | Path | str | Mapping[str, torch.Tensor] | torch.nn.Module"
"""Where a named model may be: a place, or its weights themselves."""

_UNTIED = frozenset(
    [
        "llama",
        "mistral",
        "mixtral",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "phi",
        "phi3",
        "gpt_neox",
        "stablelm",
        "olmo",
        "olmo2",
        "granite",
    ]
)
"""Model types whose configuration says by default that head and embedding are two tensors."""


@dataclass(frozen=True)
class Input:
    """One model of a merge.

    Attributes:
        key: what the merge calls it.
        place: where it is, for people.
        source: where it is; None for weights in memory and for nested documents.
        folder: its local folder, if it has one.
        adapter: the folder of the adapter that is added to it, if one is.
        config: content of its ``config.json``; empty for bare weights.
        tensors: its tensors by name.
        tied: whether its head is its embedding.
        spare_head: the head's own tensor, where a tied model stores one.
        left_out: names of tensors that no architecture reads.
        vocabulary: its tokenizer, if it has one.
        remote: its weights are still on the Hub.
        unread: its headers alone are known, and it is opened again before weights are read.
        notes: what a person should know.
        nested: what makes it, for a document inside the document.
    """

    key: str
    place: str
    source: ModelSource | None
    folder: Path | None
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorSource]
    tied: bool = False
    spare_head: TensorSource | None = None
    left_out: tuple[str, ...] = ()
    vocabulary: Vocabulary | None = None
    remote: bool = False
    unread: bool = False
    notes: tuple[str, ...] = ()
    nested: Any = None
    adapter: Path | None = None
    reference: Reference | None = field(default=None, repr=False)

    @property
    def folders(self) -> list[Path]:
        """The local folders that it is read from."""
        return [folder for folder in (self.folder, self.adapter) if folder is not None]

    @property
    def stacks(self) -> dict[str, int]:
        """Its stacks of blocks, with their number of blocks."""
        return find_stacks(self.tensors, self.config)

    @property
    def embedding(self) -> str | None:
        """Name of the input embedding's weight."""
        return next((name for name in sorted(self.tensors, key=_outermost) if is_embedding(name)), None)

    @property
    def head(self) -> str | None:
        """Name of the head's weight, in a model that has one of its own."""
        return next((n for n in sorted(self.tensors, key=_outermost) if is_head(n) and n.endswith(".weight")), None)


def _outermost(name: str) -> tuple[int, str]:
    return name.count("."), name


def open_inputs(
    values: Sequence[str | MergeDocument],
    models: Mapping[str, ModelValue],
    cache: Path | None,
    *,
    download: bool,
    nested: Callable[[MergeDocument], Input],
) -> dict[str, Input]:
    """Find and open models; weights stay unread.

    Args:
        values: what the document names: texts, or documents of their own.
        models: where named models are.
        cache: see :func:`mango.checkpoints.resolve`.
        download: fetch models from the Hub; otherwise their headers alone are read.
        nested: plans a document inside the document.

    Returns:
        The models by key, in the same order; all name their tensors as the first does.

    Raises:
        MergeError: one line for each model that is missing or cannot be read.
    """
    inputs: dict[str, Input] = {}
    problems = []
    for value in values:
        key = key_of(value)
        try:
            inputs[key] = nested(value) if isinstance(value, MergeDocument) else _open(value, models, cache, download)
        except MangoError as error:
            problems += [f"model {key!r}: {line}" for line in str(error).splitlines()]
    if problems:
        raise MergeError("\n".join(problems))
    lead = next(iter(inputs.values()))
    return {key: _translated(model, lead) for key, model in inputs.items()}


def _open(text: str, models: Mapping[str, ModelValue], cache: Path | None, download: bool) -> Input:
    reference = parse_reference(text, models)
    value = models.get(reference.model, reference.model)
    if not isinstance(value, ModelSource | Path | str):
        opened = _from_memory(text, value)
    else:
        source = value if isinstance(value, ModelSource) else ModelSource(source=str(value))
        if reference.revision is not None:
            source = source.model_copy(update={"revision": reference.revision})
        opened = _from_source(text, source, cache, download)
    opened = replace(opened, reference=reference)
    if reference.lora is not None:
        adapter = models.get(reference.lora, reference.lora)
        place = adapter.source if isinstance(adapter, ModelSource) else str(adapter)
        folder = find_adapter(place, reference.lora_revision, cache)
        note = f"model {text!r}: the adapter {place} is added to its weights in float32"
        opened = replace(
            opened,
            tensors=adapted(opened.tensors, folder),
            place=f"{opened.place}+{folder}",
            adapter=folder,
            notes=(*opened.notes, note),
        )
    return _with_tie(opened)


def _from_source(key: str, source: ModelSource, cache: Path | None, download: bool) -> Input:
    remote = False
    tensors: dict[str, TensorSource]
    file = None if download else gguf_file_of(source)
    if not download and is_hub_gguf(source):
        file, remote = fetch_gguf_head(source, cache or default_cache()), True
    if file is not None:
        folder, outline = outline_gguf(file, cache or default_cache())
        config = read_config(folder)
        tensors = {name: Remote.of(name, dtype, shape) for name, (dtype, shape) in outline.items()}
        if remote:  # what is downloaded is the file
            share = file.stat().st_size / max(1, sum(tensor.read_bytes for tensor in tensors.values()))
            tensors = {n: Remote(n, t.dtype, t.shape, round(t.read_bytes * share)) for n, t in tensors.items()}
    elif not download and is_hub_id(source):
        folder, config, tensors, remote = open_remote(source, cache)
    else:
        folder = resolve(source, cache)
        checkpoint = Checkpoint.open_unhashed(folder)  # hashes are checked before weights are read
        config = read_config(folder)
        tensors = {info.name: Stored.of(checkpoint, info) for info in checkpoint.infos()}
    _check_blocks(folder, tensors, config)
    left_out = tuple(sorted(name for name, tensor in tensors.items() if is_never_read(name, tensor.shape)))
    for name in left_out:
        del tensors[name]
    tensors, notes = dequantised(str(folder), config, tensors)
    dropped = sorted(CODE_KEYS & set(config))
    if dropped:
        notes = (*notes, f"config.json chooses code of its repository ({', '.join(dropped)}), which is left behind")
    config = {key: value for key, value in config.items() if key not in {"quantization_config", *dropped}}
    return Input(
        key=key,
        place=source.source if source.revision is None else f"{source.source}@{source.revision}",
        source=source,
        folder=folder,
        config=config,
        tensors=tensors,
        left_out=left_out,
        vocabulary=Vocabulary.of(folder),
        remote=remote,
        unread=remote or file is not None,
        notes=tuple(f"model {key!r}: {note}" for note in notes),
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of a model folder's ``config.json``, within bounds; nothing is built from it here.

    Raises:
        CheckpointError: it is missing or malformed.
    """
    return read_json(check_inside(folder / CONFIG_NAME, folder), BOUNDS)


def _check_blocks(folder: Path, tensors: Mapping[str, TensorSource], config: Mapping[str, Any]) -> None:
    """Refuse a model whose weights have another number of blocks than its configuration says."""
    if find_stacks(tensors, config):
        return
    counts = [value for path, value in count_keys(config) if path[-1] in COUNT_WORDS]
    found = find_stacks(tensors, {})
    if counts and found and (most := max(found.values())) > 1:
        raise MergeError(f"{folder}: config.json says {counts[0]} blocks, the weights have {most}")


def _from_memory(key: str, value: Mapping[str, torch.Tensor] | torch.nn.Module) -> Input:
    config: dict[str, Any] = {}
    if isinstance(value, torch.nn.Module):
        own = getattr(value, "config", None)
        if own is not None and hasattr(own, "to_dict"):
            config = {name: entry for name, entry in own.to_dict().items() if name != "_name_or_path"}
            config["architectures"] = [type(value).__name__]
        value = value.state_dict()
    wrong = [name for name, tensor in value.items() if not isinstance(tensor, torch.Tensor)]
    if wrong:
        raise MergeError(f"{wrong[0]!r} is no tensor: wanted a state dict of names and tensors")
    seen: dict[tuple[int, tuple[int, ...]], str] = {}
    tensors: dict[str, TensorSource] = {}
    for name, tensor in value.items():
        same = (tensor.data_ptr(), tuple(tensor.shape))
        if tensor.numel() and is_head(name) and same in seen:
            continue  # a tied head is the embedding under another name
        seen[same] = name
        tensors[name] = Held.of(name, tensor)
    return Input(key, "memory", None, None, config, dict(sorted(tensors.items())))


def _with_tie(opened: Input) -> Input:
    """Decide whether a model's head is its embedding, by its configuration and by what it stores."""
    if opened.embedding is None or not opened.config:
        return opened
    head = opened.head
    flag = tie_flag(opened.config)
    if flag is None:
        flag = head is None or _tied_by_default(opened)
    if not flag:
        return opened
    tensors = dict(opened.tensors)
    spare = None if head is None else tensors.pop(head)
    return replace(opened, tied=True, tensors=tensors, spare_head=spare)


def tie_flag(config: Mapping[str, Any]) -> bool | None:
    """Return what a configuration says about head and embedding being one tensor; None where it says nothing."""
    for part in (config, config.get("text_config"), config.get("language_config")):
        if isinstance(part, Mapping) and isinstance(part.get("tie_word_embeddings"), bool):
            return bool(part["tie_word_embeddings"])
    return None


def _tied_by_default(opened: Input) -> bool:
    if opened.config.get("model_type") in _UNTIED:
        return False
    from transformers import AutoConfig

    try:
        config = AutoConfig.for_model(**{"model_type": "", **opened.config})
    except (ValueError, KeyError, TypeError) as error:
        raise MergeError(
            f"{opened.place}: config.json does not say whether head and embedding are one tensor, and transformers "
            f"does not read it ({error}): set tie_word_embeddings there"
        ) from error
    return bool(getattr(config.get_text_config(), "tie_word_embeddings", False))


def _translated(model: Input, lead: Input) -> Input:
    """Return a model whose tensors have the names that the lead gives them."""
    wanted = set(lead.tensors)
    if lead.spare_head is not None:
        wanted.add(lead.spare_head.name)
    if wanted.issuperset(model.tensors):
        return model
    names = translation(list(model.tensors), wanted)
    if all(new == old for old, new in names.items()):
        return model
    tensors: dict[str, TensorSource] = {}
    for old, tensor in model.tensors.items():
        same = names[old] == old
        tensors[names[old]] = tensor if same else Renamed(names[old], tensor.dtype, tensor.shape, tensor)
    return replace(model, tensors=dict(sorted(tensors.items())))
