"""A pickle read as a description: names of classes and functions become inert records, and nothing is ever called.

Only what rebuilds tensors and plain containers is understood, by functions of this module. Everything else that a
pickle would import or call is kept as an `Unknown`, so that a state dict can be found between such things.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

from mango.security.inside.wire import ITEM_BYTES, RefusalError, UnclearError

_STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL", "ComplexFloatStorage": "C64", "UntypedStorage": "U8",
}  # fmt: skip
_DTYPES = {
    "float64": "F64", "double": "F64", "float32": "F32", "float": "F32", "float16": "F16", "half": "F16",
    "bfloat16": "BF16", "int64": "I64", "long": "I64", "int32": "I32", "int": "I32", "int16": "I16", "short": "I16",
    "int8": "I8", "uint8": "U8", "bool": "BOOL", "complex64": "C64", "uint16": "U16", "uint32": "U32",
    "uint64": "U64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
}  # fmt: skip
_MAX_DIMS = 64


@dataclass(frozen=True, eq=False)
class Kind:
    """An element type by its name in torch, and in safetensors where that has one."""

    name: str
    dtype: str | None


@dataclass(eq=False)
class Storage:
    """A run of bytes in the file that tensors look at; ``start`` and ``num_bytes`` are filled in when it is found."""

    key: str
    dtype: str | None
    start: int = -1
    num_bytes: int = -1


@dataclass(frozen=True, eq=False)
class Tensor:
    """A view into a storage: type, first element, extents and strides, all counted in elements."""

    storage: Storage
    dtype: str | None
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    trouble: str = ""


class Ordered(dict[Any, Any]):
    """Stands for ``collections.OrderedDict``; it takes attributes, as state dicts have them."""

    def __init__(self, pairs: Any = ()) -> None:
        super().__init__((pair[0], pair[1]) for pair in pairs)


class Unknown:
    """Anything that the pickle would import and call or make: it holds what came with it and does nothing."""

    path = "?"

    def __new__(cls, *arguments: Any, **names: Any) -> Unknown:
        """Keep what came with it."""
        made = object.__new__(cls)
        made.__dict__.update(arguments=arguments, items={}, state=None)
        return made

    def __init__(self, *arguments: Any, **names: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.__dict__["state"] = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__dict__["items"][key] = value

    def append(self, value: Any) -> None:
        """Take part in a list's place; the value is dropped."""

    def extend(self, values: Any) -> None:
        """Take part in a list's place; the values are dropped."""

    def add(self, value: Any) -> None:
        """Take part in a set's place; the value is dropped."""


def _view(storage: Any, offset: Any, size: Any, stride: Any, dtype: str | None, trouble: str = "") -> Tensor:
    if not isinstance(storage, Storage):
        raise UnclearError("rebuilds a tensor from something that is no storage")
    size, stride = tuple(size), tuple(stride)
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or len(size) > _MAX_DIMS:
        raise RefusalError("rebuilds a tensor whose shape and strides do not fit")
    if not all(type(n) is int and 0 <= n < 2**62 for n in numbers):
        raise RefusalError("rebuilds a tensor whose shape, strides or offset are no natural numbers")
    return Tensor(storage, dtype, offset, size, stride, trouble)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    flags = rest[2] if len(rest) > 2 else None
    trouble = "is a lazy conjugate or negative" if isinstance(flags, dict) and any(map(bool, flags.values())) else ""
    return _view(storage, offset, size, stride, getattr(storage, "dtype", None), trouble)


def _tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, kind: Any, flags: Any = None
) -> Tensor:
    trouble = "is a lazy conjugate or negative" if isinstance(flags, dict) and any(map(bool, flags.values())) else ""
    if not isinstance(kind, Kind):
        raise RefusalError("rebuilds a tensor of a type that is no torch type")
    return _view(storage, offset, size, stride, kind.dtype, trouble or ("" if kind.dtype else f"is {kind.name}"))


def _parameter(data: Any, *rest: Any) -> Any:
    return data


def _of_type(function: Any, type_: Any, arguments: Any, state: Any) -> Any:
    if function in _REBUILDERS:
        return function(*arguments)
    return Unknown(function, arguments)


