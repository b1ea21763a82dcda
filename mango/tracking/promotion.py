"""Registers packages and decides which one is champion, under a lock."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mango.errors import RegistryError
from mango.redaction import redact_text, redact_tree
from mango.security.keys import fingerprint
from mango.tracking.aliases import move_aliases, read_aliases
from mango.tracking.locks import store_lock
from mango.tracking.manifest import DeclaredMetric, PackageManifest, check_gates, metric_value, read_manifest
from mango.tracking.package_store import open_package, store_package, stored_manifest
from mango.tracking.settings import TrackingSettings
from mango.tracking.sources import check_source
from mango.tracking.store import open_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
PREVIOUS = "previous"
SIGNED_BY = "mango.signed_by"
_LONGEST_TAG = 100_000
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,199}")


@dataclass(frozen=True)
class PromotionResult:
    """What a promotion did.

    Args:
        name: the registered model.
        version: the version that the package is registered as.
        promoted: whether this call made it champion.
        champion: version that is champion now.
        previous: version that `rollback` would bring back, if there is one.
        metric: what was compared.
        mode: whether less (``min``) or more (``max``) is better.
        value: the package's value.
        champion_value: the value of the champion that was met, None if there was none.
        min_delta: improvement that was asked for, in units of the metric.
        package_sha256: which package.
        reason: one sentence for people.
    """

    name: str
    version: int
    promoted: bool
    champion: int
    previous: int | None
    metric: str
    mode: Literal["min", "max"]
    value: float
    champion_value: float | None
    min_delta: float
    package_sha256: str
    reason: str

    def as_dict(self) -> dict[str, object]:
        """Return the result as JSON data."""
        return asdict(self)


@dataclass(frozen=True)
class RollbackResult:
    """What a rollback did: the version that is champion now, and the one that was."""

    name: str
    champion: int
    previous: int

    def as_dict(self) -> dict[str, object]:
        """Return the result as JSON data."""
        return asdict(self)


def register(
    package: Path,
    name: str,
    *,
    settings: TrackingSettings | None = None,
    run_id: str | None = None,
    key: Path | None = None,
) -> int:
    """Register a package as a version of a model; the same package keeps its version.

    The version's source is the package in the artifact store (see `package_store.store_package`: no second copy of the
    weights), and its tags say where it came from.

    Args:
        package: folder with ``mango.json``.
        name: registered model.
        settings: where the registry is; from the environment when None.
        run_id: run that made the package.
        key: public key whose owner must have signed the package, beside that of ``settings.trusted_key``.

    Returns:
        the version.

    Raises:
        RegistryError: the package is damaged, has no metric, holds NaN, a gate failed, or a signature is missing.
        ConfigError: a key cannot be read.
    """
    settings = TrackingSettings.from_environment() if settings is None else settings
    _check_name(name)
    manifest, sha256 = read_manifest(package)
    _vet(manifest, (), str(package))
    client = open_store(settings)
    with store_lock(settings, "promote"):
        keys = _keys(settings, key)
        source = store_package(package, manifest, sha256, settings, keys)
        return _register(client, name, manifest, sha256, source, run_id, keys)


def promote(
    name: str | None,
    package: Path,
    *,
    metric: str | None = None,
    min_delta: float | None = None,
    mode: Literal["min", "max"] | None = None,
    gates: Sequence[str] = (),
    settings: TrackingSettings | None = None,
    run_id: str | None = None,
    key: Path | None = None,
) -> PromotionResult:
    """Register a package and make it champion if it beats the champion.

    Reading the champion, comparing and setting the alias happen under one lock (a file lock beside SQLite, an advisory
    lock in PostgreSQL), because MLflow's aliases have no compare-and-set: without it a worse model can win a race.

    Args:
        name: registered model; the name that the package gives itself when None.
        package: folder with ``mango.json``.
        metric: what to compare; the one that the package declares when None.
        min_delta: improvement over the champion that is asked for, at least 0; ``package.min_delta`` of the package's
            own parameters when None. An equal value never wins.
        mode: whether less or more is better; as declared by the package when None.
        gates: gates that must have been run; every gate in the package must have passed in any case.
        settings: where the registry is; from the environment when None.
        run_id: run that made the package.
        key: public key whose owner must have signed the package, beside that of ``settings.trusted_key``.

    Raises:
        RegistryError: the package is damaged, has no such metric, holds NaN, a gate failed or is missing, or a
            signature is missing or another's; nothing is registered then. Also when the champion cannot be compared on
            this metric, or lies outside the artifact store.
        ConfigError: a key cannot be read.
    """
    settings = TrackingSettings.from_environment() if settings is None else settings
    manifest, sha256 = read_manifest(package)
    name = manifest.name if name is None else name
    _check_name(name)
    declared = _vet(manifest, gates, str(package))
    metric = metric or declared.name
    mode = mode or declared.mode
    min_delta = manifest.min_delta if min_delta is None else min_delta
    if not 0 <= min_delta < float("inf"):
        raise RegistryError(f"min_delta: found {min_delta}, wanted a finite number of at least 0")
    value = metric_value(manifest, metric, str(package))
    client = open_store(settings)
    with store_lock(settings, "promote"):
        keys = _keys(settings, key)
        source = store_package(package, manifest, sha256, settings, keys)
        version = _register(client, name, manifest, sha256, source, run_id, keys)
        aliases, _ = _aliases(client, name)
        champion, previous = aliases.get(CHAMPION), aliases.get(PREVIOUS)
        held = None if champion is None else _value_of(client, name, champion, metric, mode, settings)
        promoted, reason = _decide(version, champion, value, held, metric, mode, min_delta)
        if promoted:
            moves = {CHAMPION: version}
            if champion is not None:
                moves[PREVIOUS] = previous = champion
            move_aliases(client, name, moves, why="promote")
            champion = version
    assert champion is not None
    return PromotionResult(
        name, version, promoted, champion, previous, metric, mode, value, held, min_delta, sha256, reason
    )


def rollback(name: str, *, settings: TrackingSettings | None = None) -> RollbackResult:
    """Swap ``champion`` and ``previous``, under the lock that promotions take; a second call swaps them back.

    Raises:
        RegistryError: there is no such model, or nothing to go back to; or what would become champion lies outside the
            store, is no longer what was registered, or is not signed by the owner of ``settings.trusted_key``.
    """
    settings = TrackingSettings.from_environment() if settings is None else settings
    _check_name(name)
    client = open_store(settings)
    with store_lock(settings, "promote"):
        aliases, finished = _aliases(client, name)
        champion, previous = aliases.get(CHAMPION), aliases.get(PREVIOUS)
        if finished == "rollback" and champion is not None and previous is not None:
            return RollbackResult(name, champion=champion, previous=previous)  # that of a call that was cut off
        if champion is None or previous is None or champion == previous:
            raise RegistryError(f"models:/{name}: has no previous champion, so there is nothing to roll back to")
        with open_package(str(client.get_model_version(name, str(previous)).source), settings):
            pass  # it is whole, in its place and signed
        move_aliases(client, name, {PREVIOUS: champion, CHAMPION: previous}, why="rollback")
    return RollbackResult(name, champion=previous, previous=champion)


def _vet(manifest: PackageManifest, gates: Sequence[str], where: str) -> DeclaredMetric:
    check_gates(manifest, gates, where)
    if manifest.metric is None:
        raise RegistryError(f"{where}: declares no metric, so it cannot be compared; set package.metric and rebuild")
    return manifest.metric


def _decide(
    version: int,
    champion: int | None,
    value: float,
    held: float | None,
    metric: str,
    mode: Literal["min", "max"],
    min_delta: float,
) -> tuple[bool, str]:
    if champion is None or held is None:
        return True, f"version {version} is the first champion ({metric} {value:.6g})"
    if champion == version:
        return False, f"version {version} is champion already ({metric} {value:.6g})"
    gain = held - value if mode == "min" else value - held
    compared = f"{metric} {value:.6g} against {held:.6g} of version {champion}"
    if gain > 0 and gain >= min_delta:
        return True, f"version {version} is champion: {compared}"
    return False, f"version {champion} stays champion: {compared}, wanted better by at least {min_delta:g}"


def _value_of(
    client: MlflowClient, name: str, version: int, metric: str, mode: str, settings: TrackingSettings
) -> float:
    """Return a registered version's value of a metric: from its tags, else from its own evaluation."""
    found = client.get_model_version(name, str(version))
    check_source(str(found.source), settings)
    if found.tags.get("mango.metric.name") == metric:
        if found.tags["mango.metric.mode"] != mode:
            raise RegistryError(
                f"models:/{name}/{version}: the champion's {metric} is better when "
                f"{'less' if mode == 'max' else 'more'}, the package says the opposite; set package.metric alike"
            )
        return float(found.tags["mango.metric.value"])
    where = f"models:/{name}/{version} (champion)"
    return metric_value(stored_manifest(str(found.source), settings)[0], metric, where)


