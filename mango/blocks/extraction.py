"""Extraction: models go in, a block store comes out."""

from __future__ import annotations

import json
import logging
import math
import os.path
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mango.blocks.identity import check_vouched, identify
from mango.blocks.manifest import MANIFEST_FILE, Manifest, StoredBlock, StoredModel, StoredTensor
from mango.blocks.params import Mode
from mango.blocks.quick import Layout, quick_layout
from mango.blocks.refusals import refuse_folder
from mango.checkpoints import (
    Checkpoint,
    ModelSource,
    TensorInfo,
    check_hashes,
    copy_tokenizer,
    has_tokenizer,
    replace_folder,
    resolve,
    tokenizer_sha256,
    write_file,
)
from mango.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    import torch

    from mango.blocks.layout import Plan
    from mango.blocks.store import BlockStore

_log = logging.getLogger(__name__)
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)


def extract(
    models: Mapping[str, ModelSource],
    out: Path | str,
    mode: Mode,
    *,
    hashed: bool = False,
    check: Callable[[BlockStore], None] | None = None,
) -> BlockStore:
    """Find the blocks of models and write a block store of them.

    The store takes the place of an older one in one step, when it is whole. In mode ``reference`` only headers are
    read: the store notes each file's size, times and inode, and refuses a block whose file has changed; its hash is
    taken when it is asked for.

    Args:
        models: where each model is, by a name of letters, digits, dots, dashes and underscores.
        out: folder of the store.
        mode: ``reference`` records byte ranges in the models' own files; ``copy`` writes each model into the store as
            an ordinary model folder.
        hashed: in mode ``reference`` too, read every block now and note its hash, so that the store says what it holds
            on another machine as well.
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
        stored = {
            name: _extract_model(name, source, folder, out, mode, hashed=hashed)
            for name, source in sorted(models.items())
        }
        manifest = Manifest(models=stored)
        write_file(folder / MANIFEST_FILE, manifest.model_dump_json(indent=1) + "\n")
        if check is not None:
            check(_opened(folder))
    return _opened(out)


def _opened(folder: Path) -> BlockStore:
    from mango.blocks.store import BlockStore

    return BlockStore.open(folder)


def _extract_model(name: str, source: ModelSource, folder: Path, out: Path, mode: Mode, *, hashed: bool) -> StoredModel:
    home = resolve(source)
    checkpoint = refuse_folder(home) or Checkpoint.open_unhashed(home)
    check_vouched(home)
    # Paths of the project move with it; downloads, conversions and folders given from the root stay where they are.
    relative = home == Path(source.source) and not home.is_absolute()
    layout = None if mode == "copy" else quick_layout(checkpoint)
    watched = layout is None
    if layout is None:
        layout, computed = _watched(checkpoint, folder / name, whole=mode == "copy")
        hashed = hashed or computed
    if hashed:
        check_hashes(home)

    def place(path: Path) -> str:
        if path.is_relative_to(folder):
            return path.relative_to(folder).as_posix()
        return os.path.relpath(path.absolute(), out) if relative else str(path.absolute())

    # The new folder lies beside the old one, so relative names lead to the same files from both.
    blocks = tuple(
        _block(folder, f"block {index} of {name!r}", index, class_name, tensors, layout, place, hashed=hashed)
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
        tokenizer_sha256=tokenizer_sha256(home) if has_tokenizer(home) else None,
        blocks=blocks,
        edges=edges,
        edges_sha256=_hash(folder, edges, f"the edges of {name!r}", "") if hashed else None,
        watched=watched,
        files=() if hashed else identify(checkpoint.files(), home, place),
    )


def _watched(checkpoint: Checkpoint, target: Path, *, whole: bool) -> tuple[Layout, bool]:
    """Return the layout that watching the model gives, and whether tensors were written for it."""
    from mango.blocks.layout import fill_layout, plan_layout

    plan = plan_layout(checkpoint)
    computed: dict[str, TensorInfo] = {}
    if whole or plan.conversions:
        if whole:
            check_hashes(checkpoint.folder)
        _write(checkpoint, plan, target, whole=whole)
        written = Checkpoint.open(target)
        computed = {info.name: info for info in written.infos()}
    return fill_layout(plan, computed, str(checkpoint.folder)), bool(computed)


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
    *,
    hashed: bool,
) -> StoredBlock:
    stored = _stored(tensors, place)
    return StoredBlock(
        index=index,
        class_name=class_name,
        num_parameters=sum(math.prod(at.shape) for at in stored),
        num_bytes=sum(at.end - at.start for at in stored),
        sha256=_hash(folder, stored, owner, layout.components.block_prefix(index)) if hashed else None,
        tensors=stored,
    )


def _hash(folder: Path, stored: tuple[StoredTensor, ...], owner: str, prefix: str) -> str:
    from mango.blocks.mapped import hash_tensors, map_tensors

    mapped = map_tensors(folder, stored, owner=owner)
    return hash_tensors({key.removeprefix(prefix): tensor for key, tensor in mapped.items()})


def _write(checkpoint: Checkpoint, plan: Plan, target: Path, *, whole: bool) -> None:
    """Write the tensors that have to be computed; or the whole model, as an ordinary folder of its own."""
    from mango.checkpoints import TensorSpec, write_tensors

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
        if has_tokenizer(checkpoint.folder):
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
