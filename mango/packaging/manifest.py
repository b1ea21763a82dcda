"""``mango.json``, the manifest of a package: its format, and the check of a folder against it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, JsonValue, ValidationError

from mango.checkpoints import MANIFEST_NAME, known_sha256
from mango.config import Frozen
from mango.errors import PackagingError
from mango.evaluation.schema import Evaluation, Headline, System, Units
from mango.packaging.git import GitState
from mango.packaging.params import NAME_PATTERN, Mode
from mango.security.signing import SIGNATURE_NAME

FORMAT_VERSION: Literal[1] = 1
MANIFEST_FILE = "mango.json"
CARD_FILE = "README.md"
BOM_FILE = "bom.cdx.json"
UNLISTED = frozenset({MANIFEST_FILE, MANIFEST_NAME, SIGNATURE_NAME})
"""Files that are written after the manifest, so that it cannot list them."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or path.as_posix() != name or name == "." or "\0" in name:
        raise ValueError("is no plain path inside the package")
    return name


class PackedFile(Frozen):
    """One file of the package."""

    sha256: Sha256
    bytes: int = Field(ge=0)


class Parent(Frozen):
    """A model that the package was made of.

    Args:
        name: what params.yaml calls it.
        source: where it came from: a folder, a Hub id or a GGUF file.
        revision: commit of the Hub repository, where it came from one.
        licence: what its model card declares; None when it declares nothing.
        sha256: hash of its blocks, edges and tokenizer.
    """

    name: str
    source: str
    revision: str | None
    licence: str | None
    sha256: Sha256


class DataSource(Frozen):
    """One source of the corpus.

    Args:
        name: what the corpus calls it.
        licence: the licence that its documents declare, several joined by ``AND``; None when they declare nothing.
        documents: how many there are, in all splits.
        sha256: hash of its texts, in the order of their ids, with NUL between them.
    """

    name: str
    licence: str | None
    documents: int = Field(ge=0)
    sha256: Sha256


class DataState(Frozen):
    """The text that trained and evaluated the model: one hash of it all, one for each file, and its sources."""

    corpus_sha256: Sha256
    files: dict[str, Sha256]
    sources: tuple[DataSource, ...] = ()


class GateResult(Frozen):
    """How a data gate ended."""

    success: bool


class Metric(Frozen):
    """The figure that packages of one name compete on."""

    name: str = Field(min_length=1)
    value: float
    mode: Mode


class EvaluationSummary(Frozen):
    """The evaluation's figures, systems by name."""

    headline: Headline
    systems: dict[str, System]

    @classmethod
    def of(cls, evaluation: Evaluation) -> EvaluationSummary:
        """Return the figures of an evaluation that a package keeps."""
        return cls(headline=evaluation.headline, systems={system.name: system for system in evaluation.systems})


class PackageManifest(Frozen):
    """Everything that a package says about itself."""

    format_version: Literal[1] = FORMAT_VERSION
    name: str = Field(pattern=NAME_PATTERN)
    files: dict[Annotated[str, AfterValidator(_inside)], PackedFile]
    git: GitState
    data: DataState
    parameters: dict[str, JsonValue]
    parents: tuple[Parent, ...]
    licence_warnings: tuple[str, ...] = ()
    evaluation: EvaluationSummary
    gates: dict[str, GateResult]
    metric: Metric
    reproduce: str = Field(min_length=1)

    def text(self) -> str:
        """Return the text of ``mango.json``."""
        return json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def json_schema_text() -> str:
    """Return the JSON schema (draft 2020-12) of ``mango.json``, as committed in ``mango.schema.json``."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **PackageManifest.model_json_schema()}
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


def default_metric(units: Units) -> str:
    """Return the metric that a package competes on when none is named.

    Args:
        units: What the evaluation's figures are measured in: of text that switches domain, nats where there is any.
    """
    return "fused_hard.switching" if units.switching == "nats_per_token" else "fused_hard.pure_mean"


def metric_value(summary: EvaluationSummary, name: str) -> float:
    """Return a metric of an evaluation.

    Args:
        summary: The evaluation's figures.
        name: ``fused_hard.switching``, ``fused_soft.pure.code``, or a headline figure such as ``gap_closed_soft``.

    Returns:
        Its value.

    Raises:
        PackagingError: There is no such figure, it is no number, or it was not measured.
    """
    tree: Any = {**summary.headline.model_dump(), **{k: v.model_dump() for k, v in summary.systems.items()}}
    passed: list[str] = []
    for key in name.split("."):
        if not isinstance(tree, Mapping) or key not in tree:
            known = ", ".join(sorted(tree)) if isinstance(tree, Mapping) else "nothing"
            where = ".".join(passed) or "the evaluation"
            raise PackagingError(f"package.metric: {name!r} is not in the evaluation; {where} holds {known}")
        tree = tree[key]
        passed.append(key)
    if isinstance(tree, bool) or not isinstance(tree, int | float):
        found = "not measured" if tree is None else f"{type(tree).__name__}, not a number"
        raise PackagingError(f"package.metric: {name!r} is {found}; choose another, or evaluate again")
    return float(tree)


def read_manifest(folder: Path) -> PackageManifest:
    """Return the manifest of a package, without a look at the other files.

    Raises:
        PackagingError: It is missing, malformed or of another format version.
    """
    path = folder / MANIFEST_FILE
    try:
        text = path.read_bytes()
    except FileNotFoundError as error:
        raise PackagingError(f"{folder}: is no package, it has no {MANIFEST_FILE}; run the package stage") from error
    except OSError as error:
        raise PackagingError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        return PackageManifest.model_validate_json(text)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, p['loc'])) or 'document'}: {p['msg']}" for p in error.errors()[:5]]
        raise PackagingError(
            f"{path}: {'; '.join(problems)}; wanted a manifest of format version {FORMAT_VERSION}: build it again"
        ) from error


def verify_package(folder: Path) -> PackageManifest:
    """Check that a package holds the files of its manifest, byte for byte, and no other.

    Args:
        folder: The package.

    Returns:
        Its manifest.

    Raises:
        PackagingError: The manifest cannot be read, or a file is missing, surplus, a link or changed; it is named.
    """
    manifest = read_manifest(folder)
    found = dict(_files(folder))
    for name, wanted in sorted(manifest.files.items()):
        path = found.get(name)
        if path is None:
            raise PackagingError(f"{folder / name}: missing, though {MANIFEST_FILE} lists it; build the package again")
        size = path.stat().st_size
        if size != wanted.bytes:
            raise PackagingError(f"{path}: {size} bytes, {MANIFEST_FILE} says {wanted.bytes}; build the package again")
        digest = known_sha256(path)
        if digest != wanted.sha256:
            raise PackagingError(
                f"{path}: was changed: its SHA-256 is {digest[:12]}..., {MANIFEST_FILE} says {wanted.sha256[:12]}...; "
                "build the package again"
            )
    for name in sorted(set(found) - set(manifest.files) - UNLISTED):
        raise PackagingError(f"{found[name]}: not listed in {MANIFEST_FILE}, so nothing vouches for it; remove it")
    return manifest


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise PackagingError(f"{path}: is a link or a special file; a package holds plain files only")
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path
