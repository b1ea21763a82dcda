"""Which process this is, which pipeline it runs in, and whether a process that started a run still lives."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

_MACHINE_ID = Path("/etc/machine-id")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE = Path("/proc/self/ns/pid")


@dataclass(frozen=True)
class ProcessIdentity:
    """A process, told apart from any other that may get the same number later or elsewhere.

    Args:
        host: host name and, where there is one, machine id.
        boot: boot of that host; empty where the system does not tell.
        namespace: process-number namespace (containers); empty where there is none.
        pid: process number.
        started: start time in the system's own unit, exact for one boot.
    """

    host: str
    boot: str
    namespace: str
    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """Return the identity of process ``pid`` on this machine, or None when there is no such process."""
        started = _start_time(pid)
        if started is None:
            return None
        return cls(_host(), _read(_BOOT_ID), _namespace(), pid, started)

    @classmethod
    def own(cls) -> ProcessIdentity:
        """Return the identity of this process."""
        own = cls.of(os.getpid())
        assert own is not None
        return own

    def is_gone(self) -> bool:
        """Whether the process has certainly ended; False for processes that this machine cannot see."""
        if self.host != _host():
            return False
        if self.boot != _read(_BOOT_ID):
            return True
        return self.namespace == _namespace() and _start_time(self.pid) != self.started

    def tags(self) -> dict[str, str]:
        """Return the identity as run tags."""
        return {
            "mango.host": self.host,
            "mango.boot": self.boot,
            "mango.namespace": self.namespace,
            "mango.pid": str(self.pid),
            "mango.started": self.started,
        }

    @classmethod
    def from_tags(cls, tags: dict[str, str]) -> ProcessIdentity | None:
        """Return the identity that `tags` wrote, or None when the tags hold none."""
        if "mango.host" not in tags or not tags.get("mango.pid", "").isdecimal():
            return None
        return cls(
            tags["mango.host"],
            tags.get("mango.boot", ""),
            tags.get("mango.namespace", ""),
            int(tags["mango.pid"]),
            tags.get("mango.started", ""),
        )


def dvc_ancestor() -> ProcessIdentity | None:
    """Return the nearest ``dvc`` process above this one, or None outside a pipeline."""
    import psutil

    try:
        ancestors = psutil.Process().parents()
    except psutil.NoSuchProcess:  # an ancestor ended while we looked, so it is not running us
        return None
    for process in ancestors:
        try:
            command = process.cmdline()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if _is_dvc(command):
            return ProcessIdentity.of(process.pid)
    return None


def dvc_processes(root: Path) -> list[int]:
    """Return the numbers of the ``dvc`` processes that work in a folder."""
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            command = process.cmdline()  # its daemon asks for news and touches nothing here
            if _is_dvc(command) and "daemon" not in command and Path(process.cwd()) == root.resolve():
                found.append(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return sorted(found)


def is_running_dvc(pid: int) -> bool:
    """Whether a process of this number runs now, and is a ``dvc``: after a kill its number may be another's."""
    import psutil

    try:
        return _is_dvc(psutil.Process(pid).cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def git_processes(root: Path) -> list[int]:
    """Return the numbers of the ``git`` processes that work in a folder or below it."""
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            if Path((process.cmdline() or [""])[0]).name in {"git", "git.exe"} and Path(process.cwd()).is_relative_to(
                root.resolve()
            ):
                found.append(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return sorted(found)


def _is_dvc(command: list[str]) -> bool:
    """Whether a command line is ``dvc ...``, ``python .../dvc ...`` or ``python -m dvc ...``."""
    if any(Path(word).name in {"dvc", "dvc.exe"} for word in command[:1]):
        return True
    words = command[1:]
    while words and words[0].startswith("-") and words[0] != "-m":
        words = words[1:]
    if words[:1] == ["-m"]:
        return words[1:2] == ["dvc"]
    return bool(words) and Path(words[0]).name in {"dvc", "dvc.exe"} and Path(command[0]).name.startswith("py")


def _start_time(pid: int) -> str | None:
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # Field 3 is the state, field 22 the start in clock ticks since boot: unlike seconds since 1970 it does not
        # move when the clock is set, so two stages always read the same value.
        return None if fields[0] in "ZX" else fields[19]
    import psutil

    try:
        return f"{psutil.Process(pid).create_time():.2f}"
    except psutil.NoSuchProcess:
        return None


def _read(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


def _host() -> str:
    machine = _read(_MACHINE_ID)
    return f"{socket.gethostname()}/{machine}" if machine else socket.gethostname()


def _namespace() -> str:
    return str(_PID_NAMESPACE.readlink()) if _PID_NAMESPACE.is_symlink() else ""
