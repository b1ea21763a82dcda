from __future__ import annotations

import errno
import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, pipeline

from mango.checkpoints import replace_folder, verify
from mango.errors import CheckpointError, EvaluationError, IntegrityError, PackagingError, UnsafeFileError
from mango.packaging import PackageParams, build_package, open_package, read_manifest, verify_package
from tests.packaging.conftest import save_tiny_checkpoint


@pytest.fixture
def package(fused: Path, facts: dict[str, Any]) -> Path:
    return build_package(fused, fused.parent / "package", **facts)


def test_a_package_opens_as_the_model_that_went_in(fused: Path, package: Path) -> None:
    model, tokenizer = open_package(package)
    original = AutoModelForCausalLM.from_pretrained(fused)
    ids = torch.tensor([[4, 5, 6, 7]])
    assert torch.equal(model(ids).logits, original(ids).logits)
    assert not model.training
    assert tokenizer("w4 w5 w6")["input_ids"] == [4, 5, 6]
    generate = pipeline("text-generation", model=model, tokenizer=tokenizer)
    assert generate("w4 w5", max_new_tokens=3, do_sample=False)[0]["generated_text"].startswith("w4 w5")


def test_the_manifest_holds_every_file_and_where_all_came_from(package: Path, facts: dict[str, Any]) -> None:
    manifest = verify_package(package)
    present = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    assert set(manifest.files) == present - {"mango.json", "MANIFEST.json"}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(manifest.files)
    assert manifest.parents == tuple(facts["parents"])
    assert manifest.git == facts["git"]
    assert manifest.data == facts["data"]
    assert manifest.parameters == facts["parameters"]
    assert manifest.reproduce == facts["reproduce"]
    assert {name: gate.success for name, gate in manifest.gates.items()} == facts["gates"]
    assert (manifest.metric.name, manifest.metric.value, manifest.metric.mode) == ("fused_hard.switching", 3.08, "min")
    document = json.loads((package / "mango.json").read_text(encoding="utf-8"))
    assert document["evaluation"]["headline"] == facts["evaluation"]["headline"]
    assert document["evaluation"]["systems"]["trunk"]["pure_mean"] == 1.763
    verify(package)


def test_the_same_inputs_give_the_same_package(fused: Path, package: Path, facts: dict[str, Any]) -> None:
    again = build_package(fused, fused.parent / "again", **facts)
    assert (again / "mango.json").read_bytes() == (package / "mango.json").read_bytes()


def test_weights_are_not_stored_twice_and_keep_their_mode(fused: Path, facts: dict[str, Any]) -> None:
    (fused / "model.safetensors").chmod(0o444)
    package = build_package(fused, fused.parent / "package", **facts)
    assert (package / "model.safetensors").samefile(fused / "model.safetensors")
    assert (fused / "model.safetensors").stat().st_mode & 0o777 == 0o444
    assert not (package / "config.json").samefile(fused / "config.json")
    save_tiny_checkpoint(fused, seed=1)
    verify_package(package)


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)


@pytest.mark.usefixtures("no_links")
def test_where_links_cannot_be_made_weights_are_copied(fused: Path, facts: dict[str, Any]) -> None:
    package = build_package(fused, fused.parent / "package", **facts)
    verify_package(package)
    assert not (package / "model.safetensors").samefile(fused / "model.safetensors")


@pytest.mark.usefixtures("no_links")
def test_a_disk_that_takes_no_more_leaves_the_old_package(fused: Path, package: Path, facts: dict[str, Any]) -> None:
    before = (package / "mango.json").read_bytes()
    facts["reproduce"] = "another"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((fused / "model.safetensors").stat().st_size - 1, hard))
    try:
        with pytest.raises(CheckpointError, match=rf"{package}: no room to write"):
            build_package(fused, package, **facts)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (package / "mango.json").read_bytes() == before
    assert sorted(path.name for path in package.parent.iterdir()) == ["fused", "package"]


def test_room_is_asked_for_first_and_linked_weights_need_none(
    fused: Path, package: Path, facts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (package / "mango.json").read_bytes()
    small = sum(path.stat().st_size for path in fused.iterdir() if path.suffix != ".safetensors")
    monkeypatch.setenv("MANGO_DISK_RESERVE", "0")
    monkeypatch.setattr("mango.checkpoints.room.free_bytes", lambda path: small - 1)
    with pytest.raises(CheckpointError, match=rf"no room to write: needs {small:,} bytes"):
        build_package(fused, package, **facts)
    assert (package / "mango.json").read_bytes() == before
    monkeypatch.setattr("mango.checkpoints.room.free_bytes", lambda path: small)
    build_package(fused, package, **facts)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "README.md", "tokenizer.json"])
def test_a_changed_byte_is_refused_and_named(package: Path, name: str) -> None:
    flip(package / name)
    with pytest.raises(PackagingError, match=rf"{name}: was changed: its SHA-256"):
        open_package(package)


def test_a_missing_file_is_refused_and_named(package: Path) -> None:
    (package / "tokenizer.json").unlink()
    with pytest.raises(PackagingError, match=r"tokenizer\.json: missing"):
        open_package(package)


