"""Where registered packages lie: once for each content, without a second copy of the weights where that can be."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from mango.errors import CheckpointError, RegistryError
from mango.security.signing import SIGNATURE_NAME, verify_folder
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
from mango.tracking.sources import PACKAGES, check_source, local_folder

_LOGGER = logging.getLogger(__name__)
_FICLONE = 0x40049409  # linux/fs.h: share extents, copied when either file is written
_NO_CLONE = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.EPERM, errno.ENOSYS}
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP}


def store_package(
    package: Path, manifest: PackageManifest, sha256: str, settings: TrackingSettings, keys: Sequence[Path] = ()
) -> str:
    """Put a package into the artifact store and return its address there.

    The folder is named by the SHA-256 of the manifest, so the same package is stored once however often it is
    registered. On a local store each file shares its bytes with the package: as a copy-on-write clone (reflink) where
    the file system has them, else as a hard link, which is made read-only, as DVC does for its cache, since both names
    are one file. Only across file systems are bytes copied, and the log says so. Replacing ``models/package`` later
    does not touch the stored files: DVC and our own writers put new files in place by rename. Hashes are checked on
    the stored files, so what was registered is what was hashed; and so are signatures.

    Callers hold the lock of promotions.

    Args:
        package: folder with ``mango.json``.
        manifest: its content.
        sha256: hash of that file.
        settings: where the store is.
        keys: public keys; the owner of each must have signed the package.

    Raises:
        RegistryError: a file is missing, surplus or differs from its hash, or the signature is missing or another's.
    """
    if settings.local_artifacts is None:
        check_signature(package, keys, package)
        return _upload(package, manifest, sha256, settings)
    target = settings.local_artifacts / PACKAGES / sha256
    if target.is_dir():
        check_files(package, manifest)
        check_files(target, manifest)
        if _is_signed_by(target, keys):
            return target.as_uri()
    target.parent.mkdir(parents=True, exist_ok=True)
    for stale in target.parent.glob(".*-*"):  # left by a killed process: callers hold the lock of promotions
        shutil.rmtree(stale, ignore_errors=True)
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
        check_signature(staging, keys, package)
        if sha256_of(staging / MANIFEST) != sha256:
            raise RegistryError(f"{package / MANIFEST}: changed while it was registered; try again")
        from mango.checkpoints import make_durable  # torch comes with it

        make_durable(staging)
        with contextlib.suppress(FileExistsError):  # another process stored the same bytes first
            _rename_new(staging, target)
        if staging.is_dir() and keys:  # stored before it was signed
            for name in sorted(BESIDE - {MANIFEST}):
                if (staging / name).is_file():
                    (staging / name).replace(target / name)
            check_signature(target, keys, package)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target.as_uri()


def check_signature(folder: Path, keys: Sequence[Path], shown: Path) -> None:
    """Check that the owner of every key signed a folder.

    Args:
        folder: the files.
        keys: public keys; none asks for nothing.
        shown: what messages call the folder.

    Raises:
        RegistryError: there is no signature, it is another's, or a file differs from what was signed.
    """
    for key in keys:
        try:
            verify_folder(folder, key)
        except CheckpointError as error:
            told = str(error).replace(str(folder), str(shown))
            raise RegistryError(f"{told}. The policy asks for a package that the owner of {key} signed") from error


def _is_signed_by(folder: Path, keys: Sequence[Path]) -> bool:
    try:
        check_signature(folder, keys, folder)
    except RegistryError:
        return False
    return True


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
            how = "copy"
    target.chmod(0o444)
    return how


@contextlib.contextmanager
def open_package(source: str, settings: TrackingSettings) -> Iterator[Path]:
    """Give a registered package as a local folder: itself, or downloaded for as long as the context lasts.

    Raises:
        RegistryError: the address leaves the store, the folder is gone, its files differ from their hashes, or the
            owner of ``settings.trusted_key`` did not sign it.
    """
    check_source(source, settings)
    keys = [] if settings.trusted_key is None else [settings.trusted_key]
    with _folder_of(source, settings) as folder:
        manifest, sha256 = read_manifest(folder)
        if not source.endswith(f"/{sha256}"):
            raise RegistryError(f"{source}: holds another package than was registered ({sha256}); register it again")
        check_files(folder, manifest)
        check_signature(folder, keys, folder)
        yield folder


def stored_manifest(source: str, settings: TrackingSettings) -> tuple[PackageManifest, str]:
    """Return the manifest of a registered package and its SHA-256, without reading the weights.

    Raises:
        RegistryError: the address leaves the store, or the package is gone or unreadable.
    """
    check_source(source, settings)
    folder = local_folder(source, settings)
    if folder is not None:
        return read_manifest(folder)
    quieten(settings)
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as temporary:
        try:
            path = Path(download_artifacts(artifact_uri=f"{source}/{MANIFEST}", dst_path=temporary))
        except (MlflowException, OSError) as error:
            raise RegistryError(f"{source}/{MANIFEST}: cannot be read: {error}") from error
        return parse_manifest(path.read_bytes(), f"{source}/{MANIFEST}"), sha256_of(path)


@contextlib.contextmanager
def _folder_of(source: str, settings: TrackingSettings) -> Iterator[Path]:
    folder = local_folder(source, settings)
    if folder is not None:
        if not folder.is_dir():
            raise RegistryError(f"{folder}: the registered package is gone; register it again")
        yield folder
        return
    quieten(settings)
    from mlflow.artifacts import download_artifacts

    with tempfile.TemporaryDirectory() as temporary:
        yield Path(download_artifacts(artifact_uri=source, dst_path=temporary))


def _upload(package: Path, manifest: PackageManifest, sha256: str, settings: TrackingSettings) -> str:
    """Upload to an object store; the manifest goes last, so a folder without one is no package."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    check_files(package, manifest)
    address = f"{settings.artifact_uri}/{PACKAGES}/{sha256}"
    repository = get_artifact_repository(address)
    there = {item.path for item in repository.list_artifacts()}
    if MANIFEST in there:
        if SIGNATURE_NAME not in there and (package / SIGNATURE_NAME).is_file():  # stored before it was signed
            repository.log_artifact(str(package / SIGNATURE_NAME))  # type: ignore[no-untyped-call]
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
