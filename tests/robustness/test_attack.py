from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SOME = [
    "os.system", "fork-bomb", "read-secret", "read-proc-environ", "write-canary", "write-input", "chmod-input",
    "connect-tcp", "connect-abstract", "io_uring", "user-namespace", "ptrace", "setuid", "memory-bomb", "thread-bomb",
    "shared-memory-bomb", "other-abi", "huge-file", "terminal-escapes", "call-beside-tensors", "zip-bomb",
    "tar-with-links", "weights-that-are-a-pipe", "index-that-climbs", "code-by-auto-map", "pickle-called-safetensors",
    "endless-chat-template", "package-with-code-by-auto-map", "package-with-a-fused-model-of-nothing",
    "package-with-words-for-the-terminal",
]  # fmt: skip


@pytest.mark.slow
def test_nothing_runs_outside_the_sandbox_and_nothing_gets_out_of_it() -> None:
    """As this user, and where that is root as an ordinary user too; `make attack` runs all of them."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.robustness.attack", "--only", *SOME],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{3 * len(SOME)} attacks" in done.stdout