def test_a_surplus_file_is_refused_and_named(package: Path) -> None:
    (package / "extra").mkdir()
    (package / "extra" / "modeling.py").write_text("import os")
    with pytest.raises(PackagingError, match=r"extra/modeling\.py: not listed"):
        open_package(package)


def test_a_truncated_file_is_refused_by_its_size(package: Path) -> None:
    content = (package / "model.safetensors").read_bytes()
    (package / "model.safetensors").unlink()
    (package / "model.safetensors").write_bytes(content[:-10])
    with pytest.raises(PackagingError, match=r"model\.safetensors: \d+ bytes, mango\.json says"):
        verify_package(package)


def test_a_link_is_refused(package: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "config.json"
    Path(package / "config.json").replace(elsewhere)
    (package / "config.json").symlink_to(elsewhere)
    with pytest.raises(PackagingError, match=r"config\.json: is a link"):
        verify_package(package)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format_version": 2}, "format_version"),
        ({"surprise": 1}, "surprise: Extra inputs"),
        ({"files": {"../outside": {"sha256": "0" * 64, "bytes": 1}}}, "no plain path inside the package"),
        ({"files": {"/etc/passwd": {"sha256": "0" * 64, "bytes": 1}}}, "no plain path inside the package"),
        ({"files": {"a": {"sha256": "xyz", "bytes": 1}}}, r"files\.a\.sha256"),
        ({"metric": {"name": "m", "value": float("nan"), "mode": "min"}}, r"metric\.value.*finite"),
        ({"gates": {"corpus": {}}}, r"gates\.corpus\.success: Field required"),
    ],
)
def test_a_malformed_manifest_is_refused(package: Path, change: dict[str, Any], said: str) -> None:
    document = json.loads((package / "mango.json").read_text(encoding="utf-8"))
    (package / "mango.json").write_text(json.dumps({**document, **change}))
    with pytest.raises(PackagingError, match=rf"mango\.json: .*{said}"):
        read_manifest(package)


def test_a_folder_that_is_no_package_is_refused(fused: Path) -> None:
    with pytest.raises(PackagingError, match=r"is no package, it has no mango\.json; run the package stage"):
        open_package(fused)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"gates": {"corpus": True, "metrics": False}}, PackagingError, "did not pass: metrics; reports/gates/metrics"),
        ({"params": PackageParams(metric="fused_hrad.switching")}, PackagingError, "'fused_hrad.switching' is not in"),
        ({"params": PackageParams(metric="trunk.sped")}, PackagingError, r"trunk holds cost, .*switching"),
        ({"params": PackageParams(metric="beats_self_stitch")}, PackagingError, "is bool, not a number"),
        ({"evaluation": {"schema_version": 1}}, EvaluationError, "systems: missing"),
    ],
)
def test_a_refused_package_leaves_the_old_one(
    fused: Path, package: Path, facts: dict[str, Any], change: dict[str, Any], error: type[Exception], said: str
) -> None:
    before = (package / "mango.json").read_bytes()
    with pytest.raises(error, match=said):
        build_package(fused, package, **{**facts, **change})
    assert (package / "mango.json").read_bytes() == before
    verify_package(package)
    assert sorted(path.name for path in package.parent.iterdir()) == ["fused", "package"]


def test_a_metric_that_was_not_measured_is_refused(fused: Path, facts: dict[str, Any]) -> None:
    facts["evaluation"]["systems"][1].update(switching=None, switching_se=None)
    with pytest.raises(PackagingError, match=r"'fused_hard\.switching' is not measured"):
        build_package(fused, fused.parent / "package", **facts)
    assert not (fused.parent / "package").exists()


def test_other_metrics_can_be_chosen(fused: Path, facts: dict[str, Any]) -> None:
    for metric, value in (("gap_closed_soft", 0.941), ("fused_soft.pure.code", 1.079)):
        facts["params"] = PackageParams(metric=metric, mode="max")
        package = build_package(fused, fused.parent / "package", **facts)
        assert verify_package(package).metric.value == value


def test_a_damaged_checkpoint_is_not_packed(fused: Path, facts: dict[str, Any]) -> None:
    flip(fused / "model.safetensors")
    with pytest.raises(IntegrityError, match=r"model\.safetensors: SHA-256 is"):
        build_package(fused, fused.parent / "package", **facts)
    assert not (fused.parent / "package").exists()


def test_code_inside_a_package_is_never_run(fused: Path, facts: dict[str, Any]) -> None:
    config = json.loads((fused / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "stranger", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    with replace_folder(fused) as new:
        (new / "config.json").write_text(json.dumps(config))
        (new / "code.py").write_text("raise SystemExit('ran')")
    package = build_package(fused, fused.parent / "package", **facts)
    with pytest.raises(UnsafeFileError, match=r"config\.json: auto_map chooses code"):
        open_package(package)


def test_a_package_whose_manifest_is_gone_opens_nowhere(package: Path) -> None:
    from mango.checkpoints import open_model

    (package / "MANIFEST.json").unlink()
    for opened in (open_package, open_model):
        with pytest.raises(IntegrityError, match=r"package: is a package.*MANIFEST\.json, which vouches .* is gone"):
            opened(package)
