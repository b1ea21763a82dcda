"""Stops a stage at one moment: Python imports this from the path as ``sitecustomize`` when it starts.

With ``PAUSE_AT`` the process writes the file ``PAUSE_MARK`` and sleeps the first time that it opens a file whose path
matches the pattern. That is a moment in the middle of real work, without a line of the stage being changed.
"""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

PAUSE_S = 300


def pause_at(pattern: str, mark: Path) -> None:
    """Sleep, once the mark is written, when a file is opened whose path matches the pattern."""
    wanted = re.compile(pattern)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str) and not mark.exists() and wanted.search(arguments[0]):
            mark.touch()
            time.sleep(PAUSE_S)

    sys.addaudithook(hook)


if "PAUSE_AT" in os.environ:
    pause_at(os.environ["PAUSE_AT"], Path(os.environ["PAUSE_MARK"]))
