"""Which process this is, whether another one is gone, and which pipeline runs it."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mango.tracking.processes import ProcessIdentity, dvc_ancestor

ASK = "from mango.tracking.processes import dvc_ancestor as d; a = d(); print(a.pid if a else None)"


def test_own_process_is_alive_and_survives_the_way_through_tags() -> None:
    own = ProcessIdentity.own()
    assert own.pid == os.getpid()
    assert not own.is_gone()
    assert ProcessIdentity.from_tags(own.tags()) == own
    assert ProcessIdentity.own() == own


def test_an_ended_process_is_gone() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        identity = ProcessIdentity.of(process.pid)
        assert identity is not None
        assert not identity.is_gone()
        process.kill()
    assert identity.is_gone()
    assert ProcessIdentity.of(process.pid) != identity


def test_a_new_process_with_the_same_number_is_another() -> None:
    assert dataclasses.replace(ProcessIdentity.own(), started="1").is_gone()


def test_processes_before_the_last_boot_are_gone() -> None:
    assert dataclasses.replace(ProcessIdentity.own(), boot="earlier").is_gone()


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"namespace": "pid:[1]", "started": "1"}])
def test_what_this_machine_cannot_see_is_not_said_to_be_gone(change: dict[str, str]) -> None:
    assert not dataclasses.replace(ProcessIdentity.own(), **change).is_gone()


@pytest.mark.parametrize("tags", [{}, {"mango.host": "h"}, {"mango.host": "h", "mango.pid": "x"}])
def test_tags_without_a_process(tags: dict[str, str]) -> None:
    assert ProcessIdentity.from_tags(tags) is None


def test_no_dvc_process_runs_this_test() -> None:
    assert dvc_ancestor() is None


def test_the_dvc_process_is_found_through_a_shell(fake_dvc: Path) -> None:
    # As DVC does it: the stage is started by a shell that dvc starts.
    done = subprocess.run(
        [sys.executable, str(fake_dvc), f"{sys.executable} -c '{ASK}'; true"],
        capture_output=True,
        text=True,
        check=True,
    )
    dvc_pid, found = done.stdout.split()
    assert found == dvc_pid


def test_a_stage_that_merely_names_dvc_is_no_dvc_process(tmp_path: Path) -> None:
    script = tmp_path / "stage.py"
    script.write_text(f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {ASK!r}], check=True)")
    done = subprocess.run([sys.executable, str(script), "dvc", "-m", "dvc"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"
