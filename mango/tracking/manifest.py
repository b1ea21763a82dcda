"""Reads and checks ``mango.json``, the manifest of a package that wants to be registered."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mango.errors import RegistryError
from mango.security.signing import SIGNATURE_NAME

MANIFEST = "mango.json"
# Written after the manifest, so it cannot list them: the durable writer's own list, and a signature over it.
BESIDE = {MANIFEST, "MANIFEST.json", SIGNATURE_NAME}


class _Part(BaseModel):
    """A part of the manifest; keys that a newer writer added are kept."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)


class FileEntry(_Part):
    """One file of the package: its SHA-256 and size in bytes."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class GitState(_Part):
    """The commit that the package was made from, and whether the work tree differed from it."""

    revision: str | None = None
    dirty: bool = False


class DeclaredMetric(_Part):
    """The metric that packages of this name compete on."""

    name: str = Field(min_length=1)
    value: float
    mode: Literal["min", "max"]


class PackageManifest(_Part):
    """What a package says about itself."""

    format_version: Literal[1]
    name: str = Field(min_length=1)
    files: dict[str, FileEntry] = Field(min_length=1)
    git: GitState = GitState()
    data: dict[str, Any] = {}
    parameters: dict[str, Any] = {}
    parents: list[dict[str, Any]] = []
    evaluation: dict[str, Any] = {}
    gates: dict[str, Any] = {}
    metric: DeclaredMetric | None = None
    reproduce: str = ""

    @property
    def min_delta(self) -> float:
        """The improvement that ``package.min_delta`` in the package's own parameters asks for; 0 when it has none."""
        package = self.parameters.get("package")
        nested = package.get("min_delta") if isinstance(package, Mapping) else None
        value = self.parameters.get("package.min_delta", nested)
        if value is None:
            return 0.0
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RegistryError(f"{MANIFEST}: parameters: package.min_delta: found {value!r}, wanted a number")
        return float(value)


def read_manifest(package: Path) -> tuple[PackageManifest, str]:
    """Return a package's manifest and its SHA-256, which names the package: it covers the hash of every file.

    Raises:
        RegistryError: it is missing, is no JSON, holds NaN or infinity, or does not follow the format.
    """
    path = package / MANIFEST
    if not path.is_file():
        raise RegistryError(f"{package}: no {MANIFEST} found; build the package first (`dvc repro package`)")
    data = path.read_bytes()
    return parse_manifest(data, str(path)), hashlib.sha256(data).hexdigest()


def parse_manifest(data: bytes, where: str) -> PackageManifest:
    """Return the manifest that ``data`` holds.

    Raises:
        RegistryError: as for `read_manifest`; the message starts with ``where``.
    """

    def refuse(constant: str) -> NoReturn:
        raise RegistryError(f"{where}: found {constant}, wanted finite numbers only; evaluate again")

    try:
        tree = json.loads(data, parse_constant=refuse)
        return PackageManifest.model_validate(tree)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors()[:5])
        raise RegistryError(f"{where}: {problems}; build the package again") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RegistryError(f"{where}: is no JSON: {error}; build the package again") from error


def check_files(package: Path, manifest: PackageManifest) -> None:
    """Check that a folder holds the manifest's files, byte for byte, and no other.

    Raises:
        RegistryError: a file is missing, surplus, outside the folder or differs from its hash; the message names it.
    """
    for name, entry in sorted(manifest.files.items()):
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or not pure.parts or name in BESIDE or "\0" in name:
            raise RegistryError(f"{package / MANIFEST}: file name {name!r} points outside the package")
        path = package / name
        if not path.is_file():
            raise RegistryError(f"{path}: missing, but {MANIFEST} lists it; build the package again")
        size, digest = path.stat().st_size, sha256_of(path)
        if (size, digest) != (entry.bytes, entry.sha256):
            raise RegistryError(
                f"{path}: found {size} bytes with SHA-256 {digest[:12]}..., wanted {entry.bytes} bytes with "
                f"{entry.sha256[:12]}...; build the package again"
            )
    present = {path.relative_to(package).as_posix() for path in package.rglob("*") if not path.is_dir()}
    for name in sorted(present - set(manifest.files) - BESIDE):
        raise RegistryError(f"{package / name}: not listed in {MANIFEST}, so nothing vouches for it; remove it")


def check_gates(manifest: PackageManifest, required: Sequence[str], where: str) -> None:
    """Check that every gate in the manifest passed, and that the required ones are there.

    Raises:
        RegistryError: a gate failed, says nothing of success, or is missing.
    """
    for name, gate in sorted(manifest.gates.items()):
        success = gate.get("success") if isinstance(gate, Mapping) else gate
        if success is not True:
            raise RegistryError(f"{where}: gate {name!r} did not pass (success: {success!r}); see reports/gates/{name}")
    for name in required:
        if name not in manifest.gates:
            known = ", ".join(sorted(manifest.gates)) or "none"
            raise RegistryError(f"{where}: gate {name!r} was not run; found {known}; run `dvc repro` for it")


def metric_value(manifest: PackageManifest, name: str, where: str) -> float:
    """Return a metric: the declared one, or ``SYSTEM.FIELD`` or a headline figure of the evaluation.

    Raises:
        RegistryError: the package does not have it, or it is not finite.
    """
    value: object = None
    if manifest.metric is not None and manifest.metric.name == name:
        value = manifest.metric.value
    elif name in manifest.evaluation.get("headline", {}):
        value = manifest.evaluation["headline"][name]
    else:
        value = _lookup(manifest.evaluation.get("systems", {}), name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RegistryError(f"{where}: metric {name!r}: found {value!r}, wanted a finite number; evaluate again")
    return float(value)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _lookup(systems: object, name: str) -> object:
    """Find ``fused_hard.switching`` in systems given as a mapping or, as in evaluation.json, as a list."""
    first, *rest = name.split(".")
    if isinstance(systems, Mapping):
        found: object = systems.get(first)
    elif isinstance(systems, list):
        found = next((s for s in systems if isinstance(s, Mapping) and s.get("name") == first), None)
    else:
        return None
    for key in rest:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found
