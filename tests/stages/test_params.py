"""params.yaml and the pipeline's own checks: what the sections must agree on."""

from __future__ import annotations

from pathlib import Path

import pytest

from mango.config import Frozen
from mango.errors import ConfigError
from mango.merging import MERGERS
from stages.params import PATH, Params, effective, load_params, load_with_origins

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_params(environ={}, overrides=overrides)
    return str(caught.value).splitlines()


def test_the_shipped_parameters_are_right_and_name_models_that_are_there() -> None:
    params = load_params(environ={})
    assert [name for name, model in params.models.items() if not (ROOT / model.source).is_dir()] == []
    assert [path for path in params.merge.documents if not (ROOT / path).is_file()] == []
    assert params.fusion.trunk in params.models


def test_every_section_of_the_schema_is_in_the_file() -> None:
    loaded = load_with_origins(environ={})
    assert set(loaded.document.data) == set(Params.model_fields)


@pytest.mark.parametrize("section", ["router", "adapter", "merge"])
def test_every_choice_has_its_section_in_the_file(section: str) -> None:
    loaded = load_with_origins(environ={})
    namespaces = {name for name, value in getattr(loaded.value, section) if isinstance(value, Frozen)}
    assert namespaces - set(loaded.document.data[section]) == set()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "router.type=topkk",
            "--set router.type: unknown router 'topkk'; did you mean 'topk'? Known: simple, token, topk",
        ),
        ("merge.method=tise", "--set merge.method: unknown merge method 'tise'; did you mean 'ties'?"),
        ("fusion.trunk=bas", "--set fusion.trunk: 'bas' is no model; did you mean 'base'? Known under models: base,"),
        ("merge.base=bse", "--set merge.base: 'bse' is no model; did you mean 'base'?"),
        ("models.merged={source: x}", "--set models.merged: the name 'merged' stands for the merge stage's own model"),
        ("evaluate.budget=[0.5, 1.0]", "--set evaluate.budget: 1 is no share of the probability between 0 and 1"),
        ("router.token.windw=3", "--set router.token.windw: unknown key; did you mean 'window'?"),
        ("adapter.linear.rank=0", "--set adapter.linear.rank: 0: must be greater than or equal to 1"),
        (
            "fusion.experts=[code, nvels]",
            "--set fusion.experts fusion.experts.1: 'nvels' is no model; did you mean 'novels'?",
        ),
    ],
)
def test_one_wrong_value_is_one_line(override: str, message: str) -> None:
    (line,) = problems(override)
    assert line.startswith(message)


def test_k_is_counted_against_the_experts_of_the_chosen_router() -> None:
    assert problems("router.type=topk", "router.topk.k=9") == [
        "--set router.topk.k: 9 is more than the 5 experts (the trunk and 4 more)"
    ]
    assert load_params(environ={}, overrides=["router.topk.k=9"]).router.type == "token"


def test_contradictions_and_typos_come_together() -> None:
    lines = problems("router.type=topk", "router.topk.k=9", "merge.models=[cod, maths]", "seeed=1")
    assert [line.split(": ")[1].split(" ")[0] for line in lines] == ["'cod'", "9", "unknown"]


def test_tasks_are_for_models_that_write_text() -> None:
    assert load_params(environ={}, overrides=["evaluate.lm_eval.tasks=[ruler_vt]"]).evaluate.lm_eval.tasks == (
        "ruler_vt",
    )
    (line,) = problems("evaluate.lm_eval.tasks=[ruler_vt]", "fusion.task=masked-lm", "router.type=simple")
    assert "tasks ask a model that writes text, and fusion.task is masked-lm" in line


def test_models_that_only_the_unselected_method_needs_may_be_absent() -> None:
    assert load_params(environ={}, overrides=["merge.method=linear", "merge.base=none"]).merge.method == "linear"


def built_in_methods() -> list[str]:
    return [name for name in MERGERS.names() if MERGERS[name].combine.__module__.startswith("mango.")]


def test_the_file_has_a_section_for_every_method() -> None:
    """DVC wants to see the section of the method that runs."""
    assert set(built_in_methods()) - set(load_with_origins(environ={}).document.data["merge"]) == set()


@pytest.mark.parametrize("method", [name for name in built_in_methods() if MERGERS[name].statistics is None])
def test_any_method_is_one_assignment_away(method: str) -> None:
    part = MERGERS[method]
    models = []
    if part.num_models is not None:
        (told,) = problems(f"merge.method={method}")
        assert f"has 4; {method} takes {part.num_models}. Set merge.models to {part.num_models}, as " in told
        models = [told.split("'")[-2]]
    document = load_params(environ={}, overrides=[f"merge.method={method}", *models]).merge.to_document()
    assert document.merge_method == method


def test_merged_may_be_trunk_or_expert() -> None:
    params = load_params(environ={}, overrides=["fusion.trunk=merged", "fusion.experts=[code]"])
    assert params.fusion.trunk == "merged"


def test_effective_parameters_leave_out_the_choices_not_taken() -> None:
    params = load_params(environ={}, overrides=["router.type=topk"])
    shown = effective(params, ["seed", "router", "merge"])
    assert shown["seed"] == 0
    assert set(shown["router"]) == {"type", "topk"}
    assert "lambda" in shown["merge"]["task_arithmetic"]
    assert "ties" not in shown["merge"]


def test_the_path_is_the_one_that_dvc_reads() -> None:
    assert Path("params.yaml") == PATH
