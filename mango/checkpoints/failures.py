"""What the operating system's errors mean for somebody who writes a model."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mango.errors import CheckpointError

# What torch.save says, by turns, when the disk is full: at a write, at the end of the archive, or by C++.
_TORCH_SAYS = ("file write failed", "PytorchStreamWriter", "inline_container", "iostream error")
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_failure(path: Path, error: OSError) -> CheckpointError:
    """Return the error for a person, for an operating system error met while writing ``path``."""
    if error.errno in _NO_ROOM:
        return CheckpointError(
            f"{path}: no room to write ({error.strerror}); what was there before is unchanged. "
            "Free disk space, raise the quota, or choose another folder"
        )
    where = error.filename or path
    return CheckpointError(
        f"{path}: cannot write {where} ({error.strerror or error}); check that the folder is writable"
    )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn operating system errors of the body into a CheckpointError that names ``path``.

    Raises:
        CheckpointError: the body met an operating system error.
    """
    try:
        yield
    except OSError as error:
        raise write_failure(path, error) from error


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Turn what torch and safetensors raise when they cannot write into a CheckpointError that names ``path``.

    They raise errors of their own for an operating system error; its number stands in the message.

    Raises:
        CheckpointError: the body could not write.
    """
    from safetensors import SafetensorError

    try:
        with writing(path):
            yield
    except (SafetensorError, RuntimeError) as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is not None:
            code = int(number[1])
            raise write_failure(path, OSError(code, os.strerror(code))) from error
        if any(said in str(error) for said in _TORCH_SAYS):
            raise write_failure(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) from error
        raise


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn operating system errors of the body into a CheckpointError that names ``path``.

    Raises:
        CheckpointError: the body met an operating system error.
    """
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
