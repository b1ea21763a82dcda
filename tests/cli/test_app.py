"""The command: what it lists, how it fails, how it ends."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys

import pytest
import typer

from mango.cli import app
from mango.errors import ConfigError


def run(function, *arguments: str) -> int:
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command()(function)
    return app.run(typer.main.get_command(single), list(arguments), "test")


def test_help_lists_every_command_with_its_summary(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        app.main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for name, command in app.COMMANDS.items():
        assert f"  {name} " in shown
        assert command.summary in shown


@pytest.mark.parametrize("name", sorted(app.COMMANDS))
def test_a_command_is_where_the_list_says_and_says_what_the_list_says(name: str) -> None:
    command = app.load_command(name)
    first = inspect.cleandoc(command.help).split("\n\n")[0].replace("\n", " ")
    assert first.startswith(app.COMMANDS[name].summary.rstrip("."))


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        app.main(["--version"])
    assert capsys.readouterr().out == "0.1.0\n"


def test_an_unknown_command_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        app.main(["promot"])
    assert stop.value.code == 2
    assert "No such command 'promot'. Did you mean 'promote'?" in capsys.readouterr().err


def test_an_error_is_one_line_and_exit_code_two(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise ConfigError("params.yaml:3 seed: -1 is negative")

    assert run(fail) == 2
    assert capsys.readouterr() == ("", "error: params.yaml:3 seed: -1 is negative\n")


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(debug: bool = False) -> None:
        raise ConfigError("no")

    assert run(fail, "--debug") == 2
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown
    assert shown.endswith("error: no\n")


def test_an_error_of_the_system_names_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device", "models/out")

    assert run(fail) == 2
    assert capsys.readouterr().err == "error: models/out: No space left on device\n"


def test_a_defect_of_ours_is_not_dressed_up() -> None:
    def fail() -> None:
        raise AssertionError("ours")

    with pytest.raises(AssertionError, match="ours"):
        run(fail)


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated"),
                                 (signal.SIGHUP, 129, "terminated")]
)  # fmt: skip
def test_a_signal_is_one_line_that_says_how_to_go_on(number: int, code: int, word: str) -> None:
    program = """
import sys, time, typer
from mango.cli import app
def wait(name: str) -> None:
    print("ready", flush=True)
    time.sleep(60)
single = typer.Typer(add_completion=False)
single.command()(wait)
sys.exit(app.run(typer.main.get_command(single), ["a b"], "test"))
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, shown = process.communicate(timeout=30)
    said = f"{word}: nothing was replaced. To go on, run `test 'a b'`: it starts over\n"
    assert (process.returncode, shown) == (code, said)
