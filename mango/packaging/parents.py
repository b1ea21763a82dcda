"""Which models a package was made of, as the block store knows them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from mango.blocks import BlockStore
from mango.packaging.manifest import Parent


def parents_of(store: BlockStore, names: Iterable[str]) -> list[Parent]:
    """Return where models came from, each once, in the order of their names.

    Args:
        store: The block store that they were extracted into.
        names: Their names in params.yaml.

    Returns:
        One parent for each name.

    Raises:
        UnknownNameError: The store has no such model.
    """
    models = {name: store.model(name) for name in sorted(set(names))}
    return [
        Parent(
            name=name,
            source=model.source,
            revision=model.revision,
            licence=model.licence,
            sha256=content_sha256(store, name),
        )
        for name, model in models.items()
    ]


def content_sha256(store: BlockStore, name: str) -> str:
    """Return one hash of a model's blocks, edges and tokenizer, wherever they are stored."""
    model = store.model(name)
    blocks = [store.block_sha256(name, block.index) for block in model.blocks]
    parts = [*blocks, store.edges_sha256(name), model.tokenizer_sha256 or "no tokenizer"]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
