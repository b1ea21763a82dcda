"""Answers where a registered model came from and how to make it again."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mango.errors import RegistryError
from mango.tracking.package_store import stored_manifest
from mango.tracking.settings import TrackingSettings
from mango.tracking.sources import check_source
from mango.tracking.store import open_store

_ADDRESS = re.compile(r"(?:models:/)?(?P<name>[A-Za-z0-9][\w.-]*)(?:@(?P<alias>[\w.-]+)|/(?P<version>[0-9]+))")


@dataclass(frozen=True)
class Provenance:
    """Where a registered model came from.

    Args:
        name: registered model.
        version: its version.
        aliases: names that point to this version now.
        package_sha256: SHA-256 of the package's manifest, which covers every file.
        package: whether the stored manifest still has that hash (``intact``), another (``changed``) or is ``missing``.
        source: where the package lies.
        run_id: run that made it, if it was given.
        git_revision: commit that it was made from; None outside git.
        git_dirty: whether the work tree differed from that commit.
        data: data hashes.
        parameters: parameters, secrets redacted.
        parents: models that it was made of, with revision, licence and hash.
        gates: gate name to success.
        metric: name, value and mode of the metric that it competes on.
        headline: headline figures of its evaluation.
        reproduce: command that makes it again.
        signed_by: SHA-256 of the public keys that its signature was checked against; None where none was asked for.
    """

    name: str
    version: int
    aliases: tuple[str, ...]
    package_sha256: str
    package: Literal["intact", "changed", "missing"]
    source: str
    run_id: str | None
    git_revision: str | None
    git_dirty: bool
    data: dict[str, Any]
    parameters: dict[str, Any]
    parents: list[dict[str, Any]]
    gates: dict[str, Any]
    metric: dict[str, Any]
    headline: dict[str, Any]
    reproduce: str
    signed_by: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the answer as JSON data."""
        return asdict(self)

    def text(self) -> str:
        """Return the answer for people."""
        dirty = " (the work tree had changes that are not in this commit)" if self.git_dirty else ""
        lines = [
            f"models:/{self.name}/{self.version}" + (f"  ({', '.join(self.aliases)})" if self.aliases else ""),
            f"metric      {self.metric['name']} = {self.metric['value']:.6g} ({self.metric['mode']})",
            f"package     {self.package_sha256} ({self.package})",
            f"source      {self.source}",
            f"signed by   {self.signed_by or '-'}",
            f"run         {self.run_id or '-'}",
            f"git         {self.git_revision or 'none'}{dirty}",
            *_section("data", self.data),
            *_section("parents", {str(p.get("name", i)): _parent(p) for i, p in enumerate(self.parents)}),
            *_section("gates", {name: "passed" if ok is True else "failed" for name, ok in self.gates.items()}),
            *_section("headline", self.headline),
            *_section("parameters", self.parameters),
            "reproduce",
            f"  {self.reproduce}",
        ]
        return "\n".join(lines)


def why(uri: str, *, settings: TrackingSettings | None = None) -> Provenance:
    """Return where a registered model came from.

    Args:
        uri: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
        settings: where the registry is; from the environment when None.

    Raises:
        RegistryError: the address is malformed, nothing is registered there, Mango did not register it, or what is
            registered lies outside the artifact store.
    """
    settings = TrackingSettings.from_environment() if settings is None else settings
    match = _ADDRESS.fullmatch(uri)
    if match is None:
        raise RegistryError(f"{uri!r} is no model address; wanted models:/NAME@champion or models:/NAME/VERSION")
    client = open_store(settings)
    from mlflow.exceptions import MlflowException

    name = match["name"]
    try:
        aliases = {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}
        if match["alias"] is not None and match["alias"] not in aliases:
            known = ", ".join(sorted(aliases)) or "none"
            raise RegistryError(f"{uri}: no such alias; known: {known}")
        found = client.get_model_version(name, match["version"] or aliases[match["alias"]])
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise RegistryError(f"{uri}: nothing is registered there; register with `mango promote {name}`") from error
    tags = found.tags
    if "mango.package_sha256" not in tags:
        raise RegistryError(f"{uri}: was not registered by `mango promote`, so nothing is known of where it came from")
    revision = tags["mango.git.revision"] or None
    return Provenance(
        name=name,
        version=int(found.version),
        aliases=tuple(sorted(alias for alias, version in aliases.items() if version == str(found.version))),
        package_sha256=tags["mango.package_sha256"],
        package=_state(str(found.source), tags["mango.package_sha256"], settings),
        source=str(found.source),
        run_id=found.run_id or None,
        git_revision=revision,
        git_dirty=json.loads(tags["mango.git.dirty"]),
        data=json.loads(tags["mango.data"]),
        parameters=json.loads(tags["mango.parameters"]),
        parents=json.loads(tags["mango.parents"]),
        gates=json.loads(tags["mango.gates"]),
        metric={
            "name": tags["mango.metric.name"],
            "value": float(tags["mango.metric.value"]),
            "mode": tags["mango.metric.mode"],
        },
        headline=json.loads(tags["mango.headline"]),
        reproduce=tags.get("mango.reproduce") or (f"git checkout {revision} && dvc repro" if revision else "unknown"),
        signed_by=tags.get("mango.signed_by"),
    )


def _state(source: str, sha256: str, settings: TrackingSettings) -> Literal["intact", "changed", "missing"]:
    check_source(source, settings)
    try:
        return "intact" if stored_manifest(source, settings)[1] == sha256 else "changed"
    except RegistryError:
        return "missing"


def _parent(parent: dict[str, Any]) -> str:
    return "  ".join(str(parent[key]) for key in ("source", "revision", "licence", "sha256") if parent.get(key))


def _section(title: str, values: dict[str, Any]) -> list[str]:
    lines = list(_lines(values, "  "))
    return [title, *lines] if lines else []


def _lines(values: dict[str, Any], indent: str) -> list[str]:
    lines = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{key}", *_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {value if isinstance(value, str) else json.dumps(value)}")
    return lines
