"""``mango repair`` and ``mango repro``: mend what a killed DVC left behind, and run the pipeline after that."""

from __future__ import annotations

import typer


def repair() -> None:
    """Mend what a killed DVC left behind."""
    from mango import console, tracking

    done = tracking.repair()
    for line in done or ["nothing to repair: `dvc repro` goes on by itself"]:
        console.result(line)


repro_app = typer.Typer(add_completion=False, rich_markup_mode=None)


@repro_app.command("repro", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def repro(context: typer.Context) -> None:
    """Mend what a killed DVC left behind, then run `dvc repro` with the words that follow."""
    import os
    import sys
    from pathlib import Path

    from mango import console, tracking

    for line in tracking.repair():
        console.note(line)
    # The stages call `python`: that of this environment, whether it is activated or not.
    here = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{here}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
    words = [sys.executable, "-m", "dvc", "repro", *context.args]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, words, environment)  # in this process's place: signals and exit code are DVC's own
