"""Where registered packages lie: once for each content, without a second copy of the weights where that can be."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from mango.errors import RegistryError
from mango.tracking.environment import quieten
from mango.tracking.manifest import (
    BESIDE,
    MANIFEST,
    PackageManifest,
    check_files,
    parse_manifest,
    read_manifest,
    sha256_of,
)
from mango.tracking.settings import TrackingSettings

_LOGGER = logging.getLogger(__name__)
_FICLONE = 0x40049409  # linux/fs.h: share extents, copied when either file is written
_NO_CLONE = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.EPERM, errno.ENOSYS}
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP}


def store_package(package: Path, manifest: PackageManifest, sha256: str, settings: TrackingSettings) -> str:
    """Put a package into the artifact store and return its address there.

    The folder is named by the SHA-256 of the manifest, so the same package is stored once however often it is
    registered. On a local store each file shares its bytes with the package: as a copy-on-write clone (reflink) where
    the file system has them, else as a hard link, which is made read-only, as DVC does for its cache, since both names
    are one file. Only across file systems are bytes copied, and the log says so. Replacing ``models/package`` later
    does not touch the stored files: DVC and our own writers put new files in place by rename. Hashes are checked on
    the stored files, so what was registered is what was hashed.

    Raises:
        RegistryError: a file is missing, surplus or differs from its hash.
    """
    if settings.local_artifacts is None:
        return _upload(package, manifest, sha256, settings)
    target = settings.local_artifacts / "packages" / sha256
    if target.is_dir():
        check_files(package, manifest)
        check_files(target, manifest)
        return target.as_uri()
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{sha256[:12]}-", dir=target.parent))
    try:
        staging.chmod(0o755)
        for file in sorted(path for path in package.rglob("*") if not path.is_dir()):
            place = staging / file.relative_to(package)
            place.parent.mkdir(parents=True, exist_ok=True)
            how = share_file(file.resolve(), place)
            if how == "copy":
                _LOGGER.warning("%s: on another file system than %s, so %s was copied", file, target.parent, file.name)
        check_files(staging, manifest)
        if sha256_of(staging / MANIFEST) != sha256:
            raise RegistryError(f"{package / MANIFEST}: changed while it was registered; try again")
        with contextlib.suppress(FileExistsError):  # another process stored the same bytes first
            _rename_new(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target.as_uri()


def share_file(source: Path, target: Path) -> Literal["reflink", "hardlink", "copy"]:
    """Make ``target`` hold the bytes of ``source``, sharing them where the file system can; return how."""
    if _reflink(source, target):
        how: Literal["reflink", "hardlink", "copy"] = "reflink"
    else:
        try:
            target.hardlink_to(source)
            how = "hardlink"
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            shutil.copyfile(source, target)
            with target.open("rb") as file:
                os.fsync(file.fileno())
            how = "copy"
    target.chmod(0o444)
    return how


@contextlib.contextmanager
def open_package(source: str, settings: TrackingSettings) -> Iterator[Path]:
    """Give a registered package as a local folder: itself, or downloaded for as long as the context lasts.

    Raises:
        RegistryError: the folder is gone, or its files differ from their hashes.
    """
    if source.startswith("file://"):
        folder = Path(source.removeprefix("file://"))
        if not folder.is_dir():
            raise RegistryError(f"{folder}: the registered package is gone; register it again")
        check_files(folder, read_manifest(folder)[0])
        yield folder
        return
    quieten(settings)
    from mlflow.artifacts import download_artifacts

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(download_artifacts(artifact_uri=source, dst_path=temporary))
        check_files(folder, read_manifest(folder)[0])
        yield folder


def stored_manifest(source: str, settings: TrackingSettings) -> tuple[PackageManifest, str]:
    """Return the manifest of a registered package and its SHA-256, without reading the weights.

    Raises:
        RegistryError: it is gone or unreadable.
    """
    if source.startswith("file://"):
        return read_manifest(Path(source.removeprefix("file://")))
    quieten(settings)
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as temporary:
        try:
            path = Path(download_artifacts(artifact_uri=f"{source}/{MANIFEST}", dst_path=temporary))
        except (MlflowException, OSError) as error:
            raise RegistryError(f"{source}/{MANIFEST}: cannot be read: {error}") from error
        return parse_manifest(path.read_bytes(), f"{source}/{MANIFEST}"), sha256_of(path)


def _upload(package: Path, manifest: PackageManifest, sha256: str, settings: TrackingSettings) -> str:
    """Upload to an object store; the manifest goes last, so a folder without one is no package."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    check_files(package, manifest)
    address = f"{settings.artifact_uri}/packages/{sha256}"
    repository = get_artifact_repository(address)
    if any(item.path == MANIFEST for item in repository.list_artifacts()):
        return address
    beside = sorted(name for name in BESIDE if name != MANIFEST and (package / name).is_file())
    for name in [*sorted(manifest.files), *beside, MANIFEST]:
        folder = Path(name).parent.as_posix()
        where = None if folder == "." else folder
        repository.log_artifact(str(package / name), artifact_path=where)  # type: ignore[no-untyped-call]
    return address


def _reflink(source: Path, target: Path) -> bool:
    if sys.platform != "linux":
        return False
    import fcntl

    with source.open("rb") as read, target.open("xb") as write:
        try:
            fcntl.ioctl(write.fileno(), _FICLONE, read.fileno())
        except OSError as error:
            if error.errno not in _NO_CLONE:
                raise
        else:
            return True
    target.unlink()
    return False


def _rename_new(staging: Path, target: Path) -> None:
    try:
        staging.rename(target)
    except OSError as error:
        if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
            raise FileExistsError(str(target)) from error
        raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
