"""Which models a package was made of, as the block store knows them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from mango.blocks import BlockStore, StoredModel
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
            sha256=content_sha256(model),
        )
        for name, model in models.items()
    ]


def content_sha256(model: StoredModel) -> str:
    """Return one hash of a model's blocks, edges and tokenizer, wherever they are stored."""
    parts = [*(block.sha256 for block in model.blocks), model.edges_sha256, model.tokenizer_sha256]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
