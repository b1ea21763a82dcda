"""A child process that can read one file, and give one answer through one pipe, and can do nothing else.

bubblewrap gives it namespaces of its own (users, processes, network, mounts, messages, host name, control groups),
no capability, an empty environment, a new session and a file system of nothing but Python, read-only. A filter lets
through the system calls that reading needs. The child then sets its own limits, Landlock and a narrower filter, and
only then opens the file. Where a part is missing nothing is loaded; there is no weaker way.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mango.errors import CheckpointError, UnsafeFileError
from mango.security import parts
from mango.security.syscalls import filter_program, memory_file

Kind = Literal["convert", "load", "scan"]
Sink = Callable[[int, Iterator[bytes]], None]
"""Takes the size of a safetensors file and its bytes in pieces; it checks them, since they come from the child."""

_MIB = 2**20
_PIPE_BYTES = _MIB
_LARGEST_TEXT = {b"E": 4000, b"U": 4000, b"R": 4000, b"J": 4 * _MIB}
_MOST_FRAMES = 64
_SCRATCH_BYTES = 64 * _MIB
_ADDRESS_BYTES = 16 * 2**30
_SANDBOX_ID = 65534
_INSIDE = "/code/mango/security/inside"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What a child may use.

    Args:
        memory_bytes: private memory.
        seconds: of the clock, and as much of a processor.
        threads: processes and threads.
        max_bytes: the longest safetensors file that is taken from it.
    """

    memory_bytes: int
    seconds: float
    threads: int
    max_bytes: int

    @classmethod
    def for_file(cls, kind: Kind, num_bytes: int) -> Limits:
        """Return the limits for one kind of job on a file of a size in bytes."""
        seconds = 30.0 + 30.0 * num_bytes / 2**30
        most = 64 * _MIB + 4 * num_bytes
        if kind == "convert":
            return cls(512 * _MIB + 2 * num_bytes, seconds, 4, most)
        if kind == "scan":
            return cls(1024 * _MIB, seconds, 4, 0)
        return cls(1024 * _MIB + 4 * num_bytes, 60.0 + seconds, 32, most)


@dataclass
class Outcome:
    """What a child said.

    Args:
        locked: how it was locked: the version of Landlock and its user inside.
        report: what it found.
        refusal: why there is no result; empty when there is one.
        unclear: the refusal is that the file cannot be read without running what it names.
    """

    locked: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    refusal: str = ""
    unclear: bool = False


def run(
    kind: Kind,
    file: Path | str,
    *,
    sink: Sink | None = None,
    stop: Callable[[Mapping[str, Any]], bool] | None = None,
    limits: Limits | None = None,
) -> Outcome:
    """Do one job on a file in the sandbox.

    Args:
        kind: ``convert`` reads a checkpoint inertly, ``load`` loads it with torch, ``scan`` runs the scanners.
        file: the file; nothing else of the user is seen by the child.
        sink: takes the safetensors file that the child hands back.
        stop: asked with the child's report before a file is taken; when it says so, the child is ended.
        limits: what the child may use; by the size of the file if left out.

    Returns:
        What the child said. It is not to be believed further than it can be checked.

    Raises:
        UnsafeFileError: a part of the sandbox is missing, or the child broke a limit or the form of its answers.
        CheckpointError: the file is missing or no plain file.
    """
    path = os.path.realpath(file)
    if not Path(path).is_file():
        raise CheckpointError(f"{file}: is no plain file")
    limits = limits or Limits.for_file(kind, Path(path).stat().st_size)
    reader, writer = os.pipe()
    opened = [reader]
    child: subprocess.Popen[bytes] | None = None
    try:
        try:
            with contextlib.suppress(OSError):  # a smaller pipe is only slower
                _widen(writer)
            first = memory_file("first", filter_program(starting=True))
            second = memory_file("second", filter_program(starting=False))
            chance = memory_file("chance", os.urandom(256))
            nothing = memory_file("nothing", b"")
            descriptors = (writer, first, second, chance, nothing)
            opened += descriptors[1:]
            launcher = str(Path(parts.__file__).with_name("launch.py"))
            job = json.dumps(_job(kind, path, limits, descriptors))
            child = subprocess.Popen(
                [parts.interpreter(), "-I", "-S", "-B", launcher, job],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env={},
                cwd="/",
                pass_fds=descriptors,
                start_new_session=True,
            )
        finally:
            os.close(writer)
        return _listen(child, reader, limits, Path(file), sink, stop)
    finally:
        if child is not None:
            _end(child)
        for descriptor in opened:
            os.close(descriptor)


