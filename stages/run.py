"""What the stages share: options, parameters, tracking, the metrics file, and how a stage ends."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mango.cli.app import run as run_command
from mango.config import Settings

if TYPE_CHECKING:
    from mango.gates import GateReport
    from mango.tracking import StageRun
    from stages.params import Params

REPORTS = Path("reports")
GATES = REPORTS / "gates"


@dataclass(frozen=True)
class Stage:
    """What a stage works with.

    Args:
        name: as in dvc.yaml.
        params: all of params.yaml.
        settings: device, cache folder and threads.
        run: where to log metrics, files and data sets.
    """

    name: str
    params: Params
    settings: Settings
    run: StageRun

    def device(self) -> str:
        """Return the device to work on: that of ``MANGO_DEVICE``, or the first accelerator there is, or the CPU."""
        import torch

        if self.settings.device != "auto":
            return self.settings.device
        return "cuda" if torch.cuda.is_available() else "cpu"

    def log_gate(self, report: GateReport) -> None:
        """Put a gate's page and its JSON beside the run, whether it passed or not."""
        self.run.set_tags({f"mango.gate.{report.gate}": "passed" if report.passed else "failed"})
        for path in (report.page, report.page.with_suffix(".json")):
            self.run.log_artifact(path, "gates")


Work = Callable[[Stage], Mapping[str, float]]
"""A stage's own part: it replaces its outputs and returns its headline metrics."""


def run_stage(
    name: str,
    work: Work,
    *,
    sections: Sequence[str],
    help_text: str | None,
    first: Callable[[Path, Sequence[str]], None] | None = None,
) -> None:
    """Run a stage as a command and exit: 0 when done, 2 after ``error:`` lines, 130 on Ctrl-C, 143 on SIGTERM.

    A second run of the same stage in the same project leaves at once and says who is at work. The stage's metrics and
    the id of its run go into ``reports/<name>.json`` when everything else is written, so a stage that DVC takes from
    its cache still names the run that produced it.

    Args:
        name: as in dvc.yaml.
        work: the stage's own part.
        sections: sections of params.yaml that the stage depends on, for the run's page.
        help_text: what ``--help`` says; the stage module's docstring.
        first: called with the parameter file and the assignments before anything heavy is imported, to refuse at once
            what cannot work.
    """

    def command(
        params: Annotated[Path, typer.Option(help="Parameter file.")] = Path("params.yaml"),
        assignments: Annotated[
            list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a parameter; not inside DVC.")
        ] = None,
        debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    ) -> None:
        del debug  # looked for by run_command, which shows the traceback
        if first is not None:
            first(params, assignments or ())
        _run(name, work, sections, params, assignments or ())

    command_line(name, command, help_text=help_text)


def command_line(name: str, command: Callable[..., None], *, help_text: str | None) -> None:
    """Run a function as the command ``python -m stages.NAME`` and exit as `mango` does.

    Args:
        name: of the command; its module is called the same, with underscores.
        command: its parameters are the options.
        help_text: what ``--help`` says.
    """
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(name, help=help_text)(command)
    program = f"python -m stages.{name.replace('-', '_')}"
    again = f"dvc repro {name}" if os.environ.get("DVC_STAGE") == name else None
    sys.exit(run_command(typer.main.get_command(app), sys.argv[1:], program, again=again))


def _run(name: str, work: Work, sections: Sequence[str], path: Path, assignments: Sequence[str]) -> None:
    settings = Settings.from_environ()
    from stages.params import effective, load_params

    params = load_params(path, overrides=assignments)
    if not sys.stderr.isatty():  # no bar without a terminal
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # type: ignore[no-untyped-call]
    if settings.threads is not None:
        import torch

        torch.set_num_threads(settings.threads)
    from mango.checkpoints import only_writer, write_file
    from mango.security import enforced
    from mango.tracking import stage_run

    report_file = REPORTS / f"{name}.json"
    tracked = effective(params, sections)
    with enforced(params.security), only_writer(report_file), stage_run(name, params=tracked) as run:
        metrics = dict(work(Stage(name, params, settings, run)))
        run.log_headline(metrics)
        report = {"run_id": run.run_id, "parent_run_id": run.parent_id, **metrics}
        write_file(report_file, json.dumps(report, indent=2, sort_keys=True, allow_nan=False) + "\n")
