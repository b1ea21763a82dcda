"""Starts bubblewrap; as root it first becomes a user that nobody else is. It runs as a script, in a fresh process.

A process limit does not bind root, whatever it is called inside a namespace. An unused user cannot enter folders
that are root's alone, so what the child may see is bound elsewhere first, read-only, in a mount namespace of its own.
"""

from __future__ import annotations

import ctypes
import json
import os
import pathlib
import stat
import sys

_NEWNS, _RDONLY, _NOSUID, _NODEV, _REMOUNT, _BIND, _REC, _PRIVATE = 0x20000, 1, 2, 4, 32, 4096, 16384, 1 << 18
_STAGE = "/tmp"


def main() -> None:
    """Become somebody else where that is possible, and turn into bubblewrap."""
    job = json.loads(sys.argv[1])
    binds = [tuple(pair) for pair in job["binds"]]
    arguments = job["command"]
    source = job["input"]
    descriptor = None
    if job["uid"] is not None:
        staged = _stage([*(source for source, _ in binds), source])
        if staged is not None:
            binds = [(place, name) for place, (_, name) in zip(staged, binds, strict=False)]
            descriptor = os.open(staged[-1], os.O_RDONLY)
            os.set_inheritable(descriptor, True)
        os.setgroups([])
        os.setresgid(job["uid"], job["uid"], job["uid"])
        os.setresuid(job["uid"], job["uid"], job["uid"])
    if descriptor is None:
        binds.append((source, job["task"]["input"]))
    task = json.dumps({**job["task"], "descriptor": descriptor})
    bound = [word for source, name in binds for word in ("--ro-bind", source, name)]
    os.chdir("/")
    os.execve(job["program"], [job["program"], *arguments, *bound, *job["last"], task], {})


def _stage(sources: list[str]) -> list[str] | None:
    """Bind files and folders read-only below a tmpfs; None where a container does not let its root mount."""
    libc = ctypes.CDLL(None, use_errno=True)

    def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
        if libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()):
            raise OSError(ctypes.get_errno(), f"mount {target}: {os.strerror(ctypes.get_errno())}")

    if libc.unshare(_NEWNS):
        return None
    opened = [os.open(source, os.O_PATH) for source in sources]
    mount("none", "/", "none", _REC | _PRIVATE)
    mount("tmpfs", _STAGE, "tmpfs", _NOSUID | _NODEV, "mode=755,size=1m")
    staged = []
    for number, descriptor in enumerate(opened):
        place = f"{_STAGE}/{number}"
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):  # the tmpfs may hide the name
            pathlib.Path(place).mkdir()
        else:
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o600))
        mount(f"/proc/self/fd/{descriptor}", place, "none", _BIND)
        mount("none", place, "none", _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV)
        os.close(descriptor)
        staged.append(place)
    return staged


if __name__ == "__main__":
    main()
