"""Frames from the child to its parent, and the safetensors header that goes before raw bytes."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Bytes of one element of each type that safetensors files hold."""

_LONGEST_TEXT = 2000


class RefusalError(Exception):
    """The input is refused; the text says why, and stands behind the name of the file."""


class UnclearError(RefusalError):
    """The input cannot be read without running what it names."""


@dataclass(frozen=True)
class Entry:
    """A tensor that is to be sent: its name, safetensors type, shape and size."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int


def describe(error: BaseException) -> str:
    """Return an exception as a line of text."""
    if isinstance(error, RefusalError):
        return str(error)
    try:
        text = " ".join(str(error).split())
    except BaseException:  # noqa: BLE001  (the input may have made this exception)
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def safetensors_header(entries: Sequence[Entry]) -> bytes:
    """Return length and header of a safetensors file whose tensors follow in the order given."""
    position = 0
    document: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for entry in entries:
        end = position + entry.num_bytes
        document[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


class Answers:
    """The only way out of the sandbox.

    Args:
        descriptor: end of a pipe.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def begin(self, letter: bytes, size: int) -> None:
        """Announce a frame of ``size`` bytes."""
        self.write(letter + struct.pack("<Q", size))

    def text(self, letter: bytes, text: str) -> None:
        """Send a whole frame of text; a refusal is cut to a sensible length."""
        content = text.encode("utf-8", "backslashreplace")
        if letter in {b"E", b"U"}:
            content = content[:_LONGEST_TEXT]
        self.begin(letter, len(content))
        self.write(content)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send raw bytes of the frame that was announced."""
        view = memoryview(data).cast("B")
        while view:
            view = view[os.write(self.descriptor, view) :]

    def send_range(self, source: int, offset: int, count: int) -> None:
        """Send bytes of an open file without copying them through this process."""
        while count:
            sent = os.sendfile(self.descriptor, source, offset, min(count, 1 << 30))
            if not sent:
                raise RefusalError("is truncated: bytes of a tensor are missing")
            offset += sent
            count -= sent