def _keys(settings: TrackingSettings, key: Path | None) -> list[Path]:
    """Return the keys that must have signed: a policy only ever adds to another."""
    return [given for given in (settings.trusted_key, key) if given is not None]


def _register(
    client: MlflowClient,
    name: str,
    manifest: PackageManifest,
    sha256: str,
    source: str,
    run_id: str | None,
    keys: Sequence[Path],
) -> int:
    from mlflow.exceptions import MlflowException

    signers = ",".join(dict.fromkeys(fingerprint(key) for key in keys))
    known = _find(client, name, sha256)
    if known is not None:
        if known.source != source:
            raise RegistryError(
                f"models:/{name}/{known.version}: claims to be this package but lies in "
                f"{redact_text(str(known.source))}, not in {source}; delete that version"
            )
        if signers:
            client.set_model_version_tag(name, str(known.version), SIGNED_BY, signers)
        return int(known.version)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = _tags(manifest, sha256) | ({SIGNED_BY: signers} if signers else {})
    return int(client.create_model_version(name, source, run_id=run_id, tags=tags, await_creation_for=0).version)


def _find(client: MlflowClient, name: str, sha256: str) -> ModelVersion | None:
    query = f"name = '{name}' and tags.`mango.package_sha256` = '{sha256}'"
    found: list[ModelVersion] = list(client.search_model_versions(query, max_results=1))
    return found[0] if found else None


