"""What git says about the code that runs."""

from __future__ import annotations

import subprocess
from pathlib import Path


def revision(folder: Path) -> str | None:
    """Return the commit that ``folder`` is at, or None outside git or before the first commit."""
    return _git(folder, "rev-parse", "--verify", "--quiet", "HEAD")


def is_dirty(folder: Path) -> bool:
    """Whether tracked files in ``folder``'s work tree differ from the commit."""
    return bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # git is not installed
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
