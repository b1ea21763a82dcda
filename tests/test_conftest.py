"""The test run itself: a skip is honest on a person's machine and a failure in CI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

def test_part_is_missing():
    pytest.skip("needs initdb")

def test_machine_has_none():
    pytest.skip("no accelerator here")

@pytest.mark.xfail(reason="known")
def test_known_to_fail():
    raise AssertionError
"""


def run_tests(folder: Path, ci: str) -> str:
    """Run `TESTS` under the project's conftest and return pytest's summary line."""
    (folder / "conftest.py").write_text((Path(__file__).parent / "conftest.py").read_text())
    (folder / "test_it.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")} | {"CI": ci}
    return subprocess.run(command, capture_output=True, text=True, env=environ, cwd=folder).stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("ci", "summary"), [("false", "2 skipped, 1 xfailed"), ("true", "1 failed, 1 skipped, 1 xfailed")]
)
def test_a_skip_for_a_missing_part_fails_in_ci_alone(tmp_path: Path, ci: str, summary: str) -> None:
    assert summary in run_tests(tmp_path, ci)
