"""The last locks, set by the child itself before it opens the input: limits, Landlock and the narrower filter.

bubblewrap has closed the namespaces by now, and a first system call filter is on. What is set here cannot be taken
back by anything that runs later in this process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pathlib
import platform
import resource
from collections.abc import Sequence

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # one number on every architecture
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_RIGHTS_BY_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # how many file rights each version of Landlock knows
_SCRATCH = "/tmp"


class ConfinementError(Exception):
    """A lock could not be set; nothing hostile has been read."""


class _Ruleset(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("program", ctypes.c_void_p))


def confine(readable: Sequence[str], limits: dict[str, int], program: bytes) -> int:
    """Set limits, Landlock and the system call filter, in this order.

    Args:
        readable: files and folders that may be read from now on; files may be mapped to run, as libraries are.
        limits: hard limits by their name in `resource`, such as ``RLIMIT_AS``.
        program: the filter as the kernel takes it.

    Returns:
        The version of Landlock.

    Raises:
        ConfinementError: a lock cannot be set; the text says which part is missing.
    """
    if os.getuid() == 0 or os.geteuid() == 0:
        raise ConfinementError("the child is root inside the sandbox")
    for name, value in limits.items():
        number = getattr(resource, name)
        _, hard = resource.getrlimit(number)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (value, value))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise ConfinementError("no_new_privs cannot be set")
    version = _landlock(libc, readable)
    buffer = ctypes.create_string_buffer(program, len(program))
    filter_ = _Filter(len(program) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(filter_), 0, 0):
        raise ConfinementError(f"the system call filter cannot be set ({os.strerror(ctypes.get_errno())})")
    return version


def _landlock(libc: ctypes.CDLL, readable: Sequence[str]) -> int:
    version = int(libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1))
    if version < 1:
        raise ConfinementError(
            f"Landlock is missing in kernel {platform.release()}: a kernel from 5.13 with CONFIG_SECURITY_LANDLOCK is "
            "needed, and `landlock` in the list of its boot parameter lsm="
        )
    known = _RIGHTS_BY_ABI.get(version, 16)
    rules = _Ruleset((1 << known) - 1, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = libc.syscall(_LANDLOCK_CREATE, ctypes.byref(rules), ctypes.c_size_t(size), 0)
    if ruleset < 0:
        raise ConfinementError(f"Landlock makes no ruleset ({os.strerror(ctypes.get_errno())})")
    # Making device nodes, sockets, pipes, links and special files stays forbidden in the scratch folder too.
    scratch = _WRITE_FILE | _READ_FILE | _READ_DIR | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | (1 << 14 if known > 14 else 0)
    allowed = [(path, _READ_FILE | (_READ_DIR if pathlib.Path(path).is_dir() else 0)) for path in readable]
    for path, rights in [*allowed, (_SCRATCH, scratch)]:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        beneath = _Beneath(rights, descriptor)
        done = libc.syscall(_LANDLOCK_ADD, ruleset, 1, ctypes.byref(beneath), 0)
        os.close(descriptor)
        if done:
            raise ConfinementError(f"Landlock refuses a rule for {path} ({os.strerror(ctypes.get_errno())})")
    if libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0):
        raise ConfinementError(f"Landlock cannot be switched on ({os.strerror(ctypes.get_errno())})")
    os.close(ruleset)
    return version


def close_all_but(kept: Sequence[int]) -> None:
    """Close every descriptor but those of ``kept``; standard output and error lead nowhere afterwards."""
    nowhere = os.open("/", os.O_PATH)
    for descriptor in range(3, 256):
        if descriptor not in kept and descriptor != nowhere:
            with contextlib.suppress(OSError):
                os.close(descriptor)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
