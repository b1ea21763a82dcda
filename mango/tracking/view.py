"""Makes the MLflow run table open with the columns that tell experiments apart."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_KEY = "mango"
_ALWAYS = ("router.type", "seed")
_MOST_PARAMS = 8
_FIRST_METRICS = ("fused_hard.switching", "fused_hard.pure_mean", "fused_soft.pure_mean", "fused_hard.cost_switching")
_MOST_METRICS = 5
_NEWEST_RUNS = 200


def share_comparison(client: MlflowClient, experiment: str) -> str:
    """Store a view of the experiment's pipeline runs and return the address that opens it, below the UI's own.

    MLflow's table shows no parameter and no metric until each is picked by hand. Its shared views live in experiment
    tags, so one that picks them can be written: the router and the seed, then the parameters in which runs differ,
    then the headline metrics, those of the evaluation first.
    """
    runs = list(_search(client, experiment, "tags.`mango.kind` = 'pipeline'", _NEWEST_RUNS))
    evaluated = _search(client, experiment, "tags.`mango.stage` = 'evaluate'", 1)
    params = _differing_params(runs)
    metrics = _headline_metrics(runs, evaluated)
    view = {
        "searchFilter": "tags.`mango.kind` = 'pipeline'",
        "selectedColumns": [*(f"params.`{name}`" for name in params), *(f"metrics.`{name}`" for name in metrics)],
    }
    client.set_experiment_tag(experiment, f"mlflow.sharedViewState.{_KEY}", json.dumps(view))
    return f"#/experiments/{experiment}/runs?viewStateShareKey={_KEY}"


def _search(client: MlflowClient, experiment: str, query: str, most: int) -> list[Run]:
    return list(client.search_runs([experiment], query, max_results=most, order_by=["attributes.start_time DESC"]))


def _differing_params(runs: list[Run]) -> list[str]:
    values: dict[str, set[str]] = {}
    for run in runs:
        for name, value in run.data.params.items():
            values.setdefault(name, set()).add(value)
    first = [name for name in _ALWAYS if name in values]
    differing = sorted(name for name, found in values.items() if len(found) > 1 and name not in first)
    return [*first, *differing][:_MOST_PARAMS]


def _headline_metrics(runs: list[Run], evaluated: list[Run]) -> list[str]:
    known = {name for run in runs for name in run.data.metrics}
    found = sorted(name for run in evaluated for name in run.data.metrics if name in known)
    # MLflow puts metrics before parameters, so only few leave the router and the seed in sight.
    first = [name for name in _FIRST_METRICS if name in found]
    first += [name for name in found if name not in first]
    return [*first, *sorted(known - set(first))][:_MOST_METRICS]
