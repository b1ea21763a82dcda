"""Show what the pipeline made: the fused model beside its baselines, and where to look next."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from stages.run import REPORTS, command_line

if TYPE_CHECKING:
    from mango.evaluation.schema import Evaluation, System

EVALUATION = REPORTS / "evaluation.json"
ORDER = ("fused", "trunk", "expert", "merge", "control", "routing", "ensemble", "oracle")

NEXT = """\
Where to look next
  {reports}/report.html                      everything in one page: quality, cost, what the router chose
  mango why models:/{name}@champion    what made this model, and the command that makes it again
  make ui                                  the runs, step by step
  dvc exp run -S router.type=topk          another router; `dvc exp show` compares
  mango config                             every parameter, its value and where that came from
"""


def summary() -> None:
    """Show the fused model beside its baselines, and where to look next."""
    from mango import console
    from mango.errors import EvaluationError
    from mango.evaluation.schema import parse
    from stages.params import load_params

    try:
        document = json.loads(EVALUATION.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{EVALUATION}: cannot be read ({error}); run `dvc repro` first") from error
    evaluation = parse(document)
    console.result(table(evaluation))
    console.result("")
    console.result(NEXT.format(reports=REPORTS, name=load_params().package.name).rstrip())


def table(evaluation: Evaluation) -> str:
    """Return the systems of an evaluation as a text table: kind by kind, the best of each kind first."""
    from mango.console import table as text_table

    def place(system: System) -> tuple[int, float]:
        return ORDER.index(system.kind), system.pure_mean

    rows = [
        [s.label, _with_error(s.pure_mean, s.pure_se), _with_error(s.switching, s.switching_se), s.cost_switching]
        for s in sorted(evaluation.systems, key=place)
    ]
    units = evaluation.units
    header = ["system", f"pure ({units.pure})", f"switching ({units.switching})", "cost on switching text (experts)"]
    return text_table(rows, [name.replace("_", " ") for name in header])


def _with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"


if __name__ == "__main__":
    command_line("summary", summary, help_text=__doc__)
