"""The ``mango`` command and how it fails: one ``error:`` line and exit code 2."""

from __future__ import annotations

import gc
import importlib
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

import mango
from mango import console
from mango.cli.limits import limits
from mango.errors import MangoError
from mango.redaction import guarded_output
from mango.signals import OverLimit, Terminated, end_signals_as_exceptions, how_to_go_on

_NEW_OBJECTS = 100_000
"""Between two looks for garbage: importing torch makes ten times as many objects, which all stay."""
INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 and the number of SIGINT."""


@dataclass(frozen=True)
class Command:
    """Where a command is and what the list of commands says of it.

    Args:
        target: ``module:attribute``, a function or a Typer app. A string, so that the list costs no import; and so
            that a command may live above this package, beside the schema that it shows, without an upward import.
        summary: the first line of its help.
    """

    target: str
    summary: str


COMMANDS = {
    "inspect": Command("mango.cli.blocks:inspect", "Show where a model keeps its blocks and what they measure."),
    "architectures": Command(
        "mango.cli.architectures:architectures", "Show which model types can be hosts and guests."
    ),
    "extract": Command("mango.cli.blocks:extract", "Extract the blocks of models into a block store."),
    "scan": Command("mango.cli.safety:scan", "Show a model's tier and what scanners say of its pickles."),
    "convert": Command("mango.cli.safety:convert", "Convert a pickled checkpoint to safetensors in the sandbox."),
    "merge": Command("mango.cli.merging:merge", "Merge models by YAML documents into checkpoints."),
    "extract-lora": Command("mango.cli.lora:extract_lora", "Extract a LoRA adapter from the difference of two models."),
    "moe": Command("mango.cli.moe:moe", "Assemble dense models into a mixture of experts."),
    "transplant": Command("mango.cli.vocabulary:transplant_tokenizer", "Give a model another model's vocabulary."),
    "diagnose": Command("mango.cli.diagnosis:diagnose", "Measure how models differ before they are merged."),
    "lm-eval": Command("mango.cli.tasks:lm_eval", "Score models on tasks of lm-eval, side by side."),
    "upload": Command("mango.cli.publishing:upload", "Upload a verified model folder to the Hub."),
    "promote": Command("mango.cli.registry:promote", "Register the package and make it champion if it is better."),
    "rollback": Command("mango.cli.registry:rollback", "Give the champion's alias back to the previous version."),
    "why": Command("mango.cli.registry:why", "Say what made a registered model and how to make it again."),
    "keygen": Command("mango.cli.signing:keygen", "Make a pair of keys (ECDSA, P-256) for signatures."),
    "sign": Command("mango.cli.signing:sign", "Sign every file of a folder after a check that it is whole."),
    "verify": Command("mango.cli.verify:verify", "Check every file of a folder, and all that the files say."),
    "sync": Command("mango.cli.registry:sync", "Give experiments that ran nothing or elsewhere their runs."),
    "repair": Command("mango.cli.repair:repair", "Mend what a killed DVC left behind."),
    "repro": Command("mango.cli.repair:repro_app", "Mend what a killed DVC left behind, then run `dvc repro`"),
    "ui": Command("mango.cli.registry:ui", "Open the tracking pages in small form."),
    "layers": Command("stages.layers:layers", "Propose where experts are cut, from how alike models think."),
    "config": Command("stages.show:config", "Show every parameter with its value and where it came from."),
    "data": Command("mango.cli.data:app", "Look after the corpus."),
}


class LazyGroup(TyperGroup):
    """A group that lists its commands without importing them."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        for name, command in COMMANDS.items():
            self.add_command(TyperCommand(name, help=command.summary, rich_markup_mode=None))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Import the command that is about to run, in the place of its entry in the list."""
        name, _, rest = super().resolve_command(ctx, args)
        return name, load_command(str(name)), rest


def load_command(name: str) -> Any:
    """Import a command and return it as Click runs it."""
    module, _, attribute = COMMANDS[name].target.partition(":")
    part = getattr(importlib.import_module(module), attribute)
    if not isinstance(part, typer.Typer):
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(name)(part)
        part = single
    return typer.main.get_command(part)


app = typer.Typer(
    cls=LazyGroup, add_completion=False, rich_markup_mode=None, no_args_is_help=True, pretty_exceptions_enable=False
)


def _version(value: bool) -> None:
    if value:
        console.result(mango.__version__)
        raise typer.Exit


@app.callback()
def mango_command(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
) -> None:
    """Compose new language models out of pretrained ones."""
    del version, debug  # --version has run by now; main() looks for --debug itself, to know it when parsing fails too


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the ``mango`` command and exit: 0 when done, 2 on an error that the user can act on, 130 on Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None:
        gc.set_threshold(_NEW_OBJECTS)
    code = run(typer.main.get_command(app), given, "mango")
    if arguments is None and "mango.cli.merging" in sys.modules:
        leave_at_once(code)
    sys.exit(code)


def leave_at_once(code: int) -> None:
    """End the process: to take torch apart piece by piece, as Python does at exit, takes longer than a small merge."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


@guarded_output()
def run(command: Any, arguments: Sequence[str], name: str, *, again: str | None = None) -> int:
    """Run a Click command and return its exit code; an error becomes ``error:`` lines on stderr.

    Args:
        command: what `typer.main.get_command` returns.
        arguments: the command line after the program's name; ``--debug`` in it shows tracebacks.
        name: the program's name in usage lines.
        again: what goes on with it after it was ended; the same command line when None.

    Returns:
        0; or 2 for an error that the user can act on, or after more memory or time than it may use; or 130 after
        Ctrl-C, 143 after SIGTERM and 129 after SIGHUP.
    """
    again = shlex.join([*name.split(), *arguments]) if again is None else again
    try:
        with end_signals_as_exceptions(), limits(name):
            command.main(args=list(arguments), prog_name=name)
    except OverLimit as stop:
        console.error(stop.problem)
        console.note(f"ended: {how_to_go_on(again)}")
        return 2
    except Terminated as stop:
        console.note(f"terminated: {how_to_go_on(again)}")
        return int(str(stop.code))
    except SystemExit as stop:  # how Click ends, a wrong option and Ctrl-C included
        if stop.code == INTERRUPTED:
            console.note(f"interrupted: {how_to_go_on(again)}")
        return stop.code if isinstance(stop.code, int) else 0
    except (MangoError, OSError) as error:
        if "--debug" in arguments:
            traceback.print_exc()
        console.error(_os_problem(error) if isinstance(error, OSError) else error)
        return 2
    return 0


def _os_problem(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
