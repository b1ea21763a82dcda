"""One weight file of a merge: written in order, hashed at the same time, continued where a killed run stopped."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from mango.checkpoints import TensorSpec
from mango.checkpoints.hashing import Hasher
from mango.checkpoints.sealing import remember_hashes, start_writing
from mango.checkpoints.writer import shard_header
from mango.merging.journal import Journal, Mark

_BATCH_BYTES = 1 << 20
_MARK_SECONDS = 0.05
_READ_BYTES = 1 << 22


class Shard:
    """A weight file while it grows.

    Args:
        file: its path.
        specs: its tensors, in the order of their bytes.
        journal: where its marks are kept.
        hashing: two threads that hash.
    """

    def __init__(self, file: Path, specs: Sequence[TensorSpec], journal: Journal, hashing: ThreadPoolExecutor) -> None:
        self.file = file
        self._specs = specs
        self._journal = journal
        self._hashing = hashing
        self._hasher = Hasher()
        self._position = 0
        self._started = 0
        self._batch: list[memoryview | int] = []
        self._batch_bytes = 0
        self._hashed: Future[None] | None = None
        self._marked_s = 0.0
        header = shard_header(specs, {"format": "pt"})
        size = len(header) + sum(spec.num_bytes for spec in specs)
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        self.num_done = self._resume(header, size)
        if self._position == 0:
            os.ftruncate(self._descriptor, size)  # the plan has asked for room; reserving it now would slow every write
            self._write([memoryview(header)])
            self._hasher.update(header)

    def _resume(self, header: bytes, size: int) -> int:
        """Hash what an earlier run has written, up to the last mark that is true, and return the tensors done."""
        marks = sorted(self._journal.marks.get(self.file.name, ()), key=lambda mark: mark.position)
        if not marks or os.fstat(self._descriptor).st_size != size:
            return 0
        if os.pread(self._descriptor, len(header), 0) != header:
            return 0
        position, hasher, true = 0, Hasher(), None
        for mark in marks:
            while position < mark.position:
                read = os.pread(self._descriptor, min(_READ_BYTES, mark.position - position), position)
                if not read:
                    return self._take(true)
                hasher.update(read)
                position += len(read)
            if hasher.sha256() != mark.sha256:
                break
            true = (mark, hasher.copy())
        return self._take(true)

    def _take(self, true: tuple[Mark, Hasher] | None) -> int:
        if true is None:
            return 0
        mark, self._hasher = true
        self._position = self._started = mark.position
        return mark.num_tensors

    def write(self, piece: memoryview) -> None:
        """Append the bytes of a piece of the tensor whose turn it is."""
        if len(piece):
            self._batch.append(piece)
            self._batch_bytes += len(piece)
            if self._batch_bytes >= _BATCH_BYTES:
                self._flush()

    def tensor_done(self, count: int) -> None:
        """Note that ``count`` tensors are complete with what was given so far."""
        self._batch.append(count)
        if len(self._batch) > 1000:
            self._flush()

    def _flush(self) -> None:
        """Write the batch, and let it be hashed while the next one is made."""
        parts, self._batch, self._batch_bytes = self._batch, [], 0
        before = self._position
        self._write([part for part in parts if not isinstance(part, int)])
        self._wait()
        self._hashed = self._hashing.submit(self._hash, parts, before)

    def _write(self, views: list[memoryview]) -> None:
        for first in range(0, len(views), 512):
            some = views[first : first + 512]
            total = sum(len(view) for view in some)
            done = os.pwritev(self._descriptor, some, self._position)
            whole = memoryview(b"".join(some)) if done < total else None
            while whole is not None and done < total:
                done += os.pwrite(self._descriptor, whole[done:], self._position + done)
            self._position += total
        if self._position - self._started >= 1 << 24:
            start_writing(self._descriptor, self._started, self._position - self._started)
            self._started = self._position

    def _hash(self, parts: list[memoryview | int], position: int) -> None:
        views = [part for part in parts if not isinstance(part, int)]
        other = self._hashing.submit(self._hash_more, views)
        for part in parts:
            if not isinstance(part, int):
                self._hasher.update_sha256(part)
                position += len(part)
            elif time.monotonic() - self._marked_s > _MARK_SECONDS or part == len(self._specs):
                self._journal.add(self.file.name, Mark(part, position, self._hasher.sha256()))
                self._marked_s = time.monotonic()
        other.result()

    def _hash_more(self, views: list[memoryview]) -> None:
        for view in views:
            self._hasher.update_blake3(view)

    def _wait(self) -> None:
        if self._hashed is not None:
            self._hashed.result()
            self._hashed = None

    def finish(self) -> None:
        """Write and hash what is left; sealing the folder then knows the hash."""
        self._flush()
        self._wait()
        os.close(self._descriptor)
        remember_hashes(self.file, self._hasher.digests())

    def abandon(self) -> None:
        """Close the file after an error."""
        os.close(self._descriptor)
