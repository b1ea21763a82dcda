"""Key files for signatures: elliptic-curve keys in PEM, made, read and refused with a reason."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from mango.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

_LOGGER = logging.getLogger(__name__)
_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
_WANTED = "wanted an elliptic-curve key (P-256, P-384 or P-521) in PEM; `mango keygen` makes one"
_LARGEST_KEY_BYTES = 1 << 16
_PRIVATE_MODE, _PUBLIC_MODE = 0o600, 0o644


def generate_keys(private_key: Path | str, *, password: str | None = None) -> Path:
    """Make a pair of keys on the curve P-256; the private file can be read by its owner alone.

    Args:
        private_key: the new file; the public key goes beside it, with ``.pub.pem`` in place of its suffix.
        password: encrypts the private key.

    Returns:
        The public key's file.

    Raises:
        ConfigError: one of the files is there already, or the password is empty.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    if password == "":
        raise ConfigError("the password of the key is empty; give one, or none at all")
    private_key = Path(private_key)
    public_key = private_key.with_name(f"{private_key.name.removesuffix('.pem')}.pub.pem")
    for path in (private_key, public_key):
        if path.exists() or path.is_symlink():
            raise ConfigError(f"{path}: is there already, and a key is never overwritten; choose another name")
    key = ec.generate_private_key(ec.SECP256R1())
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        encryption = serialization.BestAvailableEncryption(password.encode())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    _write_new(private_key, pem, _PRIVATE_MODE)
    _write_new(public_key, _public_pem(key.public_key()), _PUBLIC_MODE)
    return public_key


def check_private_key(path: Path, password: str | None) -> EllipticCurvePrivateKey:
    """Return a private key that can sign; others on the machine who may read its file are warned of.

    Raises:
        ConfigError: the file cannot be read, is no such key, or the password is missing or wrong.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    content = _read(path)
    try:
        key = serialization.load_pem_private_key(content, None if password is None else password.encode())
    except TypeError as error:
        found = "is encrypted: name the variable that holds its password with --password-env"
        if password is not None:
            found = "is not encrypted, yet a password was given; leave it out"
        raise ConfigError(f"{path}: {found}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        if b"PUBLIC KEY" in content:
            raise ConfigError(f"{path}: is a public key; give the private one to sign") from error
        if b"ENCRYPTED" in content and password is not None:
            raise ConfigError(f"{path}: the password does not open this key") from error
        raise ConfigError(f"{path}: cannot be read as a private key; {_WANTED}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in _CURVES:
        raise ConfigError(f"{path}: found {_kind(key)}; {_WANTED}")
    if path.stat().st_mode & 0o077:
        _LOGGER.warning("%s: others on this machine may read this private key; chmod 600 it", path)
    return key


def check_public_key(path: Path) -> EllipticCurvePublicKey:
    """Return a public key that can verify.

    Raises:
        ConfigError: the file cannot be read or is no such key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    content = _read(path)
    try:
        key = serialization.load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        if b"PRIVATE KEY" in content:
            raise ConfigError(f"{path}: is a private key; give the public one to verify, and keep this one") from error
        raise ConfigError(f"{path}: cannot be read as a public key; {_WANTED}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _CURVES:
        raise ConfigError(f"{path}: found {_kind(key)}; {_WANTED}")
    return key


def fingerprint(public_key: Path | str) -> str:
    """Return what tells a public key from every other: the SHA-256 of its PEM text, as in a signature's key hint.

    Raises:
        ConfigError: the file cannot be read or is no such key.
    """
    return hashlib.sha256(_public_pem(check_public_key(Path(public_key)))).hexdigest()


def _public_pem(key: EllipticCurvePublicKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _kind(key: object) -> str:
    curve = getattr(getattr(key, "curve", None), "name", None)
    name = type(key).__name__.replace("PrivateKey", "").replace("PublicKey", "").lstrip("_")
    return f"a key on the curve {curve}" if curve else f"a key of kind {name}"


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_KEY_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: the key cannot be read ({error.strerror})") from error
    if len(content) > _LARGEST_KEY_BYTES:
        raise ConfigError(f"{path}: is too long for a key; {_WANTED}")
    return content


def _write_new(path: Path, content: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except OSError as error:
        raise ConfigError(f"{path}: the key cannot be written ({error.strerror})") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
