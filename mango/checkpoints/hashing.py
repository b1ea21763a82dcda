"""Two hashes of a file: SHA-256, which the world can check, and BLAKE3, which is several times faster at load."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple, Self

from blake3 import blake3

from mango.checkpoints.failures import reading

_READ_BYTES = 1 << 20


class Digests(NamedTuple):
    """Hashes of the same bytes, each of 64 hexadecimal digits.

    Attributes:
        sha256: what manifests, packages, bills of materials and trust rules name.
        blake3: what is checked at load.
    """

    sha256: str
    blake3: str


class Hasher:
    """Computes both hashes of bytes that come in pieces."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._blake3 = blake3()

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes; other threads run meanwhile where there are many."""
        self.update_sha256(data)
        self.update_blake3(data)

    def update_sha256(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes to one hash; another thread may add them to the other meanwhile."""
        self._sha256.update(data)

    def update_blake3(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes to the other hash."""
        self._blake3.update(data)

    def sha256(self) -> str:
        """Return the SHA-256 of the bytes so far."""
        return self._sha256.hexdigest()

    def digests(self) -> Digests:
        """Return both hashes of the bytes so far."""
        return Digests(self._sha256.hexdigest(), self._blake3.hexdigest())

    def copy(self) -> Self:
        """Return another one that has seen the same bytes."""
        new = type(self)()
        new._sha256 = self._sha256.copy()
        new._blake3 = self._blake3.copy()
        return new


def sha256_file(path: Path | str) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits.

    Raises:
        CheckpointError: the file cannot be read.
    """
    path = Path(path)
    with reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def blake3_file(path: Path | str) -> str:
    """Return the BLAKE3 hash (256 bits, no key) of a file's bytes as 64 hexadecimal digits.

    Raises:
        CheckpointError: the file cannot be read.

    Source:
        O'Connor, Aumasson, Neves and Wilcox-O'Hearn (2020), "BLAKE3: one function, fast everywhere".
    """
    found = blake3()
    path = Path(path)
    with reading(path):
        _feed(path, found)
    return found.hexdigest()


def hash_file(path: Path | str) -> Digests:
    """Return both hashes of a file, read once.

    Raises:
        CheckpointError: the file cannot be read.
    """
    path = Path(path)
    hasher = Hasher()
    with reading(path):
        _feed(path, hasher)
    return hasher.digests()


def _feed(path: Path, hasher: Hasher | blake3) -> None:
    with path.open("rb", buffering=0) as file:
        buffer = memoryview(bytearray(min(_READ_BYTES, max(1, os.fstat(file.fileno()).st_size))))
        while count := file.readinto(buffer):
            hasher.update(buffer[:count])
