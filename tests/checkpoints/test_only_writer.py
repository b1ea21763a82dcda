"""One writer for each output: the second one leaves at once and says who is there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mango.checkpoints import only_writer, replace_folder
from mango.errors import CheckpointError

HOLD = "import sys, time\nfrom mango.checkpoints import only_writer\nwith only_writer(sys.argv[1]):\n" + (
    "    print('held', flush=True)\n    time.sleep(60)\n"
)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_leaves_at_once_and_names_the_first(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    wanted = rf"out: process {holder.pid} \(`-c \S*out`, for \d+ s\) is writing it; this run changed nothing\. Wait"
    with pytest.raises(CheckpointError, match=wanted), only_writer(tmp_path / "out"):
        pass
    with pytest.raises(CheckpointError, match=wanted), replace_folder(tmp_path / "out"):
        pass
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_writer_that_was_killed_is_in_nobodys_way(
    tmp_path: Path, holder: subprocess.Popen[str], number: signal.Signals
) -> None:
    os.kill(holder.pid, number)
    holder.wait()
    with only_writer(tmp_path / "out"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_thread_may_ask_twice_and_another_one_may_not(tmp_path: Path) -> None:
    said: list[str] = []

    def other() -> None:
        try:
            with only_writer(tmp_path / "out"):
                pass
        except CheckpointError as error:
            said.append(str(error))

    with only_writer(tmp_path / "out"):
        with only_writer(tmp_path / "out"):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(said) == 1
    assert "another thread of this process is writing it" in said[0]
    other()
    assert len(said) == 1
    assert list(tmp_path.iterdir()) == []