def _widen(descriptor: int) -> None:
    import fcntl

    fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _job(kind: Kind, path: str, limits: Limits, descriptors: tuple[int, int, int, int, int]) -> dict[str, Any]:
    answers, first, second, chance, nothing = descriptors
    places = parts.python_places()
    sites = parts.package_places() if kind != "convert" else []
    visible = {place: place for place in (*places, *sites)}
    visible[os.path.realpath(parts.INSIDE)] = _INSIDE
    task = {
        "kind": kind,
        "input": "/input",
        "answers": answers,
        "program": second,
        "sites": sites,
        "readable": [*visible.values(), "/dev/urandom", "/dev/null"],
        "limits": {
            "RLIMIT_DATA": limits.memory_bytes,
            "RLIMIT_AS": _ADDRESS_BYTES + 4 * limits.memory_bytes,  # libraries map more than they use
            "RLIMIT_CPU": int(limits.seconds) + 1,
            "RLIMIT_NPROC": limits.threads,
            "RLIMIT_FSIZE": _SCRATCH_BYTES,
            "RLIMIT_NOFILE": 256,
            "RLIMIT_CORE": 0,
            "RLIMIT_MEMLOCK": 0,
            "RLIMIT_MSGQUEUE": 0,
        },
        "options": {"max_bytes": limits.max_bytes},
    }
    unshare = [f"--unshare-{name}" for name in ("user", "pid", "net", "ipc", "uts", "cgroup")]
    command = [*unshare, "--disable-userns", "--uid", str(_SANDBOX_ID), "--gid", str(_SANDBOX_ID)]
    command += ["--hostname", "sandbox", "--clearenv", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    command += ["--size", str(_SCRATCH_BYTES), "--tmpfs", "/tmp"]
    # Plain files under the names that libraries open: there is no device at all.
    command += ["--ro-bind-data", str(chance), "/dev/urandom", "--ro-bind-data", str(nothing), "/dev/null"]
    last = ["--remount-ro", "/", "--chdir", "/", "--seccomp", str(first), "--"]
    last += [parts.interpreter(), "-I", "-S", "-B", f"{_INSIDE}/main.py"]
    return {
        "uid": parts.unused_uid() if os.geteuid() == 0 else None,
        "program": parts.bubblewrap(),
        "command": command,
        "binds": list(visible.items()),
        "input": path,
        "last": last,
        "task": task,
    }


def _listen(
    child: subprocess.Popen[bytes],
    reader: int,
    limits: Limits,
    file: Path,
    sink: Sink | None,
    stop: Callable[[Mapping[str, Any]], bool] | None,
) -> Outcome:
    pipe = _Pipe(reader, time.monotonic() + limits.seconds, file)
    outcome = Outcome()
    taken = False
    for _ in range(_MOST_FRAMES):
        start = pipe.take(9, may_end=True)
        if not start:
            break
        letter, size = start[:1], struct.unpack("<Q", start[1:])[0]
        if letter == b"S":
            if not outcome.locked or sink is None or taken:
                raise UnsafeFileError(f"{file}: the sandboxed child sent a file that nobody asked for")
            if size > limits.max_bytes:
                raise UnsafeFileError(f"{file}: the sandboxed child sends {size} bytes; at most {limits.max_bytes}")
            pieces = pipe.pieces(size)
            sink(size, pieces)
            taken = True
            break  # nothing that comes behind it is wanted
        if size > _LARGEST_TEXT.get(letter, -1):
            raise UnsafeFileError(f"{file}: the sandboxed child sent an answer that has no known form")
        text = pipe.take(size)
        if letter in {b"E", b"U"}:
            said = _printable(text)
            if not outcome.locked:
                raise parts.refusal(said)
            outcome.refusal, outcome.unclear = said or "refused without a word", letter == b"U"
            break
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UnsafeFileError(f"{file}: the sandboxed child sent a report that is no JSON") from error
        if not isinstance(document, dict):
            raise UnsafeFileError(f"{file}: the sandboxed child sent a report that is no JSON object")
        if letter == b"R" and not outcome.locked:
            outcome.locked = document
        elif outcome.locked:
            outcome.report = document
            if stop is not None and stop(document):
                return outcome
    if not outcome.locked:
        raise parts.refusal(_last_words(child))
    if sink is not None and not taken and not outcome.refusal:
        outcome.refusal = f"ended the sandboxed child without a result{_cause(child)}"
    return outcome


class _Pipe:
    """The end of the pipe from the child, with a deadline."""

    def __init__(self, descriptor: int, deadline: float, file: Path) -> None:
        self.descriptor = descriptor
        self.deadline = deadline
        self.file = file

    def _read(self, most: int) -> bytes:
        left = self.deadline - time.monotonic()
        if left <= 0 or not select.select([self.descriptor], [], [], left)[0]:
            raise UnsafeFileError(f"{self.file}: takes longer than it may in the sandbox; the child was ended")
        return os.read(self.descriptor, most)

    def take(self, count: int, *, may_end: bool = False) -> bytes:
        """Return the next bytes; none when the pipe ends before the first and may do so."""
        parts_: list[bytes] = []
        left = count
        while left:
            piece = self._read(min(left, _PIPE_BYTES))
            if not piece:
                if may_end and left == count:
                    return b""
                raise UnsafeFileError(f"{self.file}: the sandboxed child ended in the middle of an answer")
            parts_.append(piece)
            left -= len(piece)
        return b"".join(parts_)

    def pieces(self, count: int) -> Iterator[bytes]:
        """Yield the next bytes as they come, no more than ``count``."""
        while count:
            piece = self._read(min(count, _PIPE_BYTES))
            if not piece:
                raise UnsafeFileError(f"{self.file}: the sandboxed child ended in the middle of its tensors")
            count -= len(piece)
            yield piece


def _printable(text: bytes) -> str:
    return "".join(c if c.isprintable() else " " for c in text.decode("utf-8", "replace")).strip()


def _last_words(child: subprocess.Popen[bytes]) -> str:
    """Return what a child that is not locked yet wrote to its standard error; the hostile file is unread by then."""
    assert child.stderr is not None
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(timeout=5)
    os.set_blocking(child.stderr.fileno(), False)
    return (child.stderr.read(8192) or b"").decode("utf-8", "replace")


def _cause(child: subprocess.Popen[bytes]) -> str:
    with contextlib.suppress(subprocess.TimeoutExpired):
        code = child.wait(timeout=5)
        number = -code if code < 0 else code - 128
        if number in {signal.SIGXCPU, signal.SIGKILL, signal.SIGSYS, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS}:
            return f" ({signal.Signals(number).name})"
    return ""


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child and everything in its namespaces, which die with it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert child.stderr is not None
    child.stderr.close()
