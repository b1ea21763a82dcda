"""The console: results to stdout, the rest to stderr, bars on a terminal alone."""

from __future__ import annotations

import itertools
import json

import pytest

from mango import console
from mango.errors import ConfigError


def test_results_go_to_stdout_and_notes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console.result("42")
    console.note("working")
    assert capsys.readouterr() == ("42\n", "working\n")


def test_json_is_sorted_and_holds_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    console.result_json({"b": 1, "a": [1.5]})
    out = capsys.readouterr().out
    assert list(json.loads(out)) == ["a", "b"]
    with pytest.raises(ValueError, match="not JSON compliant"):
        console.result_json({"a": float("nan")})


def test_each_problem_is_one_error_line(capsys: pytest.CaptureFixture[str]) -> None:
    console.error(ConfigError("a: is wrong\nb: is wrong too"))
    assert capsys.readouterr().err == "error: a: is wrong\nerror: b: is wrong too\n"
    console.error(ConfigError())
    assert capsys.readouterr().err == "error: ConfigError\n"


def test_a_table_aligns_numbers_right_and_words_left() -> None:
    assert console.table([["fused", 1.23456, 10, None], ["trunk", 12.0, 7, 1.0]], ["system", "bits", "n", "cost"]) == (
        "system    bits   n   cost\n------  ------  --  -----\nfused    1.235  10      -\ntrunk   12.000   7  1.000"
    )
    assert console.table([], ["a", "b"]) == "a  b\n-  -"


def test_without_a_terminal_progress_is_a_line_at_intervals(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(step=4.0)
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    assert list(console.progress(range(6), "blocks", 6, every_s=10.0)) == [0, 1, 2, 3, 4, 5]
    assert capsys.readouterr() == ("", "blocks: 3/6, 12 s left\nblocks: 6/6, 0 s left\n")


def test_the_time_left_does_not_count_what_came_before(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier run had done half, and other work came first."""
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    meter = console.Meter("merge", every_s=1.0)
    now = 100.0
    meter(50, 100)
    now = 110.0
    meter(60, 100)
    assert capsys.readouterr().err.splitlines()[-1] == "merge: 60/100, 40 s left"


def test_on_a_terminal_progress_is_a_bar_that_ends_its_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: True)
    assert list(console.progress(iter("ab"), "blocks", 2)) == ["a", "b"]
    shown = capsys.readouterr().err
    assert "\rblocks [##############################] 2/2" in shown
    assert shown.endswith("\n")


def test_a_bar_does_not_hide_the_error_that_stopped_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing():
        yield 1
        raise ConfigError("stop")

    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: True)
    with pytest.raises(ConfigError, match="stop"):
        list(console.progress(failing(), "blocks", 1))
    assert capsys.readouterr().err.endswith("\n")


def test_a_stranger_s_words_cannot_command_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console.note("name \x1b[2J")
    console.result(console.table([["\x1b]0;owned\x07", 1]], ["name", "size"]))
    shown = capsys.readouterr()
    assert "\x1b" not in shown.err + shown.out
    assert r"\x1b[2J" in shown.err
