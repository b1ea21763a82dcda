"""Signatures of folders by offline keys: who vouches for these bytes, and whether they are still those.

A signature is one file, ``model.sig``, a Sigstore bundle as the model-signing library writes and reads it: an in-toto
statement with the SHA-256 of every other file, manifests included, in an envelope signed with ECDSA. It is written
after everything else, so a manifest cannot list it: manifests leave out this one name at the top of the folder.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from mango.errors import CheckpointError, ConfigError, IntegrityError
from mango.security.keys import check_private_key, check_public_key

SIGNATURE_NAME = "model.sig"
_MODE = 0o644
_LARGEST_SIGNATURE_BYTES = 64 << 20  # a statement takes about 200 bytes for each file
_BUNDLE_FILES = "files"  # the library's name for one digest a file


def sign_folder(folder: Path | str, private_key: Path | str, *, password: str | None = None) -> Path:
    """Sign every file of a folder with a private key; no network is used.

    The signature replaces an older one in one step. ECDSA takes a random number, so two signatures of the same bytes
    differ; nothing else in the folder changes.

    Args:
        folder: with plain files only.
        private_key: PEM file of an elliptic-curve key (P-256, P-384 or P-521).
        password: of the key, when it is encrypted.

    Returns:
        The signature's file, ``model.sig`` in the folder.

    Raises:
        ConfigError: the key cannot be read or is of another kind, or the library is not installed.
        CheckpointError: the folder is missing, empty or holds a link or special file, or cannot be written.
    """
    folder, private_key = Path(folder), Path(private_key)
    signing, hashing, _ = _library()
    check_private_key(private_key, password)
    if not _files(folder):
        raise CheckpointError(f"{folder}: holds no file to sign; build it first")
    # The library hands the password on as it is, and cryptography takes bytes.
    secret: Any = None if password is None else password.encode()
    signer = signing.Config().use_elliptic_key_signer(private_key=private_key, password=secret)
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary, SIGNATURE_NAME)
        signer.set_hashing_config(_everything(hashing)).sign(folder, made)
        content = made.read_bytes()
    return _write(folder, content)


def verify_folder(folder: Path | str, public_key: Path | str) -> None:
    """Check that a folder holds the files that the owner of a key signed, byte for byte, and no other.

    Args:
        folder: with ``model.sig``.
        public_key: PEM file of the key that is trusted.

    Raises:
        ConfigError: the key cannot be read or is of another kind, or the library is not installed.
        IntegrityError: there is no signature, another key made it, or a file is missing, surplus or changed; the
            message names it.
        CheckpointError: the folder is missing, or holds a link or special file.
    """
    folder, public_key = Path(folder), Path(public_key)
    _, hashing, verifying = _library()
    check_public_key(public_key)
    files = _files(folder)
    path = folder / SIGNATURE_NAME
    content = _read(path)
    verifier = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    verifier.set_hashing_config(_everything(hashing))
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary, SIGNATURE_NAME)  # what is looked at below is then what was verified here
        copy.write_bytes(content)
        problem = _problem(verifier, folder, copy)
    if problem is not None and not problem.startswith("Signature mismatch"):
        raise IntegrityError(
            f"{path}: is no signature by the owner of {public_key} ({problem}); get the folder and the key anew from "
            "whom you trust, or sign it with your own key"
        )
    # From here on the statement is what the key's owner signed.
    _compare(folder, files, _digests(path, content))
    if problem is not None:
        raise IntegrityError(f"{folder}: differs from what was signed ({problem}); get it anew")


def is_signed(folder: Path | str) -> bool:
    """Whether a folder has a signature, by whomever."""
    return Path(folder, SIGNATURE_NAME).is_file()


def _library() -> tuple[Any, Any, Any]:
    try:
        from model_signing import hashing, signing, verifying
    except ImportError as error:
        raise ConfigError(
            f"signatures need the package model-signing ({error}): pip install 'mango-compose[security]'"
        ) from error
    return signing, hashing, verifying


def _everything(hashing: Any) -> Any:
    """Return how folders are hashed: every file but the signature; by itself the library leaves out those of git."""
    return hashing.Config().set_ignored_paths(paths=[SIGNATURE_NAME], ignore_git_paths=False)


def _problem(verifier: Any, folder: Path, signature: Path) -> str | None:
    """Return in what the library finds a signature or its folder wrong; None where all is well.

    The signature's bytes come from anywhere, and each kind of nonsense in them ends in another exception of the
    parsers below the library.
    """
    from cryptography.exceptions import InvalidSignature

    try:
        verifier.verify(folder, signature)
    except InvalidSignature:
        return "the key does not fit the signature"
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        return " ".join(str(error).split())[:300] or type(error).__name__
    return None


def _compare(folder: Path, files: set[str], signed: dict[str, str]) -> None:
    if missing := sorted(set(signed) - files):
        raise IntegrityError(f"{folder / missing[0]}: was signed but is missing; get the folder anew")
    if surplus := sorted(files - set(signed)):
        raise IntegrityError(f"{folder / surplus[0]}: was not signed, so nobody vouches for it; remove it")
    for name in sorted(files):
        with (folder / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != signed[name]:
            raise IntegrityError(
                f"{folder / name}: was changed after it was signed: its SHA-256 is {digest[:12]}..., the signature "
                f"says {signed[name][:12]}...; get the folder anew"
            )


def _digests(path: Path, content: bytes) -> dict[str, str]:
    """Return the SHA-256 of each signed file."""
    try:
        statement = json.loads(base64.b64decode(json.loads(content)["dsseEnvelope"]["payload"]))
        predicate = statement["predicate"]
        how = predicate["serialization"]
        if how["method"] != _BUNDLE_FILES or how["hash_type"] != "sha256":
            raise IntegrityError(
                f"{path}: signs {how['method']} by {how['hash_type']}; wanted files by sha256: sign with `mango sign`"
            )
        return {str(item["name"]): str(item["digest"]) for item in predicate["resources"]}
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, binascii.Error) as error:
        raise IntegrityError(f"{path}: its statement is malformed ({error!r}); sign the folder again") from error


def _files(folder: Path) -> set[str]:
    """Return the POSIX paths of all files below ``folder`` but the signature.

    Raises:
        CheckpointError: there is no such folder, or something below is neither a plain file nor a folder.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")

    def unreadable(error: OSError) -> None:
        raise CheckpointError(f"{error.filename}: cannot be read ({error.strerror})") from error

    names = set()
    for root, folders, files in os.walk(folder, onerror=unreadable):
        for name in (*folders, *files):
            path = Path(root, name)
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise CheckpointError(f"{path}: is a link or a special file; only plain files can be vouched for")
        names |= {Path(root, name).relative_to(folder).as_posix() for name in files}
    return names - {SIGNATURE_NAME}


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise IntegrityError(f"{path.parent}: is not signed: it has no {SIGNATURE_NAME}; sign it with `mango sign`")
    with path.open("rb") as file:
        content = file.read(_LARGEST_SIGNATURE_BYTES + 1)
    if len(content) > _LARGEST_SIGNATURE_BYTES:
        raise IntegrityError(f"{path}: is larger than {_LARGEST_SIGNATURE_BYTES >> 20} MiB, which no signature is")
    return content


def _write(folder: Path, content: bytes) -> Path:
    """Put the signature in its place in one step; until then it lies beside the folder, where it disturbs no check."""
    folder = folder.resolve()
    path = folder / SIGNATURE_NAME
    temporary: str | None = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{folder.name}.sig-", dir=folder.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), _MODE)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
        temporary = None
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be written ({error.strerror}); an older signature is as it was"
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
    return path
