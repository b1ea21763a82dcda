"""The state of the code that a package is made with."""

from __future__ import annotations

import subprocess
from pathlib import Path

from mango.config import Frozen


class GitState(Frozen):
    """A commit, and whether tracked files of the work tree differed from it; no commit outside a repository."""

    revision: str | None
    dirty: bool


def git_state(root: Path) -> GitState:
    """Return the commit of the work tree around ``root``, without a commit outside git or before the first one."""
    revision = _git(root, "rev-parse", "--verify", "--quiet", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return GitState(revision=revision or None, dirty=bool(changes))


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # git is not installed
        return None
    return done.stdout.strip() if done.returncode == 0 else None
