"""The registry takes signed packages alone when the policy says so, and reads nothing outside its store."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mango.errors import ConfigError, RegistryError
from mango.security.keys import fingerprint, generate_keys
from mango.security.signing import SIGNATURE_NAME, sign_folder, verify_folder
from mango.tracking import TrackingSettings, open_package, promote, register, rollback, why
from mango.tracking.store import open_store


@pytest.fixture
def key(tmp_path: Path) -> Path:
    generate_keys(tmp_path / "release.pem")
    return tmp_path / "release.pem"


@pytest.fixture
def public(key: Path) -> Path:
    return key.with_name("release.pub.pem")


def test_an_unsigned_package_is_refused_and_leaves_nothing(
    settings: TrackingSettings, make_package: Callable[..., Path], public: Path
) -> None:
    package = make_package()
    for act in (promote, lambda name, folder, **more: register(folder, name, **more)):
        with pytest.raises(RegistryError, match=r"package: is not signed.*The policy asks for .*release\.pub\.pem"):
            act("tiny", package, settings=settings, key=public)
    assert not list((settings.root / "mlartifacts" / "packages").iterdir())
    assert open_store(settings).search_registered_models() == []


def test_a_signed_package_is_taken_and_why_says_by_whom(
    settings: TrackingSettings, make_package: Callable[..., Path], key: Path, public: Path
) -> None:
    package = make_package()
    sign_folder(package, key)
    assert promote("tiny", package, settings=settings, key=public).promoted
    answer = why("models:/tiny@champion", settings=settings)
    assert answer.signed_by == fingerprint(public)
    assert f"signed by   {fingerprint(public)}" in answer.text()
    with open_package(answer.source, settings) as folder:
        verify_folder(folder, public)


def test_another_s_signature_and_changed_files_are_refused(
    settings: TrackingSettings, make_package: Callable[..., Path], key: Path, public: Path, tmp_path: Path
) -> None:
    package = make_package()
    generate_keys(tmp_path / "stranger.pem")
    sign_folder(package, tmp_path / "stranger.pem")
    with pytest.raises(RegistryError, match=r"package/model\.sig: is no signature by the owner of .*release"):
        promote("tiny", package, settings=settings, key=public)
    sign_folder(package, key)
    manifest = package / "mango.json"
    manifest.write_text(manifest.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(RegistryError, match=r"package/mango\.json: was changed after it was signed"):
        promote("tiny", package, settings=settings, key=public)
    with pytest.raises(ConfigError, match="the key cannot be read"):
        promote("tiny", package, settings=settings, key=tmp_path / "none")


def test_a_package_that_was_stored_before_it_was_signed_is_taken_once_signed(
    settings: TrackingSettings, make_package: Callable[..., Path], key: Path, public: Path
) -> None:
    package = make_package()
    assert promote("tiny", package, settings=settings).promoted
    assert why("models:/tiny/1", settings=settings).signed_by is None
    sign_folder(package, key)
    result = promote("tiny", package, settings=settings, key=public)
    assert (result.version, result.champion) == (1, 1)
    answer = why("models:/tiny/1", settings=settings)
    assert answer.signed_by == fingerprint(public)
    with open_package(answer.source, settings) as folder:
        verify_folder(folder, public)


def test_the_setting_asks_for_signatures_at_every_use(
    settings: TrackingSettings, make_package: Callable[..., Path], key: Path, public: Path
) -> None:
    strict = settings.model_copy(update={"trusted_key": public})
    promote("tiny", make_package(3.0, "first"), settings=settings)
    second = make_package(2.0, "second")
    with pytest.raises(RegistryError, match="is not signed"):
        promote("tiny", second, settings=strict)
    sign_folder(second, key)
    assert promote("tiny", second, settings=strict).promoted
    with pytest.raises(RegistryError, match="is not signed"):  # the first one was never signed
        rollback("tiny", settings=strict)
    with (
        pytest.raises(RegistryError, match="is not signed"),
        open_package(why("models:/tiny/1", settings=settings).source, strict),
    ):
        pytest.fail("opened")
    assert rollback("tiny", settings=settings).champion == 1


def test_the_setting_comes_from_the_environment(tmp_path: Path) -> None:
    found = TrackingSettings.from_environment({"MANGO_TRUSTED_KEY": "keys/release.pub.pem"}, tmp_path)
    assert found.trusted_key == tmp_path / "keys" / "release.pub.pem"


def outside(settings: TrackingSettings, source: str) -> str:
    """Register a version whose source is ``source``, as somebody with access to the database could."""
    client = open_store(settings)
    (genuine,) = client.search_model_versions("name = 'tiny'")
    version = client.create_model_version("tiny", source, tags=genuine.tags, await_creation_for=0).version
    client.set_registered_model_alias("tiny", "previous", str(version))
    return str(version)


SOURCES = {
    "a file of the machine": "file:///etc",
    "a path that climbs": "{store}/packages/../../../etc",
    "a path that climbs from a hash": "{store}/packages/{hash}/../../../secret",
    "encoded dots": "{store}/packages/%2e%2e/%2e%2e/{hash}",
    "another server": "http://169.254.169.254/latest/meta-data/{hash}",
    "a bucket": "s3://stranger/packages/{hash}",
    "a plain path": "{root}/mlartifacts/packages/{hash}",
    "another folder": "file://{root}/elsewhere/packages/{hash}",
    "another case": "FILE://{root}/mlartifacts/packages/{hash}",
    "the store itself": "{store}/packages",
    "a run": "{store}/runs/{hash}",
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=list(SOURCES))
def test_a_source_outside_the_store_is_refused_everywhere(
    settings: TrackingSettings, make_package: Callable[..., Path], source: str
) -> None:
    first = promote("tiny", make_package(3.0, "first"), settings=settings)
    full = source.format(store=settings.artifact_uri, root=settings.root, hash=first.package_sha256)
    version = outside(settings, full)
    said = r"lies outside the artifact store file://"
    with pytest.raises(RegistryError, match=said):
        why(f"models:/tiny/{version}", settings=settings)
    with pytest.raises(RegistryError, match=said):
        rollback("tiny", settings=settings)
    with pytest.raises(RegistryError, match=said), open_package(full, settings):
        pytest.fail("opened")
    client = open_store(settings)
    client.set_registered_model_alias("tiny", "champion", version)
    with pytest.raises(RegistryError, match=said):
        promote("tiny", make_package(2.0, "second"), settings=settings)
    assert str(client.get_model_version_by_alias("tiny", "champion").version) == version


@pytest.mark.parametrize("part", ["", "model.safetensors"])
def test_a_link_in_the_store_is_refused(
    settings: TrackingSettings, make_package: Callable[..., Path], tmp_path: Path, part: str
) -> None:
    promote("tiny", make_package(3.0, "first"), settings=settings)
    promote("tiny", make_package(2.0, "second"), settings=settings)
    source = why("models:/tiny/1", settings=settings).source
    place = Path(source.removeprefix("file://"), part)
    shutil.move(place, tmp_path / "moved")
    place.symlink_to(tmp_path / "moved")
    for act in (lambda: why("models:/tiny/1", settings=settings), lambda: rollback("tiny", settings=settings)):
        with pytest.raises(RegistryError, match=rf"{place}: is a link, and the store holds none"):
            act()


def test_a_version_that_claims_to_be_another_package_is_not_promoted(
    settings: TrackingSettings, make_package: Callable[..., Path]
) -> None:
    package = make_package()
    result = promote("tiny", package, settings=settings)
    client = open_store(settings)
    tags = client.get_model_version("tiny", "1").tags
    client.delete_model_version("tiny", "1")
    client.create_model_version("tiny", "file:///etc", tags=tags, await_creation_for=0)
    with pytest.raises(RegistryError, match=r"claims to be this package but lies in file:///etc, .*delete"):
        promote("tiny", package, settings=settings)
    assert result.version == 1


def test_a_stored_package_under_another_s_hash_is_refused(
    settings: TrackingSettings, make_package: Callable[..., Path]
) -> None:
    promote("tiny", make_package(3.0, "first"), settings=settings)
    promote("tiny", make_package(2.0, "second"), settings=settings)
    first, second = (Path(why(f"models:/tiny/{n}", settings=settings).source.removeprefix("file://")) for n in (1, 2))
    shutil.rmtree(first)
    shutil.copytree(second, first)
    assert why("models:/tiny/1", settings=settings).package == "changed"
    with pytest.raises(RegistryError, match="holds another package than was registered"):
        rollback("tiny", settings=settings)


def test_a_signature_beside_the_manifest_is_stored_with_the_package(
    settings: TrackingSettings, make_package: Callable[..., Path], key: Path
) -> None:
    package = make_package()
    sign_folder(package, key)
    promote("tiny", package, settings=settings)
    stored = Path(why("models:/tiny/1", settings=settings).source.removeprefix("file://"))
    assert (stored / SIGNATURE_NAME).read_bytes() == (package / SIGNATURE_NAME).read_bytes()
