"""Lazy reading of a model folder: headers at once, weights mapped when asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mango.checkpoints.configurations import read_configuration
from mango.checkpoints.documents import Bounds, read_json, shown
from mango.checkpoints.durable import recover_folder
from mango.checkpoints.failures import reading
from mango.checkpoints.headers import TensorInfo, read_header
from mango.checkpoints.names import check_inside, is_file_name
from mango.checkpoints.vouching import check_hashes
from mango.errors import CheckpointError, IntegrityError, UnsafeFileError

if TYPE_CHECKING:
    import torch

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
MAX_INDEX_BYTES = 64 << 20
MAX_SHARDS = 10_000
MAX_TENSORS = 1_000_000
_INDEX_BOUNDS = Bounds(MAX_INDEX_BYTES, MAX_TENSORS, depth=4)


class Checkpoint:
    """The weights and the configuration of an ordinary model folder, in one file or in shards.

    Opening reads and checks every header. Tensors are mapped: their bytes are read when they are used, and changes
    to them stay private to this process.
    """

    def __init__(self, folder: Path, tensors: dict[str, TensorInfo]) -> None:
        """Use :meth:`open`, which reads and checks the headers."""
        self.folder = folder
        self._tensors = dict(sorted(tensors.items()))
        self._mapped: dict[Path, torch.Tensor] = {}
        self._viewed: dict[Path, memoryview] = {}
        self._sizes: dict[Path, int] = {}

    @classmethod
    def open(cls, folder: Path | str) -> Checkpoint:
        """Open a folder that holds ``model.safetensors`` or its shards and index.

        Every file is checked against the folder's manifest, where there is one, once in a process.

        Raises:
            CheckpointError: there is no such folder, or it holds no safetensors weights.
            IntegrityError: a shard is missing or damaged, a file differs from its hash, or tensors are missing,
                surplus or in two shards.
            UnsafeFileError: the index or a link leads out of the folder, or a header was made to mislead.
        """
        opened = cls.open_unhashed(folder)
        check_hashes(opened.folder)
        return opened

    @classmethod
    def open_unhashed(cls, folder: Path | str) -> Checkpoint:
        """Open a folder as `open` does, for a caller that checks its hashes at another moment.

        Raises:
            CheckpointError: as `open` does.
            IntegrityError: as `open` does, hashes left out.
            UnsafeFileError: as `open` does.
        """
        folder = Path(folder)
        recover_folder(folder)
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such model folder; check the path or run the stage that writes it")
        if (folder / SINGLE_NAME).is_file():
            tensors = read_header(check_inside(folder / SINGLE_NAME, folder))
        elif (folder / INDEX_NAME).is_file():
            tensors = _read_shards(folder)
        else:
            raise _no_weights(folder)
        return cls(folder, tensors)

    def names(self) -> list[str]:
        """Return the names of all tensors, sorted."""
        return list(self._tensors)

    def infos(self) -> list[TensorInfo]:
        """Return where all tensors lie, sorted by name."""
        return list(self._tensors.values())

    def files(self) -> list[Path]:
        """Return the weight files, sorted."""
        return sorted({info.file for info in self._tensors.values()})

    def info(self, name: str) -> TensorInfo:
        """Return where a tensor lies.

        Raises:
            CheckpointError: there is no tensor of that name.
        """
        try:
            return self._tensors[name]
        except KeyError:
            raise CheckpointError(f"{self.folder}: holds no tensor {name!r} ({len(self._tensors)} others)") from None

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor on the CPU whose bytes are read from the file when they are used.

        Returns:
            A tensor of the stored shape and type.

        Raises:
            CheckpointError: there is no tensor of that name, or the file cannot be mapped.
            IntegrityError: the file has changed, or a truth value is neither 0 nor 1.
        """
        import torch

        from mango.tensors import torch_dtype

        info = self.info(name)
        dtype = torch_dtype(info.dtype)
        if info.start == info.end:
            return torch.empty(info.shape, dtype=dtype)
        raw = self.raw(name)
        if dtype == torch.bool and bool((raw > 1).any()):
            raise IntegrityError(
                f"{info.file}: {name!r} is BOOL and holds bytes other than 0 and 1, which mean nothing; save it again"
            )
        if info.start % dtype.itemsize:
            raw = raw.clone()  # the file does not align it, and torch cannot view it in place
        return raw.view(dtype).view(info.shape)

    def raw(self, name: str) -> torch.Tensor:
        """Return the bytes of a tensor, mapped, whatever their type says.

        Returns:
            A one-dimensional tensor of ``uint8``.

        Raises:
            CheckpointError: there is no tensor of that name, or the file cannot be mapped.
            IntegrityError: the file has changed.
        """
        import torch

        info = self.info(name)
        if info.start == info.end:
            return torch.empty(0, dtype=torch.uint8)
        return self._map(info.file)[info.start : info.end]

    def view(self, name: str) -> memoryview:
        """Return the bytes of a tensor, mapped, without torch. Each file that is mapped so stays open.

        Raises:
            CheckpointError: there is no tensor of that name, or the file cannot be mapped.
            IntegrityError: the file has changed.
        """
        info = self.info(name)
        if info.start == info.end:
            return memoryview(b"")
        if info.file not in self._viewed:
            with reading(info.file), info.file.open("rb") as stream:
                self._check_size(info.file, os.fstat(stream.fileno()).st_size)
                self._viewed[info.file] = memoryview(mmap(stream.fileno(), 0, access=ACCESS_READ))
        return self._viewed[info.file][info.start : info.end]

    def read_into(self, name: str, start: int, buffer: memoryview) -> None:
        """Read bytes of a tensor from its file without mapping it; other threads run meanwhile.

        Args:
            name: the tensor.
            start: its first byte that is wanted, counted from 0.
            buffer: filled whole.

        Raises:
            CheckpointError: there is no tensor of that name, or the file cannot be read.
            IntegrityError: the file has changed.
        """
        info = self.info(name)
        assert 0 <= start <= start + len(buffer) <= info.end - info.start, (name, start, len(buffer))
        with reading(info.file), info.file.open("rb", buffering=0) as file:
            self._check_size(info.file, os.fstat(file.fileno()).st_size)
            done = 0
            while done < len(buffer):
                count = os.preadv(file.fileno(), [buffer[done:]], info.start + start + done)
                if not count:
                    raise IntegrityError(f"{info.file}: ended while it was read; open the checkpoint again")
                done += count

    def config(self) -> dict[str, Any]:
        """Return the content of ``config.json``, checked.

        Raises:
            CheckpointError: it is missing or malformed.
            UnsafeFileError: it selects code, or asks for more than any real model has.
        """
        return read_configuration(self.folder)

    def __contains__(self, name: object) -> bool:
        """Tell whether there is a tensor of that name."""
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, sorted."""
        return iter(self._tensors)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self._tensors)

    def __repr__(self) -> str:
        """Name the folder."""
        return f"Checkpoint({str(self.folder)!r}, {len(self)} tensors)"

    def _map(self, file: Path) -> torch.Tensor:
        if file not in self._mapped:
            import torch

            with reading(file):
                size = file.stat().st_size
            self._check_size(file, size)
            self._mapped[file] = torch.from_file(str(file), shared=False, size=size, dtype=torch.uint8)
        return self._mapped[file]

    def _check_size(self, file: Path, size: int) -> None:
        if not self._sizes:
            sizes: dict[Path, int] = {}
            for info in self._tensors.values():
                sizes[info.file] = max(info.end, sizes.get(info.file, 0))
            self._sizes = sizes  # at once, since threads share a checkpoint
        if size != self._sizes[file]:
            raise IntegrityError(f"{file}: changed since it was opened; open the checkpoint again")


def _no_weights(folder: Path) -> CheckpointError:
    if others := sorted(p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt"}):
        return CheckpointError(
            f"{folder}: holds {others[0]} but no safetensors weights; pickled weights can run code and are not "
            f"read. Convert them to {SINGLE_NAME} first"
        )
    return CheckpointError(f"{folder}: holds neither {SINGLE_NAME} nor {INDEX_NAME}")


def _read_shards(folder: Path) -> dict[str, TensorInfo]:
    index = check_inside(folder / INDEX_NAME, folder)
    weight_map = read_json(index, _INDEX_BOUNDS).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise IntegrityError(f"{index}: has no weight_map; copy or download the model again")
    for name, file in weight_map.items():
        if not is_file_name(file):
            raise UnsafeFileError(f"{index}: puts {shown(name)} into {shown(file)}; a shard lies beside its index")
        if not file.endswith(".safetensors"):
            raise UnsafeFileError(f"{index}: puts {shown(name)} into {shown(file)}, which is no safetensors file")
    wanted: dict[str, set[str]] = {}
    for name, file in weight_map.items():
        wanted.setdefault(file, set()).add(name)
    if len(wanted) > MAX_SHARDS:
        raise UnsafeFileError(f"{index}: names {len(wanted)} shards; at most {MAX_SHARDS} are read")
    tensors: dict[str, TensorInfo] = {}
    for file in sorted(wanted):
        if not (folder / file).is_file():
            raise IntegrityError(f"{folder / file}: shard is missing; copy or download the model again")
        found = read_header(check_inside(folder / file, folder))
        if missing := sorted(wanted[file] - set(found)):
            raise IntegrityError(f"{folder / file}: lacks {_some(missing)} that {INDEX_NAME} puts there")
        if surplus := sorted(set(found) - wanted[file]):
            raise IntegrityError(f"{folder / file}: holds {_some(surplus)} that {INDEX_NAME} does not put there")
        tensors.update(found)
    return tensors


def _some(names: list[str]) -> str:
    return repr(names[0]) + (f" and {len(names) - 1} more tensors" if len(names) > 1 else "")
