"""Builds a package: a fused checkpoint with its manifest and model card, in one step or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import mango
from mango.checkpoints import check_room, replace_folder, sha256_file, verify, write_file
from mango.checkpoints.sealing import seal
from mango.errors import PackagingError
from mango.evaluation.schema import parse
from mango.packaging.bom import bill_of_materials
from mango.packaging.card import model_card, package_licence
from mango.packaging.git import GitState
from mango.packaging.licences import Licensed, licence_warnings
from mango.packaging.manifest import (
    BOM_FILE,
    CARD_FILE,
    MANIFEST_FILE,
    UNLISTED,
    DataState,
    EvaluationSummary,
    GateResult,
    Metric,
    PackageManifest,
    PackedFile,
    Parent,
    default_metric,
    metric_value,
)
from mango.packaging.params import PackageParams
from mango.redaction import hide_secrets, redact_text, redact_tree
from mango.security.signing import sign_folder

_WEIGHTS = ".safetensors"
_CHUNK_BYTES = 1 << 20


def build_package(
    fused: Path,
    out: Path,
    *,
    params: PackageParams,
    evaluation: Mapping[str, Any],
    gates: Mapping[str, bool],
    parameters: Mapping[str, Any],
    parents: Sequence[Parent],
    data: DataState,
    git: GitState,
    reproduce: str,
    signing_key: Path | None = None,
    signing_password: str | None = None,
) -> Path:
    """Build a package from a fused checkpoint.

    Weights are hard links to those of the checkpoint where the file system allows it: both are replaced whole and
    never written in place. Small files are copied. A bill of materials lists what it is made of. Secrets among the
    parameters, and any of the environment's, are hidden in all that is written.

    Args:
        fused: The fused checkpoint, with its own manifest.
        out: The package's folder; an older package there is replaced when the new one is whole.
        params: Name and metric.
        evaluation: The document of ``reports/evaluation.json``.
        gates: For each gate whether it passed.
        parameters: All parameters of the pipeline.
        parents: The models that it was made of.
        data: Hashes of the corpus.
        git: State of the code.
        reproduce: The command that makes the package again.
        signing_key: Private key (PEM) that signs the package; it stays unsigned without one.
        signing_password: Password of that key.

    Returns:
        The package's folder.

    Raises:
        PackagingError: A gate did not pass, or the metric is not in the evaluation.
        EvaluationError: The evaluation breaks its schema.
        CheckpointError: The checkpoint is missing or damaged, or the package cannot be written.
        ConfigError: The signing key cannot be used.
    """
    checked = parse(evaluation)
    summary = EvaluationSummary.of(checked)
    metric = params.metric or default_metric(checked.units)
    draft = PackageManifest(
        name=params.name,
        files={},
        git=git,
        data=data,
        parameters=cast("dict[str, Any]", redact_tree(parameters)),
        parents=tuple(_without_credentials(parent) for parent in parents),
        licence_warnings=tuple(
            licence_warnings(
                [Licensed(parent.name, parent.licence) for parent in parents],
                [Licensed(source.name, source.licence) for source in data.sources],
                package=params.licence,
                name=params.name,
            )
        ),
        evaluation=summary,
        gates=_passed(gates),
        metric=Metric(name=metric, value=metric_value(summary, metric), mode=params.mode),
        reproduce=redact_text(reproduce),
    )
    card = model_card(draft, units=checked.units, licence=params.licence)
    verify(fused)
    check_room(out, _needed_bytes(fused, out))
    linked: dict[str, int] = {}
    with replace_folder(out) as folder:
        for source in sorted(path for path in fused.rglob("*") if path.is_file()):
            name = source.relative_to(fused).as_posix()
            if name in UNLISTED or name in (CARD_FILE, BOM_FILE):
                continue
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.suffix == _WEIGHTS and _link(source, target):
                linked[name] = source.stat().st_mode & 0o777
            else:
                _copy(source, target)
        licence = params.licence or package_licence(parents)
        bill = bill_of_materials(draft, _listed(folder), licence=licence, version=mango.__version__)
        write_file(folder / CARD_FILE, hide_secrets(card))
        write_file(folder / BOM_FILE, hide_secrets(bill))
        manifest = draft.model_copy(update={"files": _listed(folder)})
        write_file(folder / MANIFEST_FILE, hide_secrets(manifest.text()))
        if signing_key is not None:
            seal(folder)  # writes the folder's own manifest, as leaving this context will again, for it is signed too
            sign_folder(folder, signing_key, password=signing_password)
    # One file under two names has one mode: a cache that keeps its files read-only must find them so.
    for name, mode in linked.items():
        (out / name).chmod(mode)
    return out


def _needed_bytes(fused: Path, out: Path) -> int:
    """Return how much a package takes beside the checkpoint: weights have a second name where both are on one disk."""
    place = out.absolute()
    while not place.exists():
        place = place.parent
    one_disk = place.stat().st_dev == fused.stat().st_dev
    files = [path for path in fused.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files if not (one_disk and path.suffix == _WEIGHTS))


def _listed(folder: Path) -> dict[str, PackedFile]:
    return {
        path.relative_to(folder).as_posix(): PackedFile(sha256=sha256_file(path), bytes=path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _without_credentials(parent: Parent) -> Parent:
    return parent.model_copy(update={"source": redact_text(parent.source)})


def _passed(gates: Mapping[str, bool]) -> dict[str, GateResult]:
    failed = sorted(name for name, success in gates.items() if not success)
    if failed:
        pages = ", ".join(f"reports/gates/{name}.html" for name in failed)
        raise PackagingError(f"gates that did not pass: {', '.join(failed)}; {pages} say which rows and why")
    return {name: GateResult(success=True) for name in sorted(gates)}


def _link(source: Path, target: Path) -> bool:
    """Give a file a second name; return False where the file system cannot."""
    try:
        target.hardlink_to(source)
    except OSError:  # another file system, no links there, too many of them: a copy tells what is truly wrong
        return False
    return True


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("xb") as write:
        shutil.copyfileobj(read, write, _CHUNK_BYTES)
