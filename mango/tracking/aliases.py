"""Moves several aliases of a registered model as one: MLflow sets them one at a time, and a kill may come between."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

_PENDING = "mango.pending_aliases"


def move_aliases(client: MlflowClient, name: str, versions: Mapping[str, int], *, why: str) -> None:
    """Set aliases under the lock of promotions; what a kill leaves undone is done by the next `read_aliases`.

    Args:
        client: of the registry.
        name: registered model.
        versions: version of each alias.
        why: what moves them.
    """
    client.set_registered_model_tag(name, _PENDING, json.dumps({"why": why, "versions": dict(versions)}))
    for alias, version in versions.items():
        client.set_registered_model_alias(name, alias, str(version))
    client.delete_registered_model_tag(name, _PENDING)


def read_aliases(client: MlflowClient, name: str) -> tuple[dict[str, int], str | None]:
    """Return the version of each alias, under the lock of promotions; a move that was cut off is finished first.

    Args:
        client: of the registry.
        name: registered model, which exists.

    Returns:
        The aliases, and what had begun to move them if it was cut off.
    """
    model = client.get_registered_model(name)
    aliases = {alias: int(version) for alias, version in model.aliases.items()}
    if _PENDING not in model.tags:
        return aliases, None
    pending = json.loads(model.tags[_PENDING])
    versions = {str(alias): int(version) for alias, version in pending["versions"].items()}
    move_aliases(client, name, versions, why=pending["why"])
    return aliases | versions, str(pending["why"])
