"""From a checkpoint of torch to safetensors without torch: the pickle is read inertly, the bytes are passed on."""

from __future__ import annotations

import io
import json
import math
import mmap
import os
import struct
from collections.abc import Mapping
from typing import IO, Any

from mango.security.inside import archives, inert
from mango.security.inside.selecting import select
from mango.security.inside.wire import ITEM_BYTES, Answers, Entry, RefusalError, UnclearError, safetensors_header

_PROTOCOL = 1001
_FORMATS = {1: "B", 2: "H", 4: "I", 8: "Q"}
_LARGEST_ROW = 1 << 24


def convert(file: IO[bytes], options: Mapping[str, Any], answers: Answers) -> None:
    """Read a checkpoint and send its state dict as safetensors, and a report about what was left out.

    Args:
        file: the file, open.
        options: ``max_bytes``, the most that may be sent.
        answers: where to.

    Raises:
        RefusalError: it is no checkpoint, is damaged, or holds what safetensors cannot.
    """
    value, unknown, kind = _read(file)
    chosen, rest = select(value, _is_tensor, _parts_of)
    unread = sorted(name for name, item in rest.items() if isinstance(item, inert.Unknown))
    if isinstance(value, inert.Unknown) and not chosen:
        unread.append("the whole")
    report = {
        "format": kind,
        "names": sorted(unknown)[:1000],
        "left_out": sorted(map(str, rest))[:1000],
        "unread": unread[:1000],
        "tensors": len(chosen),
    }
    answers.text(b"J", json.dumps(report))
    if not chosen:
        if unread or unknown:
            raise UnclearError("holds no tensor that can be read without running what it names")
        raise RefusalError(f"holds no state dict of tensors: {_outline(value)}")
    _send(file, chosen, int(options["max_bytes"]), answers)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, inert.Tensor)


def _parts_of(value: Any) -> Mapping[Any, Any] | None:
    """Return the state dict of a pickled module, which is its attributes, or of one that TorchScript wrote."""
    if not isinstance(value, inert.Unknown):
        return None
    if not isinstance(value.__dict__["state"], dict):
        return value.__dict__["items"] or None  # a mapping of a class of its own
    state = value.__dict__["state"]
    if isinstance(state.get("_parameters"), dict) and isinstance(state.get("_modules"), dict):
        spared = state.get("_non_persistent_buffers_set")
        spared = spared if isinstance(spared, set) else set()
        buffers = state.get("_buffers")
        buffers = buffers if isinstance(buffers, dict) else {}
        parts = {**state["_parameters"], **{k: v for k, v in buffers.items() if k not in spared}}
        parts = {str(k): v for k, v in parts.items() if v is not None}
        modules = state["_modules"]
    elif value.path.startswith("__torch__."):
        parts = {str(k): v for k, v in state.items() if _is_tensor(v)}
        modules = {k: v for k, v in state.items() if isinstance(v, inert.Unknown)}
    else:
        return None
    for name, module in modules.items():
        for inner, part in (_parts_of(module) or {}).items():
            parts[f"{name}.{inner}"] = part
    return parts


