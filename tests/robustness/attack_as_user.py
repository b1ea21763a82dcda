"""Runs a module as an ordinary user where root does: in a mount namespace that lets this user read the interpreter."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from pathlib import Path

UID = 61999
_NEWNS, _BIND, _PRIVATE_ALL = 0x20000, 4096, 16384 | 1 << 18


def main() -> None:
    """Become the user, and run the module that is named with its arguments."""
    libc = ctypes.CDLL(None, use_errno=True)

    def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
        if libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()):
            raise OSError(ctypes.get_errno(), f"mount {target}")

    home = tempfile.mkdtemp(prefix="mango-user-")
    os.chown(home, UID, UID)
    if libc.unshare(_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    mount("none", "/", "none", _PRIVATE_ALL)
    prefix = os.path.realpath(sys.base_prefix)
    closed = next((str(p) for p in reversed(Path(prefix).parents) if not p.stat().st_mode & 0o001), None)
    if closed is not None:
        opened = os.open(prefix, os.O_PATH)
        mount("tmpfs", closed, "tmpfs", 0, "mode=755")
        Path(prefix).mkdir(parents=True)
        mount(f"/proc/self/fd/{opened}", prefix, "none", _BIND)
        os.close(opened)
    os.setgroups([])
    os.setresgid(UID, UID, UID)
    os.setresuid(UID, UID, UID)
    environment = {"HOME": home, "PATH": os.environ.get("PATH", ""), "TMPDIR": home, "PYTHONPATH": str(Path.cwd())}
    os.execve(sys.executable, [sys.executable, "-B", "-W", "ignore", "-m", *sys.argv[1:]], environment)


if __name__ == "__main__":
    main()
