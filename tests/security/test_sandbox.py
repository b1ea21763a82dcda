from __future__ import annotations

import contextlib
import errno
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mango.checkpoints import convert_pickles
from mango.errors import CheckpointError, UnsafeFileError
from mango.security import Limits, Tier, parts, run, sandbox, syscalls
from tests.robustness.attack import Runs


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.save({"a": torch.ones(3)}, tmp_path / "a.pt")
    return tmp_path / "a.pt"


def refused(file: Path, match: str) -> None:
    """No weaker sandbox is taken, whatever is missing."""
    with pytest.raises(UnsafeFileError, match=match):
        convert_pickles(file, file.parent / "cache", tier=Tier.UNKNOWN)
    assert [path for path in (file.parent / "cache" / "pickles").glob("v1-*") if path.is_dir()] == []


def test_without_bubblewrap_nothing_is_loaded(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts.bubblewrap.cache_clear()
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    refused(file, "apt-get install bubblewrap")
    parts.bubblewrap.cache_clear()


def test_an_old_bubblewrap_is_refused(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "bwrap"
    old.write_text("#!/bin/sh\necho --cap-drop --die-with-parent\n")
    old.chmod(0o755)
    parts.bubblewrap.cache_clear()
    monkeypatch.setattr("shutil.which", lambda *_, **__: str(old))
    refused(file, r"too old, it lacks --disable-userns; version 0\.8")
    parts.bubblewrap.cache_clear()


def test_without_libseccomp_or_its_binding_nothing_is_loaded(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syscalls.filter_program.cache_clear()
    monkeypatch.setitem(sys.modules, "pyseccomp", None)
    refused(file, r"pip install 'mango-compose\[security\]'")
    monkeypatch.delitem(sys.modules, "pyseccomp")
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None if name == "seccomp" else "libc.so.6")
    refused(file, "apt-get install libseccomp2")
    monkeypatch.undo()
    syscalls.filter_program.cache_clear()


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("bwrap: setting up uid map: Permission denied", "kernel.apparmor_restrict_unprivileged_userns"),
        ("Landlock is missing in kernel 5.4", "lsm="),
        ("bwrap: Can't find source path /root/x: Permission denied", "every user can read"),
        ("", "without a word"),
    ],
)
def test_what_is_missing_in_the_kernel_is_named(said: str, advice: str) -> None:
    assert advice in str(parts.refusal(said))


def test_landlock_that_is_missing_ends_the_child_before_the_file_is_read(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel is made to say that it has no Landlock, by a filter that leaves its calls out."""
    import pyseccomp

    def without(*, starting: bool) -> bytes:
        if not starting:
            return real(starting=False)
        rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
        rules.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "landlock_create_ruleset")
        with (tmp_path / "bpf").open("w+b") as program:
            rules.export_bpf(program)
            program.seek(0)
            return program.read()

    real = syscalls.filter_program
    monkeypatch.setattr(sandbox, "filter_program", without)
    refused(file, "Landlock is missing in kernel")


def test_a_child_that_takes_too_long_is_ended(file: Path) -> None:
    with pytest.raises(UnsafeFileError, match="takes longer than it may"):
        run("scan", file, limits=Limits(2**30, 0.001, 4, 0))


def test_only_plain_files_are_taken(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no plain file"):
        run("scan", tmp_path)


def test_a_child_does_not_outlive_a_parent_that_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "endless.pt"
    file.write_bytes(pickle.dumps({"state_dict": Runs("while True: pass")}))
    parent = subprocess.Popen(
        [sys.executable, "-c", "import sys; from mango.security import run; run('load', sys.argv[1])", str(file)],
        stdout=subprocess.DEVNULL,
    )

    def children() -> list[int]:
        """Return the processes that have the file's folder in view by name, but the parent itself."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"{tmp_path}".encode() in (path / "cmdline").read_bytes():
                    found.append(int(path.name))
        return [number for number in found if number != parent.pid]

    def wait_for(wanted: bool) -> None:
        end = time.monotonic() + 60
        while bool(children()) != wanted:
            assert time.monotonic() < end, children()
            time.sleep(0.02)

    wait_for(True)
    parent.kill()
    parent.wait()
    wait_for(False)
