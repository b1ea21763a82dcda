"""The base of every parameter model, and the error by which parameters contradict each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Immutable parameters; an unknown key, an infinity or a NaN is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a configuration.

    Args:
        key: dotted path of the parameter to blame, relative to the model that found it (``"router.k"``).
        message: what is wrong with its value, without the key (``"9 is more than the 4 experts"``).
        depends: further keys that the finding rests on; when one of them is wrong itself, this is not reported.
    """

    key: str
    message: str
    depends: tuple[str, ...] = ()


class ContradictionError(ValueError):
    """Parameters that are right one by one contradict each other.

    A pydantic validator raises it with every problem it found; the loader reports each with its file and line.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{p.key}: {p.message}" for p in self.problems))


def refuse(problems: Sequence[Problem]) -> None:
    """Raise for the problems found, if any.

    Raises:
        ContradictionError: there is at least one problem.
    """
    if problems:
        raise ContradictionError(problems)