def _outline(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"its keys are {', '.join(repr(str(key))[:40] for key in list(value)[:8])}"
    return f"it is a {type(value).__name__}"


def _read(file: IO[bytes]) -> tuple[Any, dict[str, None], str]:
    kind = archives.recognise(os.pread(file.fileno(), 512, 0))
    storages: dict[str, inert.Storage] = {}
    if kind == "zip":
        value, unknown = _read_zip(file, storages)
    elif kind == "tar":
        value, unknown = _read_tar(file, storages)
    else:
        value, unknown = _read_stream(file, storages, kind)
    return value, unknown, {"zip": "zip archive", "tar": "tar archive", "stream": "stream", "pickle": "pickle"}[kind]


def _load(file: IO[bytes], storages: dict[str, inert.Storage]) -> tuple[Any, dict[str, None]]:
    unpickler = inert.InertUnpickler(file, storages)
    try:
        return unpickler.load(), unpickler.unknown
    except (RefusalError, MemoryError, RecursionError):
        raise
    except Exception as error:  # a damaged pickle may raise anything at all
        text = " ".join(str(error).split())[:200]
        raise UnclearError(f"holds a damaged pickle ({type(error).__name__}: {text})") from error


def _read_zip(file: IO[bytes], storages: dict[str, inert.Storage]) -> tuple[Any, dict[str, None]]:
    members = archives.zip_members(file)
    root = archives.root_of(members)
    order = members.get(f"{root}byteorder")
    if order is not None and archives.read(file, order) != b"little":
        raise RefusalError("holds numbers in big-endian order")
    value, unknown = _load(io.BytesIO(archives.read(file, members[f"{root}data.pkl"])), storages)
    for key, storage in storages.items():
        member = members.get(f"{root}data/{key}")
        if member is None:
            raise RefusalError(f"lacks the storage {key!r} that it refers to")
        storage.start = member.start
        if storage.num_bytes > member.size:
            raise RefusalError(f"has {member.size} bytes in storage {key!r} and refers to {storage.num_bytes}")
        storage.num_bytes = member.size
    return value, unknown


def _read_stream(file: IO[bytes], storages: dict[str, inert.Storage], kind: str) -> tuple[Any, dict[str, None]]:
    if kind == "pickle":
        value, unknown = _load(file, storages)
        if storages:
            raise RefusalError("refers to storages that are not in it")
        return value, unknown
    magic, _ = _load(file, {})
    protocol, _ = _load(file, {})
    if magic != 0x1950A86A20F9469CFC6C or protocol != _PROTOCOL:
        raise RefusalError(f"has stream protocol {protocol!r}; {_PROTOCOL} is read")
    system, _ = _load(file, {})
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise RefusalError("holds numbers in big-endian order")
    value, unknown = _load(file, storages)
    keys, _ = _load(file, {})
    if not isinstance(keys, list) or len(keys) > archives.MAX_MEMBERS:
        raise RefusalError("has a list of storages that is malformed")
    for key in keys:
        if str(key) not in storages:
            raise RefusalError(f"stores {str(key)[:40]!r}, which nothing refers to")
        _place(file, storages[str(key)])
    return value, unknown


def _place(file: IO[bytes], storage: inert.Storage) -> None:
    """Note where a storage lies that starts here with its number of elements, and go on behind it."""
    start = file.read(8)
    if len(start) < 8:
        raise RefusalError("is truncated before its storages end")
    (numel,) = struct.unpack("<q", start)
    item = ITEM_BYTES.get(storage.dtype or "", 0)
    size = os.fstat(file.fileno()).st_size
    if not item:
        raise RefusalError("stores elements of a type that safetensors files cannot hold")
    if numel < 0 or file.tell() + numel * item > size:
        raise RefusalError(f"is truncated inside storage {storage.key!r}")
    storage.start, storage.num_bytes = file.tell(), numel * item
    file.seek(numel * item, 1)


def _read_tar(file: IO[bytes], storages: dict[str, inert.Storage]) -> tuple[Any, dict[str, None]]:
    members = archives.tar_members(file)
    for name in ("storages", "tensors", "pickle"):
        if name not in members:
            raise RefusalError(f"is a tar archive without {name!r}, so torch did not write it")
    unknown: dict[str, None] = {}
    objects: dict[str, Any] = {}

    def load() -> Any:
        value, more = _load(file, {})
        unknown.update(more)
        return value

    def count() -> int:
        number = load()
        if type(number) is not int or not 0 <= number <= archives.MAX_MEMBERS:
            raise RefusalError("has a table that is malformed")
        return number

    file.seek(members["storages"].start)
    for _ in range(count()):
        key, _location, kind = _three(load())
        storage = inert.Storage(str(key), getattr(kind, "dtype", None))
        _place(file, storage)
        objects[str(key)] = storage
    for target, root, offset, numel in load():
        base = objects[str(root)]
        item = ITEM_BYTES[base.dtype]
        if not 0 <= offset <= offset + numel <= base.num_bytes // item:
            raise RefusalError("has a view that leaves its storage")
        objects[str(target)] = inert.Storage(str(target), base.dtype, base.start + offset * item, numel * item)
    file.seek(members["tensors"].start)
    for _ in range(count()):
        key, storage_key, _kind = _three(load())
        (ndim,) = struct.unpack("<i", file.read(4))
        if not 0 <= ndim <= 64:
            raise RefusalError("has a tensor that is malformed")
        file.read(4)
        shape = struct.unpack(f"<{ndim}q", file.read(8 * ndim))
        stride = struct.unpack(f"<{ndim}q", file.read(8 * ndim))
        (offset,) = struct.unpack("<q", file.read(8))
        objects[str(key)] = inert.Tensor(
            objects[str(storage_key)], objects[str(storage_key)].dtype, offset, shape, stride
        )

    class Unpickler(inert.InertUnpickler):
        def persistent_load(self, pid: Any) -> Any:
            return pid[0] if isinstance(pid, tuple) else objects[str(pid)]

    file.seek(members["pickle"].start)
    unpickler = Unpickler(file, storages)
    value = unpickler.load()
    return value, unknown | unpickler.unknown


def _three(value: Any) -> tuple[Any, Any, Any]:
    if not isinstance(value, tuple | list) or len(value) != 3:
        raise RefusalError("has a table that is malformed")
    return value[0], value[1], value[2]


def _send(file: IO[bytes], tensors: Mapping[str, Any], max_bytes: int, answers: Answers) -> None:
    size = os.fstat(file.fileno()).st_size
    entries: list[tuple[Entry, inert.Tensor]] = []
    for name, tensor in tensors.items():
        _check(name, tensor, size)
        num_bytes = math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype or ""]
        entries.append((Entry(name, tensor.dtype or "", tensor.shape, num_bytes), tensor))
    entries.sort(key=lambda pair: (-ITEM_BYTES[pair[0].dtype], pair[0].name))  # so that each is aligned
    header = safetensors_header([entry for entry, _ in entries])
    total = len(header) + sum(entry.num_bytes for entry, _ in entries)
    if total > max_bytes:
        raise RefusalError(f"would become {total} bytes of tensors; at most {max_bytes} may come of {size}")
    answers.begin(b"S", total)
    answers.write(header)
    mapped: mmap.mmap | None = None
    for entry, tensor in entries:
        start = _start(tensor.storage) + tensor.offset * ITEM_BYTES[entry.dtype]
        if _is_contiguous(tensor):
            answers.send_range(file.fileno(), start, entry.num_bytes)
        elif entry.num_bytes:
            mapped = mapped or mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            _send_strided(memoryview(mapped), start, tensor, ITEM_BYTES[entry.dtype], answers)


