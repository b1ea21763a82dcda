"""Where things lie in the files that torch writes: zip archives, the older stream, and the oldest, a tar archive."""

from __future__ import annotations

import os
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from mango.security.inside.wire import RefusalError

MAX_MEMBERS = 300_000
MAX_PICKLE_BYTES = 256 * 2**20
MAX_CODE_BYTES = 16 * 2**20
TORCH_MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
"""The number, as pickled, with which streams start that torch wrote before version 1.6."""


@dataclass(frozen=True)
class Member:
    """A member of an archive: where its bytes lie in the file."""

    name: str
    start: int
    size: int


def recognise(start: bytes) -> str:
    """Return ``zip``, ``tar``, ``stream`` or ``pickle`` by the first 512 bytes of a file, never by its name.

    Raises:
        RefusalError: it is none of them.
    """
    if start.startswith(b"PK\x03\x04"):
        return "zip"
    if start[257:262] == b"ustar":
        return "tar"
    if start[:1] == b"\x80" and start[1:2] in {b"\2", b"\3", b"\4", b"\5"}:
        return "stream" if TORCH_MAGIC in start[2:32] else "pickle"
    raise RefusalError("does not start as any checkpoint does that torch or pickle writes")


def check_name(name: str) -> None:
    """Refuse a member's name that leads out of the archive.

    Raises:
        RefusalError: it is absolute, has ``..`` in it, or is unprintable.
    """
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or not name.isprintable() or "\\" in name:
        raise RefusalError(f"has a member called {name!r}, which leads out of it")


def zip_members(file: IO[bytes]) -> dict[str, Member]:
    """Return the members of a zip archive by name: all are stored as they are, none overlaps another or comes twice.

    Raises:
        RefusalError: the archive is no such one.
    """
    try:
        entries = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, UnicodeDecodeError) as error:
        raise RefusalError(f"is a damaged zip archive ({error})") from error
    if len(entries) > MAX_MEMBERS:
        raise RefusalError(f"has {len(entries)} members; at most {MAX_MEMBERS} are read")
    size = os.fstat(file.fileno()).st_size
    found: dict[str, Member] = {}
    inflated = 0
    for entry in entries:
        check_name(entry.filename)
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            inflated += entry.file_size
            if "/code/" in entry.filename and inflated <= MAX_CODE_BYTES:
                continue  # the source text of TorchScript, which is not read
            raise RefusalError(
                f"compresses {entry.filename!r} ({entry.compress_size} bytes become {entry.file_size}); "
                "torch stores and never compresses, so this may be a zip bomb: load it elsewhere and save it anew"
            )
        if entry.flag_bits & 0x41:
            raise RefusalError(f"encrypts {entry.filename!r}")
        if entry.external_attr >> 28 == 0xA:
            raise RefusalError(f"has a link called {entry.filename!r}")
        if entry.filename in found:
            raise RefusalError(f"has {entry.filename!r} twice")
        local = os.pread(file.fileno(), 30, entry.header_offset)
        if len(local) < 30 or local[:4] != b"PK\x03\x04":
            raise RefusalError(f"is a damaged zip archive: {entry.filename!r} is not where it should be")
        start = entry.header_offset + 30 + sum(struct.unpack("<HH", local[26:30]))
        if start + entry.file_size > size:
            raise RefusalError(f"is truncated inside {entry.filename!r}")
        found[entry.filename] = Member(entry.filename, start, entry.file_size)
    end = 0
    for member in sorted(found.values(), key=lambda member: (member.start, member.size)):
        if member.start < end:
            raise RefusalError(f"has members that overlap (at {member.name!r}): a zip bomb")
        end = member.start + member.size
    return found


def tar_members(file: IO[bytes]) -> dict[str, Member]:
    """Return the members of an uncompressed tar archive by name; nothing is unpacked.

    Raises:
        RefusalError: it is damaged, or holds links, devices or names that lead out of it.
    """
    found: dict[str, Member] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for info in archive:
                check_name(info.name)
                if info.isdir():
                    continue
                if not info.isreg() or info.issparse():
                    raise RefusalError(f"has {info.name!r}, which is a link or a special file")
                if info.name in found:
                    raise RefusalError(f"has {info.name!r} twice")
                found[info.name] = Member(info.name, info.offset_data, info.size)
                if len(found) > MAX_MEMBERS:
                    raise RefusalError(f"has more than {MAX_MEMBERS} members")
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise RefusalError(f"is a damaged tar archive ({error})") from error
    size = os.fstat(file.fileno()).st_size
    for member in found.values():
        if member.start + member.size > size:
            raise RefusalError(f"is truncated inside {member.name!r}")
    return found


def read(file: IO[bytes], member: Member) -> bytes:
    """Return the bytes of a small member.

    Raises:
        RefusalError: it is larger than any real pickle.
    """
    if member.size > MAX_PICKLE_BYTES:
        raise RefusalError(f"has {member.name!r} of {member.size} bytes; at most {MAX_PICKLE_BYTES} are read")
    return os.pread(file.fileno(), member.size, member.start)


def root_of(members: dict[str, Member]) -> str:
    """Return the folder of a torch archive, with its slash.

    Raises:
        RefusalError: there is no ``data.pkl`` in it.
    """
    for name in members:
        folder, _, last = name.rpartition("/")
        if last == "data.pkl" and "/" not in folder:
            return f"{folder}/" if folder else ""
    raise RefusalError("is a zip archive without data.pkl, so torch did not write it")


def pickles(file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    """Yield every pickle in the file with a name for it, for the scanners; storages are left out.

    Raises:
        RefusalError: the archive is damaged or was made to mislead.
    """
    kind = recognise(os.pread(file.fileno(), 512, 0))
    size = os.fstat(file.fileno()).st_size
    if kind in {"stream", "pickle"}:
        yield kind, os.pread(file.fileno(), min(size, MAX_PICKLE_BYTES), 0)
        return
    members = zip_members(file) if kind == "zip" else tar_members(file)
    for name, member in members.items():
        in_data = kind == "zip" and "/data/" in f"/{name}"
        if not in_data and (name.endswith(".pkl") or os.pread(file.fileno(), 1, member.start) == b"\x80"):
            yield name, read(file, member)
