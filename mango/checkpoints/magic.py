"""What a file is, by its first bytes; its name says nothing."""

from __future__ import annotations

import struct
from pathlib import Path

from mango.checkpoints.documents import read_head
from mango.errors import UnsafeFileError

_HEAD_BYTES = 512
_KINDS = (
    (b"GGUF", "gguf"),
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
    (b"\x89HDF\r\n\x1a\n", "hdf5"),
    (b"\x7fELF", "executable"),
    (b"MZ", "executable"),
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"\x93NUMPY", "numpy"),
    (b"PAR1", "parquet"),
    (b"#!", "script"),
    (b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "pickle"),  # how torch.save began before its zip files
)
_WORDS = {
    "zip": "a zip archive, as pickled weights are",
    "pickle": "a pickle, which can run code",
    "gguf": "a GGUF file",
    "hdf5": "an HDF5 file",
    "executable": "a program",
    "script": "a script",
    "tar": "a tar archive",
    "json": "JSON",
    "safetensors": "a safetensors file",
    "text": "text",
    "empty": "empty",
}


def recognise(file: Path) -> str:
    """Return what a file is by its first bytes.

    Returns:
        ``"safetensors"``, ``"gguf"``, ``"json"``, ``"pickle"``, ``"zip"``, ``"tar"``, another known kind, ``"text"``,
        ``"empty"`` or ``"unknown"``.

    Raises:
        CheckpointError: it cannot be read.
        UnsafeFileError: it is a pipe, socket or device.
    """
    return recognise_bytes(read_head(file, _HEAD_BYTES))


def recognise_bytes(head: bytes) -> str:
    """Return what begins with these bytes; see `recognise`."""
    if not head:
        return "empty"
    for magic, kind in _KINDS:
        if head.startswith(magic):
            return kind
    if head[257:262] == b"ustar":
        return "tar"
    if len(head) > 8 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < 1 << 40:
        return "safetensors"
    if head[:1] == b"\x80" and head[1:2] in b"\x01\x02\x03\x04\x05":
        return "pickle"
    if head.lstrip()[:1] in (b"{", b"["):
        return "json"
    if b"\0" not in head:
        try:
            head[:-3].decode("utf-8")  # the last character may be cut
        except UnicodeDecodeError:
            return "unknown"
        # Protocol 0 is text: an import of a module's name, on two lines behind c.
        lines = head.split(b"\n")
        if len(lines) > 2 and lines[0][:1] in (b"c", b"(") and lines[0].strip(b"(")[:1] == b"c":
            return "pickle"
        return "text"
    return "unknown"


def refuse_other(file: Path, head: bytes, wanted: str) -> None:
    """Refuse a file whose first bytes are those of another kind of file.

    Raises:
        UnsafeFileError: it is of another kind, whatever its name says.
    """
    found = recognise_bytes(head)
    if found not in (wanted, "unknown", "empty"):
        raise UnsafeFileError(
            f"{file}: is {_WORDS.get(found, f'of the kind {found}')}, not {_WORDS.get(wanted, wanted)}, "
            "whatever its name says; it is not read"
        )
