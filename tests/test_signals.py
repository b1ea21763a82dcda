"""How a run ends, and what it says then."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from mango.checkpoints import replace_folder, write_file
from mango.signals import Terminated, end_signals_as_exceptions, end_signals_ignored, how_to_go_on, resumes


def test_sigterm_and_sighup_are_exits_with_their_codes() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        with pytest.raises(Terminated) as caught, end_signals_as_exceptions():
            os.kill(os.getpid(), number)
        assert caught.value.code == 128 + number


def test_signals_are_ignored_while_a_run_is_closed() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with end_signals_ignored():
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            os.kill(os.getpid(), number)
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_was_replaced_and_how_it_goes_on_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    how_to_go_on("forget what other tests have done")
    with replace_folder("models/a") as new:
        write_file(new / "x", "1")
    with pytest.raises(KeyboardInterrupt), resumes(lambda: "a goes on from step 3"), replace_folder("models/b"):
        raise KeyboardInterrupt
    said = "already replaced, whole: models/a. To go on, run `dvc repro x`: a goes on from step 3"
    assert how_to_go_on("dvc repro x") == said
    assert how_to_go_on("mango x") == "nothing was replaced. To go on, run `mango x`: it starts over"


def test_an_error_of_another_kind_leaves_no_hint() -> None:
    with pytest.raises(ValueError, match="no"), resumes(lambda: "wrong"):
        raise ValueError("no")
    assert "wrong" not in how_to_go_on("x")
