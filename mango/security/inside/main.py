"""The child's first file: sets the last locks, then does one job on the input and answers through one pipe.

Every answer is a frame: one letter, eight bytes of length, the content. R: locked, and how. J: a JSON report.
S: a safetensors file. E: a refusal in words. The parent believes none of them unchecked.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mango.security.inside.wire import Answers

CODE = "/code"
"""Where these files lie in the sandbox, below the path of their package; nothing else of Mango is there."""


def main() -> None:
    """Run the job that the argument describes."""
    sys.path.insert(0, CODE)
    from mango.security.inside import confine
    from mango.security.inside.wire import Answers, UnclearError, describe

    job = json.loads(sys.argv[1])
    answers = Answers(job["answers"])
    program = os.pread(job["program"], 1 << 20, 0)
    descriptor = job["descriptor"]
    confine.close_all_but([job["answers"], *([] if descriptor is None else [descriptor])])
    readable = [*job["readable"], *([job["input"]] if descriptor is None else [])]
    try:
        version = confine.confine(readable, job["limits"], program)
    except (confine.ConfinementError, OSError, ValueError) as error:
        answers.text(b"E", str(error))
        os._exit(1)
    sys.path += job["sites"]
    answers.text(b"R", json.dumps({"landlock": version, "uid": os.getuid()}))
    try:
        source = os.open(job["input"], os.O_RDONLY) if descriptor is None else descriptor
        _work(job["kind"], source, job["options"], answers)
    except UnclearError as error:
        answers.text(b"U", str(error))
    except MemoryError:
        answers.text(b"E", "needs more memory than the sandbox may use")
    except RecursionError:
        answers.text(b"E", "is nested too deeply")
    except Exception as error:  # noqa: BLE001  (a hostile file may raise anything; the parent gets a line of text)
        answers.text(b"E", describe(error))
    os._exit(0)


def _work(kind: str, source: int, options: dict[str, int], answers: Answers) -> None:
    with os.fdopen(source, "rb") as file:
        if kind == "convert":
            from mango.security.inside.converting import convert

            convert(file, options, answers)
        elif kind == "load":
            from mango.security.inside.loading import load

            load(file, options, answers)
        else:
            from mango.security.inside.scanning import scan

            scan(file, options, answers)


if __name__ == "__main__":
    main()
