"""Check the evaluation's figures, then pack the fused model with its manifest and model card."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.run import GATES, REPORTS, Stage, run_stage

if TYPE_CHECKING:
    from mango.fusion import FusionParams
    from mango.merging import MergeParams
    from mango.packaging import GitState
    from stages.params import Params

NAME = "package"
SECTIONS = ("gates", "package")
FUSED = Path("models/fused")
STORE = Path("models/blocks")
OUT = Path("models/package")
EVALUATION = REPORTS / "evaluation.json"
EARLIER_GATES = ("blocks", "corpus")


def package(stage: Stage) -> Mapping[str, float]:
    """Replace the package when every gate lets it through.

    Args:
        stage: parameters and run.

    Returns:
        The metric that it competes on, and its size.

    Raises:
        GateError: the evaluation breaks a bound; the page says which rows and why, and the older package stays.
        PackagingError: an earlier gate did not run or did not pass.
    """
    from mango import console
    from mango.blocks import BlockStore
    from mango.checkpoints import sha256_file
    from mango.gates import run_metrics_gate
    from mango.packaging import build_package, data_state, git_state, parents_of, verify_package
    from mango.packaging.manifest import BOM_FILE, MANIFEST_FILE

    params = stage.params
    gate = run_metrics_gate(EVALUATION, params.gates, GATES)
    stage.log_gate(gate)
    gate.raise_if_failed()
    git = git_state(Path())
    password = stage.settings.signing_password
    build_package(
        FUSED,
        OUT,
        params=params.package,
        evaluation=json.loads(EVALUATION.read_text(encoding="utf-8")),
        gates={**{name: gate_passed(GATES / f"{name}.json") for name in EARLIER_GATES}, gate.gate: gate.passed},
        parameters=params.model_dump(mode="json"),
        parents=parents_of(BlockStore.open(STORE), parent_names(params.fusion, params.merge)),
        data=data_state(params.corpus.path),
        git=git,
        reproduce=command(params, git),
        signing_key=stage.settings.signing_key,
        signing_password=password.get_secret_value() if password else None,
    )
    manifest = verify_package(OUT)
    for warning in manifest.licence_warnings:
        console.note(f"licences: {warning}")
    stage.run.set_tags({"mango.package_sha256": sha256_file(OUT / MANIFEST_FILE)})
    for name in (MANIFEST_FILE, BOM_FILE, "README.md"):
        stage.run.log_artifact(OUT / name, "package")
    size = sum(file.bytes for file in manifest.files.values())
    return {"metric": manifest.metric.value, "num_files": len(manifest.files), "num_bytes": size}


def gate_passed(report: Path) -> bool:
    """Return whether an earlier stage's gate passed.

    Raises:
        PackagingError: its report is missing or unreadable.
    """
    from mango.errors import PackagingError

    try:
        passed = json.loads(report.read_text(encoding="utf-8"))["passed"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PackagingError(f"{report}: is no report of a gate ({error!r}); run `dvc repro` for it") from error
    return passed is True


def parent_names(fusion: FusionParams, merge: MergeParams) -> list[str]:
    """Return the source models that the fused model is made of; the merged model stands for what it was merged from."""
    from stages.params import MERGED

    names = {fusion.trunk, *(expert.model for expert in fusion.experts)}
    if MERGED in names:
        for name in merge.to_document().references():
            assert isinstance(name, str)  # a section of params.yaml names models; it nests no document
            names.add(name)
    return sorted(names - {MERGED})


def command(params: Params, git: GitState) -> str:
    """Return the command that makes this package again, with the parameters that are not committed."""
    from mango.config import parse_document
    from mango.errors import ConfigError
    from mango.packaging import changes, committed_text, flat, reproduce_command
    from stages.params import PATH, load_params

    text = committed_text(Path(), PATH)
    if text is None:
        return reproduce_command(git, NAME, {}, ())
    before: dict[str, Any] = {}
    written: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        committed = Path(folder, PATH.name)
        committed.write_text(text, encoding="utf-8")
        try:
            written = flat(parse_document(text, str(PATH)).data)
            before = load_params(committed, environ={}).model_dump(mode="json")
        except ConfigError:  # the schema has moved on since that commit: then every parameter is named
            before = {}
    return reproduce_command(git, NAME, changes(before, params.model_dump(mode="json")), written)


if __name__ == "__main__":
    run_stage(NAME, package, sections=SECTIONS, help_text=__doc__)
