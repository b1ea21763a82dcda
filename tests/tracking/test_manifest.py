"""Which packages the registry refuses, and what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mango.errors import RegistryError
from mango.tracking import TrackingSettings, promote
from mango.tracking.manifest import check_files, metric_value, read_manifest


def edit(package: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((package / "mango.json").read_text())
    change(manifest)
    (package / "mango.json").write_text(json.dumps(manifest))


def flip_a_bit(package: Path) -> None:
    weights = package / "model.safetensors"
    weights.write_bytes(bytes([weights.read_bytes()[0] ^ 1]) + weights.read_bytes()[1:])


def escape(package: Path) -> None:
    edit(package, lambda manifest: manifest["files"].update({"../outside": manifest["files"]["README.md"]}))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped bit": (flip_a_bit, r"model\.safetensors: found 11 bytes with SHA-256 .*, wanted 11 bytes with"),
    "truncated": (lambda p: (p / "README.md").write_text("#"), r"README\.md: found 1 bytes"),
    "missing": (lambda p: (p / "README.md").unlink(), r"README\.md: missing, but mango\.json lists it"),
    "surplus": (lambda p: (p / "run.py").write_text("pass"), r"run\.py: not listed in mango\.json"),
    "escape": (escape, r"file name '\.\./outside' points outside the package"),
    "no manifest": (lambda p: (p / "mango.json").unlink(), r"no mango\.json found; build the package first"),
    "no json": (lambda p: (p / "mango.json").write_text("{"), r"mango\.json: is no JSON"),
    "failed gate": (
        lambda p: edit(p, lambda m: m["gates"].update(blocks={"success": False})),
        r"gate 'blocks' did not pass \(success: False\)",
    ),
    "silent gate": (lambda p: edit(p, lambda m: m["gates"].update(blocks={})), r"gate 'blocks' did not pass"),
    "no metric": (lambda p: edit(p, lambda m: m.pop("metric")), "declares no metric, so it cannot be compared"),
    "NaN": (
        lambda p: edit(p, lambda m: m["metric"].update(value=float("nan"))),
        r"mango\.json: found NaN, wanted finite numbers only",
    ),
    "NaN elsewhere": (
        lambda p: edit(p, lambda m: m["evaluation"]["headline"].update(x=float("nan"))),
        "found NaN, wanted finite numbers only",
    ),
    "overflow": (
        lambda p: (p / "mango.json").write_text(
            re.sub(r'"value": 3\.0', '"value": 1e999', (p / "mango.json").read_text())
        ),
        r"metric\.value: Input should be a finite number",
    ),
    "text metric": (lambda p: edit(p, lambda m: m["metric"].update(value="low")), r"metric\.value: "),
    "wrong mode": (lambda p: edit(p, lambda m: m["metric"].update(mode="best")), r"metric\.mode: "),
    "newer format": (lambda p: edit(p, lambda m: m.update(format_version=2)), "format_version: Input should be 1"),
    "text min_delta": (
        lambda p: edit(p, lambda m: m["parameters"].update(package={"min_delta": "small"})),
        r"package\.min_delta: found 'small', wanted a number",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_bad_package_is_refused_and_nothing_is_registered(
    settings: TrackingSettings, make_package: Callable[..., Path], case: str
) -> None:
    package = make_package()
    damage, message = DAMAGE[case]
    damage(package)
    with pytest.raises(RegistryError, match=message):
        promote("tiny", package, settings=settings)
    assert not list((settings.root / "mlartifacts").rglob("*.safetensors"))


def test_a_required_gate_must_have_been_run(settings: TrackingSettings, make_package: Callable[..., Path]) -> None:
    with pytest.raises(RegistryError, match="gate 'blocks' was not run; found corpus, metrics"):
        promote("tiny", make_package(), gates=["corpus", "blocks"], settings=settings)


def test_a_good_package_is_read_with_what_newer_writers_add(make_package: Callable[..., Path]) -> None:
    package = make_package(later={"x": 1})
    (package / "MANIFEST.json").write_text("{}")  # the durable writer's own list comes last and cannot be listed
    manifest, sha256 = read_manifest(package)
    check_files(package, manifest)
    assert manifest.model_extra == {"later": {"x": 1}}
    assert len(sha256) == 64


@pytest.mark.parametrize(
    ("parameters", "wanted"), [({}, 0.0), ({"package": {"min_delta": 0.5}}, 0.5), ({"package.min_delta": 1}, 1.0)]
)
def test_min_delta_comes_from_the_parameters(
    make_package: Callable[..., Path], parameters: dict[str, Any], wanted: float
) -> None:
    assert read_manifest(make_package(parameters=parameters))[0].min_delta == wanted


@pytest.mark.parametrize(
    ("name", "wanted"), [("fused_hard.switching", 3.0), ("gap_closed_soft", 0.95), ("fused_hard.pure.code", 1.5)]
)
def test_metrics_are_found_in_the_evaluation(make_package: Callable[..., Path], name: str, wanted: float) -> None:
    manifest, _ = read_manifest(make_package(metric=None))
    assert metric_value(manifest, name, "package") == wanted


def test_systems_may_be_a_mapping(make_package: Callable[..., Path]) -> None:
    manifest, _ = read_manifest(make_package(evaluation={"systems": {"merge_ties": {"pure_mean": 1.25}}}))
    assert metric_value(manifest, "merge_ties.pure_mean", "package") == 1.25


@pytest.mark.parametrize("name", ["nothing", "fused_hard", "fused_hard.pure", "other.switching", "fused_hard.name"])
def test_an_unknown_metric_is_refused(make_package: Callable[..., Path], name: str) -> None:
    manifest, _ = read_manifest(make_package())
    with pytest.raises(RegistryError, match=rf"package: metric '{name}': found .*, wanted a finite number"):
        metric_value(manifest, name, "package")