def _aliases(client: MlflowClient, name: str) -> tuple[dict[str, int], str | None]:
    from mlflow.exceptions import MlflowException

    try:
        return read_aliases(client, name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise RegistryError(f"models:/{name}: no such model; register one with `mango promote {name}`") from error


def _tags(manifest: PackageManifest, sha256: str) -> dict[str, str]:
    """Return everything that `why` answers with, so that it needs neither the run nor the files."""
    assert manifest.metric is not None
    gates = {name: gate.get("success") if isinstance(gate, dict) else gate for name, gate in manifest.gates.items()}
    tags = {
        "mango.package_sha256": sha256,
        "mango.package_name": manifest.name,
        "mango.metric.name": manifest.metric.name,
        "mango.metric.value": repr(manifest.metric.value),
        "mango.metric.mode": manifest.metric.mode,
        "mango.git.revision": manifest.git.revision or "",
        "mango.git.dirty": json.dumps(manifest.git.dirty),
        "mango.data": _json(manifest.data),
        "mango.parameters": _json(manifest.parameters),
        "mango.parents": _json(manifest.parents),
        "mango.gates": _json(gates),
        "mango.headline": _json(manifest.evaluation.get("headline", {})),
        "mango.reproduce": redact_text(manifest.reproduce),
    }
    for name, text in tags.items():
        if len(text) > _LONGEST_TAG:
            raise RegistryError(
                f"{manifest.name}: {name} has {len(text)} characters, the registry holds {_LONGEST_TAG}"
            )
    return tags


def _json(value: object) -> str:
    return json.dumps(redact_tree(value), sort_keys=True, allow_nan=False)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise RegistryError(f"model name {name!r}: wanted letters, digits, '_', '-' and '.', starting with one of them")
