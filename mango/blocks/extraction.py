"""Extraction: models go in, a block store comes out."""

from __future__ import annotations

import json
import logging
import os.path
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mango.blocks.layout import Layout, Plan, fill_layout, plan_layout
from mango.blocks.manifest import Manifest, StoredBlock, StoredModel, StoredTensor
from mango.blocks.mapped import hash_tensors, map_tensors
from mango.blocks.params import Mode
from mango.blocks.store import MANIFEST_FILE, BlockStore
from mango.checkpoints import (
    Checkpoint,
    ModelSource,
    TensorInfo,
    TensorSpec,
    copy_tokenizer,
    replace_folder,
    resolve,
    tokenizer_sha256,
    write_file,
    write_tensors,
)
from mango.errors import CheckpointError, ConfigError

_log = logging.getLogger(__name__)
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)


def extract(
    models: Mapping[str, ModelSource],
    out: Path | str,
    mode: Mode,
    *,
    check: Callable[[BlockStore], None] | None = None,
) -> BlockStore:
    """Find the blocks of models and write a block store of them.

    The store takes the place of an older one in one step, when it is whole.

    Args:
        models: where each model is, by a name of letters, digits, dots, dashes and underscores.
        out: folder of the store.
        mode: ``reference`` records byte ranges in the models' own files, so a block costs its hash; ``copy`` writes
            each model into the store as an ordinary model folder.
        check: called with the finished store before it takes its place; when it raises, the older store stays.

    Returns:
        The store, opened.

    Raises:
        ArchitectureError: a model's blocks cannot be found.
        CheckpointError: a model is missing, incomplete or does not fit its configuration, or nothing can be written.
        ConfigError: there is no model, or a name cannot be the name of a folder.
    """
    out = Path(os.path.realpath(out))
    if not models:
        raise ConfigError("extract: no models given; name at least one")
    for name in models:
        if not _MODEL_NAME.fullmatch(name):
            raise ConfigError(f"models.{name}: wanted a name of letters, digits, dots, dashes and underscores")
    with replace_folder(out) as folder:
        stored = {name: _extract_model(name, source, folder, out, mode) for name, source in sorted(models.items())}
        text = Manifest(models=stored).model_dump_json(indent=1) + "\n"
        write_file(folder / MANIFEST_FILE, text)
        if check is not None:
            check(BlockStore.open(folder))
    return BlockStore.open(out)


def _extract_model(name: str, source: ModelSource, folder: Path, out: Path, mode: Mode) -> StoredModel:
    home = resolve(source)
    checkpoint = Checkpoint.open(home)
    plan = plan_layout(checkpoint)
    # Paths of the project move with it; downloads, conversions and folders given from the root stay where they are.
    relative = home == Path(source.source) and not home.is_absolute()
    computed: dict[str, TensorInfo] = {}
    if mode == "copy" or plan.conversions:
        _write(checkpoint, plan, folder / name, whole=mode == "copy")
        written = Checkpoint.open(folder / name)
        computed = {info.name: info for info in written.infos()}
    layout = fill_layout(plan, computed, str(home))

    def place(path: Path) -> str:
        if path.is_relative_to(folder):
            return path.relative_to(folder).as_posix()
        return os.path.relpath(path.absolute(), out) if relative else str(path.absolute())

    # The new folder lies beside the old one, so relative names lead to the same files from both.
    blocks = tuple(
        _block(folder, f"block {index} of {name!r}", index, class_name, tensors, layout, place)
        for index, (class_name, tensors) in enumerate(layout.blocks)
    )
    edges = _stored(layout.edges, place)
    _log.info("%s: %d blocks of class %s", name, len(blocks), layout.components.block_class)
    return StoredModel(
        source=source.source,
        revision=home.name if home.parent.name == "snapshots" else source.revision,
        folder=name if mode == "copy" else place(home),
        licence=declared_licence(home),
        mode=mode,
        architecture=layout.components,
        config=checkpoint.config(),
        tokenizer_sha256=tokenizer_sha256(home),
        blocks=blocks,
        edges=edges,
        edges_sha256=hash_tensors(map_tensors(folder, edges, owner=f"the edges of {name!r}")),
    )


def _stored(tensors: Mapping[str, TensorInfo], place: Callable[[Path], str]) -> tuple[StoredTensor, ...]:
    return tuple(
        StoredTensor(name=name, dtype=at.dtype, shape=at.shape, file=place(at.file), start=at.start, end=at.end)
        for name, at in sorted(tensors.items())
    )


def _block(
    folder: Path,
    owner: str,
    index: int,
    class_name: str,
    tensors: Mapping[str, TensorInfo],
    layout: Layout,
    place: Callable[[Path], str],
) -> StoredBlock:
    stored = _stored(tensors, place)
    mapped = map_tensors(folder, stored, owner=owner)
    prefix = layout.components.block_prefix(index)
    return StoredBlock(
        index=index,
        class_name=class_name,
        num_parameters=sum(tensor.numel() for tensor in mapped.values()),
        num_bytes=sum(at.end - at.start for at in stored),
        sha256=hash_tensors({key.removeprefix(prefix): tensor for key, tensor in mapped.items()}),
        tensors=stored,
    )


def _write(checkpoint: Checkpoint, plan: Plan, target: Path, *, whole: bool) -> None:
    """Write the tensors that have to be computed; or the whole model, as an ordinary folder of its own."""
    target.mkdir()
    places = plan.places if whole else {}
    makers = {name: conversion for conversion in plan.conversions for name in conversion.shapes}
    specs = [TensorSpec(name, at.dtype, at.shape) for name, at in places.items()]
    specs += [TensorSpec(name, conversion.dtype, conversion.shapes[name]) for name, conversion in makers.items()]
    made: dict[str, torch.Tensor] = {}

    def read(name: str) -> torch.Tensor:
        if name in places:
            return checkpoint.tensor(places[name].name)
        if name not in made:
            made.clear()  # one rule's tensors at a time
            made.update(makers[name].tensors(plan.model, checkpoint.tensor))
        return made[name].contiguous()

    write_tensors(target, sorted(specs, key=lambda spec: spec.name), read)
    if whole:
        write_file(target / "config.json", json.dumps(checkpoint.config(), indent=2) + "\n")
        copy_tokenizer(checkpoint.folder, target)


def declared_licence(folder: Path) -> str | None:
    """Return the licence that a model card declares in its front matter, or None where none is declared.

    Args:
        folder: a model folder, with or without ``README.md``.

    Returns:
        The licence as written there (``"apache-2.0"``).

    Raises:
        CheckpointError: the model card cannot be read.
    """
    card = folder / "README.md"
    if not card.is_file():
        return None
    try:
        found = _FRONT_MATTER.match(card.read_text("utf-8"))
        fields = YAML(typ="safe").load(found[1]) if found else None
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise CheckpointError(f"{card}: the model card cannot be read: {error}") from error
    licence = fields.get("license") if isinstance(fields, dict) else None
    return None if licence is None else str(licence)
