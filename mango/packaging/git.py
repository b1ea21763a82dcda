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


def committed_text(root: Path, path: Path) -> str | None:
    """Return the text of a file below ``root`` as it was committed last, or None where it was not."""
    return _git(root, "show", f"HEAD:./{path.as_posix()}", strip=False)


def _git(root: Path, *arguments: str, strip: bool = True) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # git is not installed
        return None
    if done.returncode != 0:
        return None
    return done.stdout.strip() if strip else done.stdout
