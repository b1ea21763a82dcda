"""``mango sign`` and ``mango keygen``: vouch for a folder with a key that needs no network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_PasswordEnv = Annotated[
    str | None, typer.Option(metavar="NAME", help="Variable that holds the password of the private key.")
]


def sign(
    folder: Annotated[Path, typer.Argument(help="Folder, for instance models/package.")],
    key: Annotated[Path | None, typer.Option(help="Private key (PEM); MANGO_SIGNING_KEY if not given.")] = None,
    password_env: _PasswordEnv = None,
) -> None:
    """Sign every file of a folder after a check that it is whole."""
    from mango import console
    from mango.config import Settings
    from mango.errors import ConfigError
    from mango.security.signing import sign_folder

    settings = Settings.from_environ()
    private_key = key or settings.signing_key
    if private_key is None:
        raise ConfigError("--key is missing and MANGO_SIGNING_KEY is not set; `mango keygen` makes a key")
    password = _password(password_env)
    if password is None and settings.signing_password is not None:
        password = settings.signing_password.get_secret_value()
    _check_whole(folder)
    console.result(str(sign_folder(folder, private_key, password=password)))


def keygen(
    private_key: Annotated[Path, typer.Argument(help="New file of the private key; the public one goes beside it.")],
    password_env: _PasswordEnv = None,
) -> None:
    """Make a pair of keys (ECDSA, P-256) for signatures."""
    from mango import console
    from mango.security.keys import fingerprint, generate_keys

    public_key = generate_keys(private_key, password=_password(password_env))
    console.result(str(public_key))
    console.note(f"{private_key}: keep it to yourself. Give away {public_key}, SHA-256 {fingerprint(public_key)}")


def _password(variable: str | None) -> str | None:
    import os

    from mango.errors import ConfigError

    if variable is None:
        return None
    if not os.environ.get(variable):
        raise ConfigError(f"--password-env {variable}: this variable is not set, or empty")
    return os.environ[variable]


def _check_whole(folder: Path) -> None:
    """Refuse to vouch for a folder whose own manifests do not fit it; one without manifests is taken as it is.

    Raises:
        IntegrityError: a file is missing, surplus or changed.
        PackagingError: the same, of a package.
    """
    from mango.checkpoints import MANIFEST_NAME, verify
    from mango.packaging import verify_package
    from mango.packaging.manifest import MANIFEST_FILE

    if (folder / MANIFEST_NAME).is_file():
        verify(folder)
    if (folder / MANIFEST_FILE).is_file():
        verify_package(folder)
