"""Processes that start in milliseconds: children of one that has imported everything, and ways to kill them."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WRITING = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.chmod", "shutil.rmtree"}
"""Events of Python's audit that change a file system; ``open`` counts when it is for writing."""
DECISIVE = {"os.rename", "fsync", "exchange"}
"""Those at which a version becomes durable or takes its place."""


@dataclass(frozen=True)
class Kill:
    """When a process is killed with its whole group.

    Args:
        after_s: this many seconds after it began, by its parent.
        at_event: by itself, at this event of those in `WRITING` or of fsync and the exchange of folders.
        decisive: count only the events in `DECISIVE`.
    """

    after_s: float | None = None
    at_event: int | None = None
    decisive: bool = False


@dataclass
class Ended:
    """How a process ended.

    Args:
        code: its exit code, negative for a signal.
        seconds: how long it ran.
        said: what it wrote to stdout and stderr.
        num_events: events that it had when it ended by itself, all and decisive.
        lowest_free: bytes that were free on its disk when least were.
    """

    code: int
    seconds: float
    said: str
    num_events: tuple[int, int] = (0, 0)
    lowest_free: int = 0

    @property
    def killed(self) -> bool:
        """Whether it was killed."""
        return self.code == -signal.SIGKILL


class Events:
    """Counts what a process does to the file system, and may kill it at one of these moments.

    Args:
        kill: when to.
        disk: a folder whose free bytes are watched.
    """

    def __init__(self, kill: Kill | None, disk: Path | None = None) -> None:
        self.all = self.decisive = 0
        self.kill = kill
        self.disk = disk
        self.lowest_free = 2**63
        self._lock = threading.RLock()

    def install(self) -> None:
        """Begin to count; it cannot be taken back."""
        from mango.checkpoints import exchange

        sys.addaudithook(self._audit)
        fsync, swap = os.fsync, exchange.exchange

        def counted_fsync(descriptor: int) -> None:
            self.note("fsync")
            fsync(descriptor)
            self.note("fsync")

        def counted_swap(first: Path, second: Path) -> bool:
            self.note("exchange")
            done = swap(first, second)
            self.note("exchange")
            return done

        os.fsync = counted_fsync  # type: ignore[assignment]
        exchange.exchange = counted_swap

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            flags = arguments[2] if isinstance(arguments[2], int) else 0
            if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        if event in WRITING:
            self.note(event)

    def note(self, event: str) -> None:
        """Count an event."""
        with self._lock:
            self.all += 1
            self.decisive += event in DECISIVE
            if self.disk is not None:
                found = os.statvfs(self.disk)
                self.lowest_free = min(self.lowest_free, found.f_bavail * found.f_frsize)
            kill = self.kill
            if kill is not None and kill.at_event is not None:
                seen = self.decisive if kill.decisive else self.all
                if seen == kill.at_event and (event in DECISIVE or not kill.decisive):
                    os.killpg(0, signal.SIGKILL)


def run_forked(
    work: Callable[[], Any],
    log: Path,
    *,
    kill: Kill | None = None,
    count: bool = False,
    disk: Path | None = None,
    timeout_s: float = 300,
) -> Ended:
    """Run something in a forked process group of its own, and wait for its end.

    Args:
        work: ends by returning, by an exception, or by ``sys.exit``.
        log: file for what it writes.
        kill: when to kill it.
        count: count its events even if none kills it.
        disk: a folder whose free bytes are watched at each event.
        timeout_s: after which it is stuck, and the test with it.
    """
    read, write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    begin_s = time.monotonic()
    child = os.fork()
    if not child:
        os.close(read)
        _as_child(work, log, write, kill, count, disk)
    os.close(write)
    status = _wait(child, begin_s, kill, timeout_s)
    seconds = time.monotonic() - begin_s
    told = os.read(read, 200).decode().split()
    os.close(read)
    events = (int(told[0]), int(told[1])) if told else (0, 0)
    lowest = int(told[2]) if told else 0
    return Ended(os.waitstatus_to_exitcode(status), seconds, log.read_text(errors="replace"), events, lowest)


def _wait(child: int, begin_s: float, kill: Kill | None, timeout_s: float) -> int:
    after_s = None if kill is None else kill.after_s
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        now_s = time.monotonic() - begin_s
        if (after_s is not None and now_s >= after_s) or now_s > timeout_s:
            try:
                os.killpg(child, signal.SIGKILL)
            except ProcessLookupError:  # it has no group of its own yet
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            if now_s > timeout_s:
                raise TimeoutError(f"a forked process did not end within {timeout_s:g} s")
            return status
        left_s = 0.002 if after_s is None else min(0.002, max(0.0, after_s - now_s))
        time.sleep(left_s)


def _as_child(
    work: Callable[[], Any], log: Path, write: int, kill: Kill | None, count: bool, disk: Path | None
) -> None:
    code = 1
    try:
        os.setsid()
        sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        events = Events(kill, disk)
        if count or (kill is not None and kill.at_event is not None):
            events.install()
        try:
            work()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        os.write(write, f"{events.all} {events.decisive} {events.lowest_free}".encode())
    except BaseException:  # noqa: BLE001 - this process ends here, with all that can be said
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def random_kill(chance: random.Random, seconds: float, num_events: tuple[int, int]) -> Kill:
    """Return a random moment: half of them anywhere in time, the others at something that is written.

    Args:
        chance: where the randomness comes from.
        seconds: how long an undisturbed run takes.
        num_events: events that it has, all and decisive.
    """
    way = chance.random()
    if way < 0.5 or min(num_events) < 1:
        return Kill(after_s=chance.uniform(0.0, seconds * 1.02))
    decisive = way > 0.75
    return Kill(at_event=chance.randint(1, num_events[decisive]), decisive=decisive)


_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000


def small_disk(place: Path, num_bytes: int) -> None:
    """Mount a disk of a size for this process and its children alone; it is gone when they are.

    Raises:
        OSError: neither root's rights nor a user namespace allow it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_CLONE_NEWNS):
        if libc.unshare(_CLONE_NEWNS | _CLONE_NEWUSER):
            raise OSError(ctypes.get_errno(), "no mount namespace")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
    options = f"size={num_bytes},mode=755".encode()
    if libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", 0, options):
        raise OSError(ctypes.get_errno(), "cannot mount a tmpfs")
