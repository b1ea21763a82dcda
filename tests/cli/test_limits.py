"""A command that takes more memory or time than it may ends with one line, and leaves what was there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mango.checkpoints import replace_folder, verify, write_file
from mango.cli.limits import children, held_bytes

PROGRAM = """
import mmap, os, subprocess, sys, time, typer
from pathlib import Path
from mango.checkpoints import replace_folder, write_file
from mango.cli import app

def memory() -> None:
    with replace_folder("out") as new:
        write_file(new / "x", "new")
        kept = []
        while True:
            kept.append(bytearray(os.urandom(2**20)) * 4)
            time.sleep(0.005)

def child() -> None:
    with replace_folder("out") as new:
        subprocess.run([sys.executable, "-c", "import time; x = b'1' * (300 * 2**20); time.sleep(60)"])

def deaf() -> None:
    with replace_folder("out") as new:
        kept = []
        while True:
            try:
                kept.append(bytearray(os.urandom(2**20)) * 8)
                time.sleep(0.005)
            except SystemExit:
                pass

def mapped() -> None:
    with open("big", "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
        assert sum(pages[i] for i in range(0, len(pages), 4096)) == 0
        time.sleep(0.3)

def slow() -> None:
    with replace_folder("out") as new:
        write_file(new / "x", "new")
        time.sleep(60)

single = typer.Typer(add_completion=False)
single.command()(globals()[sys.argv[1]])
sys.exit(app.run(typer.main.get_command(single), [], "test"))
"""


def run(root: Path, what: str, **limits: str) -> subprocess.CompletedProcess[str]:
    with replace_folder(root / "out") as new:
        write_file(new / "x", "old")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, what],
        cwd=root, env=os.environ | limits, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    verify(root / "out")
    assert (root / "out" / "x").read_text() == "old"
    return done


@pytest.mark.parametrize("what", ["memory", "child"])
def test_memory(tmp_path: Path, what: str) -> None:
    done = run(tmp_path, what, MANGO_MEMORY_LIMIT="250MiB")
    assert done.returncode == 2, done.stderr
    error, note = done.stderr.splitlines()
    found = re.fullmatch(
        r"error: test: used ([\d,]+) MiB of memory, MANGO_MEMORY_LIMIT allows 250 MiB; raise it, .*", error
    )
    assert found is not None, error
    assert 250 <= int(found[1].replace(",", "")) < 450
    assert note == "ended: nothing was replaced. To go on, run `test`: it starts over"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_command_that_does_not_listen_is_ended_hard(tmp_path: Path) -> None:
    done = run(tmp_path, "deaf", MANGO_MEMORY_LIMIT="200MiB")
    assert done.returncode == 2, done.stderr
    assert "MANGO_MEMORY_LIMIT allows 200 MiB" in done.stderr
    assert "it did not end by itself, so it was ended; every output is whole" in done.stderr


def test_pages_of_files_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"")
    os.truncate(tmp_path / "big", 300 * 2**20)
    done = run(tmp_path, "mapped", MANGO_MEMORY_LIMIT="250MiB")
    assert (done.returncode, done.stderr) == (0, "")


def test_time(tmp_path: Path) -> None:
    begin_s = time.monotonic()
    done = run(tmp_path, "slow", MANGO_TIME_LIMIT_S="0.5")
    assert done.returncode == 2, done.stderr
    error, note = done.stderr.splitlines()
    assert re.fullmatch(r"error: test: ran for 0\.[56]\d* s, MANGO_TIME_LIMIT_S allows 0\.5; raise it", error), error
    assert note.startswith("ended: nothing was replaced. To go on, run `test`")
    assert time.monotonic() - begin_s < 40
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_limit_without_sense_is_an_error(tmp_path: Path) -> None:
    done = run(tmp_path, "slow", MANGO_MEMORY_LIMIT="lots", MANGO_TIME_LIMIT_S="-1")
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert [line.split(":")[1] for line in lines] == [
        " environment MANGO_MEMORY_LIMIT",
        " environment MANGO_TIME_LIMIT_S",
    ]


OWN_MEMORY = """
import os
from mango.cli.limits import held_bytes

before = held_bytes()
block = bytearray(os.urandom(2**20)) * 64
print(held_bytes() - before)
"""


def test_own_memory_and_processes_below_are_seen() -> None:
    # in a process of its own: what else this one lets go of at that moment would hide the difference
    seen = subprocess.run([sys.executable, "-c", OWN_MEMORY], capture_output=True, text=True, check=True, timeout=60)
    assert 60 * 2**20 < int(seen.stdout) < 80 * 2**20
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        assert process.pid in children(os.getpid())
        process.kill()
    assert held_bytes(process.pid) == 0
