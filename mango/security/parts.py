"""What the sandbox is made of on this machine, and what to do where a part is missing."""

from __future__ import annotations

import functools
import importlib.util
import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from mango.errors import UnsafeFileError

INSIDE = Path(__file__).parent / "inside"
_FIRST_UID, _LAST_UID = 61184, 65519  # the range that systemd keeps for users that exist for one service
_WANTED_OPTIONS = ("--disable-userns", "--size", "--cap-drop", "--die-with-parent")
_ADVICE = (
    (
        ("uid map", "user namespace", "userns", "CLONE_NEWUSER", "No permissions to create"),
        "unprivileged user namespaces are switched off; set sysctl kernel.unprivileged_userns_clone=1 and "
        "user.max_user_namespaces=10000, and on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0 or an AppArmor "
        "profile for bwrap",
    ),
    (
        ("Can't find source path", "Permission denied", "No such file"),
        "an unprivileged user must be able to read Python, its packages and the file; a root without the right to "
        "mount cannot lend them: run as an ordinary user, or put them where every user can read",
    ),
    (("Landlock",), "boot with landlock in the kernel parameter lsm="),
    (("cgroup", "Creating new namespace"), "the kernel lacks a namespace that bubblewrap was asked for"),
)


@functools.cache
def bubblewrap() -> str:
    """Return the path of bubblewrap.

    Raises:
        UnsafeFileError: it is missing or too old.
    """
    program = shutil.which("bwrap", path=f"/usr/bin:/bin:/usr/local/bin:{os.environ.get('PATH', '')}")
    if program is None:
        raise UnsafeFileError("sandbox: bubblewrap is missing, so nothing is loaded; run: apt-get install bubblewrap")
    options = subprocess.run([program, "--help"], capture_output=True, text=True, check=False, env={}).stdout
    if lacking := [option for option in _WANTED_OPTIONS if option not in options]:
        raise UnsafeFileError(
            f"sandbox: {program} is too old, it lacks {lacking[0]}; version 0.8 is needed: apt-get install bubblewrap "
            "(Debian 12 and later have it)"
        )
    return program


def refusal(said: str) -> UnsafeFileError:
    """Return the error for a sandbox that did not start, with what to do about it.

    Args:
        said: what bubblewrap or the child wrote before it ended.
    """
    line = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "it ended without a word")
    advice = next((text for marks, text in _ADVICE if any(mark in said for mark in marks)), "")
    return UnsafeFileError(
        f"sandbox: does not start, so nothing is loaded ({line[:300]})" + (f": {advice}" if advice else "")
    )


def unused_uid() -> int:
    """Return a user id that no account has, for a child of root."""
    taken = {entry.pw_uid for entry in pwd.getpwall()}
    span = _LAST_UID - _FIRST_UID + 1
    start = os.getpid() % span
    return next(uid for step in range(span) if (uid := _FIRST_UID + (start + step) % span) not in taken)


def interpreter() -> str:
    """Return the interpreter itself, behind the links of a virtual environment."""
    return os.path.realpath(sys.executable)


def python_places() -> list[str]:
    """Return what the interpreter needs: itself, its standard library and the C libraries of the system."""
    program = interpreter()
    places = [program, sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        library = Path(sysconfig.get_config_var("LIBDIR") or "", sysconfig.get_config_var("INSTSONAME") or "")
        places += [str(library)] if library.is_file() else []
    triplet = sysconfig.get_config_var("MULTIARCH") or "none"
    system = [f"/lib/{triplet}", f"/usr/lib/{triplet}"]
    if not Path(system[1]).is_dir():
        system = ["/usr/lib64", "/usr/lib"]
    loaders = [str(path) for root in ("/lib64", "/lib") for path in Path(root).glob("ld-linux*.so*")]
    wanted = [place for place in (*places, *system, *loaders) if place and Path(place).exists()]
    return list(dict.fromkeys(wanted))


def package_places() -> list[str]:
    """Return the folders that hold torch and the scanners."""
    places = []
    for name in ("torch", "safetensors", "numpy", "picklescan", "fickling"):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            places.append(str(Path(spec.origin).parents[1]))
    return list(dict.fromkeys(places))