def _troubled(what: str) -> Callable[..., Tensor]:
    def rebuild(*arguments: Any) -> Tensor:
        return Tensor(Storage("", None), None, 0, (), (), what)

    return rebuild


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    return text.encode("latin1") if isinstance(text, str) else b""


_REBUILDERS: dict[Any, str] = {
    _tensor: "", _tensor_v3: "", _parameter: "", _of_type: "",
}  # fmt: skip

_KNOWN: dict[str, Any] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch._utils._rebuild_sparse_tensor": _troubled("is sparse"),
    "torch._utils._rebuild_sparse_csr_tensor": _troubled("is sparse"),
    "torch._utils._rebuild_nested_tensor": _troubled("is nested"),
    "torch._utils._rebuild_qtensor": _troubled("is quantised"),
    "torch._utils._rebuild_meta_tensor_no_storage": _troubled("is on the meta device, without data"),
    "torch.nn.parameter.Parameter": _parameter,
    "torch.nn.Parameter": _parameter,
    "torch.Size": lambda values=(): tuple(values),
    "torch.device": lambda *names: None,
    "torch.serialization._get_layout": lambda name: None,
    "collections.OrderedDict": Ordered,
    "collections.defaultdict": lambda factory=None, pairs=(): Ordered(pairs),
    "_codecs.encode": _encode,
}
_PLAIN = {"set": set, "frozenset": frozenset, "complex": complex, "list": list, "dict": dict, "tuple": tuple,
          "bytes": bytes}  # fmt: skip


class InertUnpickler(pickle.Unpickler):
    """Read one pickle without importing or calling anything that it names.

    Args:
        file: the stream.
        storages: storages by key, filled as the pickle asks for them.
    """

    def __init__(self, file: IO[bytes], storages: dict[str, Storage]) -> None:
        super().__init__(file, encoding="latin1")
        self.storages = storages
        self.unknown: dict[str, None] = {}
        self._made: dict[str, type[Unknown]] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name: a function of this module, or a class of inert records."""
        path = f"{module}.{name}"
        if path in _KNOWN:
            return _KNOWN[path]
        if module in {"torch", "torch.storage", "torch.cuda"} and name in _STORAGES:
            return Kind(name, _STORAGES[name])
        if module == "torch" and name in _DTYPES:
            return Kind(name, _DTYPES[name])
        if module == "torch" and name.startswith(("complex", "float", "int", "uint", "bits", "quint", "qint")):
            return Kind(name, None)
        if module.startswith("torch") and name.endswith("Storage"):
            return Kind(name, None)
        if module in {"builtins", "__builtin__"} and name in _PLAIN:
            return _PLAIN[name]
        self.unknown[path] = None
        if path not in self._made:
            self._made[path] = type("Unknown", (Unknown,), {"path": path})
        return self._made[path]

    def persistent_load(self, pid: Any) -> Any:
        """Return the storage, or the class, that a reference out of the pickle means."""
        if isinstance(pid, tuple) and len(pid) >= 5 and pid[0] in {"storage", b"storage"}:
            kind, key, numel = pid[1], str(pid[2]), pid[4]
            if not isinstance(kind, Kind) or type(numel) is not int or not 0 <= numel < 2**62:
                raise RefusalError("refers to a storage that is malformed")
            item = 1 if kind.name == "UntypedStorage" else ITEM_BYTES.get(kind.dtype or "", 0)
            storage = self.storages.setdefault(key, Storage(key, kind.dtype, -1, numel * item))
            if len(pid) > 5 and pid[5] is not None:
                return _part(storage, pid[5], item, kind)
            return storage
        if isinstance(pid, tuple) and pid[:1] in {("module",), (b"module",)} and len(pid) > 1:
            return pid[1]
        raise RefusalError("refers to something outside of it that is no storage")


def _part(root: Storage, view: Any, item: int, kind: Kind) -> Storage:
    if not (isinstance(view, tuple) and len(view) == 3 and all(type(n) is int and n >= 0 for n in view[1:])):
        raise RefusalError("refers to a part of a storage that is malformed")
    return PartOf(str(view[0]), kind.dtype, num_bytes=view[2] * item, root=root, offset=view[1] * item)


@dataclass(eq=False)
class PartOf(Storage):
    """A part of another storage, as streams before torch 0.4 have them."""

    root: Storage = field(default_factory=lambda: Storage("", None))
    offset: int = 0