def _start(storage: inert.Storage) -> int:
    if isinstance(storage, inert.PartOf):
        return storage.root.start + storage.offset
    return storage.start


def _check(name: str, tensor: inert.Tensor, size: int) -> None:
    if tensor.trouble or tensor.dtype is None:
        what = tensor.trouble or "has a type"
        raise RefusalError(f"holds {name!r}, which {what}; safetensors files cannot hold it")
    if isinstance(tensor.storage, inert.PartOf):
        part = tensor.storage
        if part.offset + part.num_bytes > part.root.num_bytes:
            raise RefusalError(f"holds {name!r}, whose part leaves its storage")
    if not name or not name.isprintable() or name == "__metadata__":
        raise RefusalError(f"holds a tensor called {name[:80]!r}, which is no name")
    numel = math.prod(tensor.shape)
    last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride, strict=True))
    item = ITEM_BYTES[tensor.dtype]
    start = _start(tensor.storage)
    if numel and ((last + 1) * item > tensor.storage.num_bytes or start < 0 or start + (last + 1) * item > size):
        raise RefusalError(f"holds {name!r}, which reaches beyond its storage")


def _is_contiguous(tensor: inert.Tensor) -> bool:
    wanted = 1
    for extent, stride in zip(reversed(tensor.shape), reversed(tensor.stride), strict=True):
        if extent != 1 and stride != wanted:
            return math.prod(tensor.shape) == 0
        wanted *= extent
    return True


def _send_strided(data: memoryview, start: int, tensor: inert.Tensor, item: int, answers: Answers) -> None:
    """Send a tensor that is not contiguous, row by row in the order of its indices."""
    reach = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride, strict=True))
    elements = memoryview(bytes(data[start : start + reach * item])) if start % item else data[start:][: reach * item]
    elements = elements.cast(_FORMATS[item])  # type: ignore[call-overload]
    *outer, extent = tensor.shape
    *outer_strides, stride = tensor.stride
    pending = bytearray()
    for position in _positions(tuple(outer), tuple(outer_strides)):
        if stride:
            pending += bytes(elements[position : position + (extent - 1) * stride + 1 : stride])
        else:
            single = bytes(elements[position : position + 1])
            for first in range(0, extent, 4096):
                pending += single * min(4096, extent - first)
        if len(pending) >= _LARGEST_ROW:
            answers.write(pending)
            pending = bytearray()
    answers.write(pending)


def _positions(shape: tuple[int, ...], stride: tuple[int, ...]) -> Any:
    index = [0] * len(shape)
    position = 0
    while True:
        yield position
        for axis in range(len(shape) - 1, -1, -1):
            index[axis] += 1
            position += stride[axis]
            if index[axis] < shape[axis]:
                break
            position -= stride[axis] * shape[axis]
            index[axis] = 0
        else:
            return
