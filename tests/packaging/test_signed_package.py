"""A signed package: all kinds of tampering are found, also by somebody who makes the manifests fit again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mango.checkpoints import sha256_file, verify
from mango.checkpoints.sealing import seal
from mango.errors import ConfigError, IntegrityError, PackagingError
from mango.packaging import build_package, open_package, verify_package
from mango.packaging.manifest import MANIFEST_FILE
from mango.security.keys import generate_keys
from mango.security.signing import SIGNATURE_NAME, sign_folder, verify_folder


@pytest.fixture
def key(tmp_path: Path) -> Path:
    generate_keys(tmp_path / "release.pem")
    return tmp_path / "release.pem"


@pytest.fixture
def public(key: Path) -> Path:
    return key.with_name("release.pub.pem")


@pytest.fixture
def signed(fused: Path, facts: dict[str, Any], key: Path) -> Path:
    return build_package(fused, fused.parent / "package", **facts, signing_key=key)


def test_a_package_is_signed_before_it_takes_its_place(signed: Path, public: Path) -> None:
    verify_folder(signed, public)
    verify_package(signed)
    verify(signed)
    model, _ = open_package(signed, key=public)
    assert model.config.model_type == "llama"


def test_a_signature_changes_nothing_else(signed: Path, fused: Path, facts: dict[str, Any]) -> None:
    unsigned = build_package(fused, fused.parent / "unsigned", **facts)
    for name in (MANIFEST_FILE, "MANIFEST.json", "bom.cdx.json"):
        assert (unsigned / name).read_bytes() == (signed / name).read_bytes()
    assert not (unsigned / SIGNATURE_NAME).exists()


def test_an_unsigned_package_opens_only_without_a_key(fused: Path, facts: dict[str, Any], public: Path) -> None:
    unsigned = build_package(fused, fused.parent / "package", **facts)
    open_package(unsigned)
    with pytest.raises(IntegrityError, match="is not signed"):
        open_package(unsigned, key=public)


def test_a_key_that_cannot_sign_leaves_the_old_package(signed: Path, fused: Path, facts: dict[str, Any]) -> None:
    before = (signed / SIGNATURE_NAME).read_bytes()
    with pytest.raises(ConfigError, match="the key cannot be read"):
        build_package(fused, signed, **facts, signing_key=fused / "none.pem")
    assert (signed / SIGNATURE_NAME).read_bytes() == before
    verify_package(signed)


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    content = change(path.read_bytes())
    path.unlink()  # weights are linked to those of the fused model
    path.write_bytes(content)


def flip_a_bit_of_a_weight(package: Path) -> str:
    rewrite(package / "model.safetensors", lambda content: content[:-1] + bytes([content[-1] ^ 1]))
    return "model.safetensors"


def edit_the_configuration(package: Path) -> str:
    rewrite(
        package / "config.json", lambda content: content.replace(b'"num_hidden_layers": 2', b'"num_hidden_layers": 1')
    )
    return "config.json"


def add_a_file(package: Path) -> str:
    (package / "modeling_surprise.py").write_text("import os")
    return "modeling_surprise.py"


def remove_a_file(package: Path) -> str:
    (package / "tokenizer_config.json").unlink()
    return "tokenizer_config.json"


TAMPERING = [flip_a_bit_of_a_weight, edit_the_configuration, add_a_file, remove_a_file]


@pytest.mark.parametrize("tamper", TAMPERING)
def test_tampering_is_found_and_named(signed: Path, public: Path, tamper: Callable[[Path], str]) -> None:
    name = tamper(signed)
    with pytest.raises(IntegrityError, match=rf"{name}: was"):
        verify_folder(signed, public)
    with pytest.raises(IntegrityError, match=rf"{name}: was"):
        open_package(signed, key=public)


@pytest.mark.parametrize("tamper", TAMPERING)
def test_tampering_is_found_also_when_the_manifests_are_made_to_fit(
    signed: Path, public: Path, tamper: Callable[[Path], str]
) -> None:
    tamper(signed)
    manifest = json.loads((signed / MANIFEST_FILE).read_text())
    manifest["files"] = {
        path.relative_to(signed).as_posix(): {"sha256": sha256_file(path), "bytes": path.stat().st_size}
        for path in signed.rglob("*")
        if path.is_file() and path.name not in {MANIFEST_FILE, "MANIFEST.json", SIGNATURE_NAME}
    }
    (signed / MANIFEST_FILE).write_text(json.dumps(manifest))
    seal(signed)
    verify_package(signed)  # without a key all is well: who can write files can write hashes
    verify(signed)
    with pytest.raises(IntegrityError, match=r": was (changed after it was|not|signed but)"):
        verify_folder(signed, public)


def test_a_swapped_signature_and_another_s_key_are_found(
    signed: Path, public: Path, fused: Path, facts: dict[str, Any], tmp_path: Path, key: Path
) -> None:
    facts["reproduce"] = "another"
    other = build_package(fused, fused.parent / "other", **facts, signing_key=key)
    stranger = generate_keys(tmp_path / "stranger.pem")
    with pytest.raises(IntegrityError, match=r"model\.sig: is no signature by the owner of .*stranger"):
        verify_folder(signed, stranger)
    (other / SIGNATURE_NAME).replace(signed / SIGNATURE_NAME)
    with pytest.raises(IntegrityError, match=r"MANIFEST\.json: was changed after it was signed"):
        verify_folder(signed, public)
    sign_folder(signed, tmp_path / "stranger.pem")
    verify_package(signed)
    with pytest.raises(IntegrityError, match=r"model\.sig: is no signature by the owner of .*release"):
        verify_folder(signed, public)


def test_an_edited_manifest_alone_is_found(signed: Path, public: Path) -> None:
    rewrite(signed / MANIFEST_FILE, lambda content: content.replace(b'"licence": "apache-2.0"', b'"licence": "mit"'))
    seal(signed)
    with pytest.raises(IntegrityError, match="was changed after it was signed"):
        verify_folder(signed, public)


def test_a_signature_does_not_stand_in_for_the_manifest(signed: Path, key: Path, public: Path) -> None:
    add_a_file(signed)
    sign_folder(signed, key)
    verify_folder(signed, public)
    with pytest.raises(PackagingError, match=r"modeling_surprise\.py: not listed"):
        open_package(signed, key=public)
