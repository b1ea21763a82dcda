"""A registered package shares its bytes with the folder it came from, and outlives it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mango.errors import RegistryError
from mango.tracking import TrackingSettings, open_package
from mango.tracking.manifest import read_manifest
from mango.tracking.package_store import share_file, store_package, stored_manifest


def store(package: Path, settings: TrackingSettings) -> Path:
    source = store_package(package, *read_manifest(package), settings)
    assert source.startswith("file:///")
    return Path(source.removeprefix("file://"))


def test_the_weights_are_not_copied(settings: TrackingSettings, make_package: Callable[..., Path]) -> None:
    package = make_package()
    stored = store(package, settings)
    shared = share_file(package / "README.md", package.parent / "probe")
    assert shared in {"reflink", "hardlink"}  # a file system under test without either would be a copy
    if shared == "hardlink":
        assert (stored / "model.safetensors").samefile(package / "model.safetensors")
    assert stored == settings.root / "mlartifacts" / "packages" / read_manifest(package)[1]
    assert not (stored / "model.safetensors").stat().st_mode & 0o222


def test_a_new_package_in_the_same_place_leaves_the_stored_one(
    settings: TrackingSettings, make_package: Callable[..., Path]
) -> None:
    first = make_package(3.0)
    stored = store(first, settings)
    shutil.rmtree(first)
    second = store(make_package(2.0), settings)
    assert (stored / "model.safetensors").read_bytes() == b"weights 3.0"
    assert (second / "model.safetensors").read_bytes() == b"weights 2.0"


def test_the_same_package_is_stored_once(settings: TrackingSettings, make_package: Callable[..., Path]) -> None:
    first = store(make_package(folder="a"), settings)
    inode = (first / "model.safetensors").stat().st_ino
    assert store(make_package(folder="b"), settings) == first
    assert (first / "model.safetensors").stat().st_ino == inode
    assert [path.name for path in first.parent.iterdir()] == [first.name]


def test_links_into_a_cache_are_followed(settings: TrackingSettings, make_package: Callable[..., Path]) -> None:
    package = make_package()
    cache = package.parent / "cache"
    (package / "model.safetensors").rename(cache)
    (package / "model.safetensors").symlink_to(cache)
    stored = store(package, settings)
    assert not (stored / "model.safetensors").is_symlink()
    cache.unlink()
    assert (stored / "model.safetensors").read_bytes() == b"weights 3.0"


def test_a_damaged_stored_package_is_noticed(settings: TrackingSettings, make_package: Callable[..., Path]) -> None:
    stored = store(make_package(), settings)
    with open_package(stored.as_uri(), settings) as folder:
        assert folder == stored
    (stored / "model.safetensors").unlink()
    (stored / "model.safetensors").write_bytes(b"weights 4.0")
    with (
        pytest.raises(RegistryError, match=r"model\.safetensors: found 11 bytes"),
        open_package(stored.as_uri(), settings),
    ):
        pytest.fail("opened")
    shutil.rmtree(stored)
    with pytest.raises(RegistryError, match=r"no mango\.json found"):
        stored_manifest(stored.as_uri(), settings)
    with pytest.raises(RegistryError, match="is gone; register it again"), open_package(stored.as_uri(), settings):
        pytest.fail("opened")


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no accelerator of files: this system has no /dev/shm")
def test_across_file_systems_bytes_are_copied(tmp_path: Path) -> None:
    import tempfile

    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        source = Path(elsewhere) / "a"
        source.write_bytes(b"weights")
        if source.stat().st_dev == tmp_path.stat().st_dev:
            pytest.fail("the test's folder is in memory too: nothing was shown")
        assert share_file(source, tmp_path / "a") == "copy"
    assert (tmp_path / "a").read_bytes() == b"weights"


def test_a_failed_store_leaves_nothing(settings: TrackingSettings, make_package: Callable[..., Path]) -> None:
    package = make_package()
    read = read_manifest(package)
    (package / "README.md").write_text("other")
    with pytest.raises(RegistryError, match=r"README\.md: found 5 bytes"):
        store_package(package, *read, settings)
    assert list((settings.root / "mlartifacts" / "packages").iterdir()) == []
