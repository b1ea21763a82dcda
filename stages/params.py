"""The schema of params.yaml: the parameter models of the rooms, and what they must agree on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from mango.architectures.tasks import IMAGE_TEXT
from mango.blocks import ExtractParams
from mango.checkpoints import ModelSource
from mango.config import Frozen, Loaded, Problem, load, near, refuse
from mango.corpus import CorpusParams
from mango.evaluation import EvaluateParams
from mango.fusion import AdapterParams, FusionParams, RouterParams
from mango.fusion.tasks import TEXT_TASKS
from mango.gates import GateParams
from mango.merging import MergeParams
from mango.packaging import PackageParams
from mango.security import Policy
from mango.training import TrainParams

PATH = Path("params.yaml")

MERGED = "merged"
"""Name by which trunk or expert may be the merge stage's own model."""

CHOICES = {"router": "type", "adapter": "type", "merge": "method"}
"""Sections that hold one namespace for each choice, and the key that chooses."""


class Params(Frozen):
    """All parameters of the pipeline. Each section is the parameter model of the room that uses it."""

    seed: int = Field(0, ge=0, lt=2**32, description="start of every random number")
    models: dict[str, ModelSource] = Field(description="source models by name")
    corpus: CorpusParams = CorpusParams()
    extract: ExtractParams = ExtractParams()
    merge: MergeParams
    fusion: FusionParams
    router: RouterParams = RouterParams()
    adapter: AdapterParams = AdapterParams()
    train: TrainParams = TrainParams()
    evaluate: EvaluateParams = EvaluateParams()
    gates: GateParams = GateParams()
    package: PackageParams = PackageParams()
    security: Policy = Policy()

    @model_validator(mode="after")
    def _sections_agree(self) -> Params:
        refuse(
            [
                *_merge_problems(self),
                *_fusion_problems(self),
                *_router_problems(self),
                *_metric_problems(self),
                *_task_problems(self),
                *_image_problems(self),
            ]
        )
        return self


def _merge_problems(params: Params) -> Iterator[Problem]:
    if MERGED in params.models:
        yield Problem(f"models.{MERGED}", f"the name {MERGED!r} stands for the merge stage's own model: choose another")
    named = [(f"merge.models.{i}", name) for i, name in enumerate(params.merge.models)]
    if params.merge.to_document().base_model == params.merge.base:
        named.append(("merge.base", params.merge.base))
    yield from _unknown(named, params.models)


def _fusion_problems(params: Params) -> Iterator[Problem]:
    experts = params.fusion.experts
    named = [("fusion.trunk", params.fusion.trunk)]
    named += [(f"fusion.experts.{i}", expert.model) for i, expert in enumerate(experts)]
    yield from _unknown(named, [*params.models, MERGED])


def _router_problems(params: Params) -> Iterator[Problem]:
    chosen, num_experts = params.router.type, len(params.fusion.experts) + 1
    k = getattr(params.router.chosen(), "k", None)
    if k is not None and k > num_experts:
        message = f"{k} is more than the {num_experts} experts (the trunk and {num_experts - 1} more)"
        yield Problem(f"router.{chosen}.k", message, depends=("fusion.experts", "router.type"))


def _metric_problems(params: Params) -> Iterator[Problem]:
    metric, task = params.package.metric, params.fusion.task
    if metric is not None and metric.split(".")[-1] in ("switching", "cost_switching") and task not in TEXT_TASKS:
        message = f"{metric!r} is not measured for fusion.task {task}: choose fused_hard.pure_mean, or leave it out"
        yield Problem("package.metric", message, depends=("fusion.task",))


def _task_problems(params: Params) -> Iterator[Problem]:
    if params.evaluate.lm_eval.tasks and params.fusion.task not in TEXT_TASKS:
        message = f"tasks ask a model that writes text, and fusion.task is {params.fusion.task}: leave them out"
        yield Problem("evaluate.lm_eval.tasks", message, depends=("fusion.task",))


def _image_problems(params: Params) -> Iterator[Problem]:
    if params.corpus.images.path is not None and params.fusion.task != IMAGE_TEXT:
        message = f"images are for a model that reads them, and fusion.task is {params.fusion.task}: leave them out"
        yield Problem("corpus.images.path", message, depends=("fusion.task",))


def _unknown(named: Iterable[tuple[str, str]], known: Iterable[str]) -> Iterator[Problem]:
    known = list(known)
    for key, name in named:
        if name not in known:
            hint = near(name, known) or "."
            message = f"{name!r} is no model{hint} Known under models: {', '.join(known)}"
            yield Problem(key, message, depends=("models",))


def load_params(
    path: Path = PATH, *, environ: Mapping[str, str] | None = None, overrides: Sequence[str] = ()
) -> Params:
    """Load params.yaml with the overrides of the environment and the command line.

    Args:
        path: the file.
        environ: the process's environment by default.
        overrides: ``"router.type=topk"``.

    Returns:
        The parameters.

    Raises:
        ConfigError: one line for each problem, with its file and line.
    """
    return load_with_origins(path, environ=environ, overrides=overrides).value


def load_with_origins(
    path: Path = PATH, *, environ: Mapping[str, str] | None = None, overrides: Sequence[str] = ()
) -> Loaded[Params]:
    """Load params.yaml and keep where each value came from; see `load_params`."""
    return load(Params, path, environ=environ, overrides=overrides)


def effective(params: Params, sections: Sequence[str]) -> dict[str, Any]:
    """Return the parameters of some sections without the namespaces of choices that were not taken.

    Args:
        params: all parameters.
        sections: names of sections.

    Returns:
        Nested plain values: of ``router``, its ``type`` and the section of that type.
    """
    data = params.model_dump(mode="json", by_alias=True, include=set(sections))
    for section, chooser in CHOICES.items():
        values = data.get(section, {})
        for name in [n for n, v in values.items() if isinstance(v, dict) and n != values[chooser]]:
            del values[name]
    return data
