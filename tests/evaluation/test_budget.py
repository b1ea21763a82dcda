"""The curve of quality against compute: its points on a fused model, and what it dominates, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mango.errors import EvaluationError
from mango.evaluation.budget import dominance, points
from mango.evaluation.report import tables
from mango.evaluation.report_html import render
from mango.evaluation.routing import RoutingTotals
from mango.evaluation.schema import parse
from stages.evaluate import headline_metrics
from tests.evaluation.make_example import example
from tests.training.toys import VOCAB, build, make_job, make_store, save_corpus, save_sources, stir


def row(name: str, kind: str, pure: float, cost: float, switching: float | None = None) -> dict[str, Any]:
    on_switching = {"switching": switching, "cost_switching": None if switching is None else cost}
    return {"name": name, "kind": kind, "pure_mean": pure, "cost": cost, **on_switching}


ROWS = [
    row("trunk", "trunk", 2.0, 1.0, 4.0),
    row("best_single", "expert", 1.9, 1.0, 3.9),
    row("expert_code", "expert", 1.9, 1.0, 3.9),
    row("expert_maths", "expert", 1.2, 1.0, 3.0),
    row("merge_ties", "merge", 2.5, 1.0, 5.0),
    row("ensemble_uniform", "ensemble", 1.3, 5.0, 3.1),
    row("ensemble_posterior", "ensemble", 1.25, 5.0, 3.3),
    row("oracle_sequence", "oracle", 1.0, 1.0, 2.0),
    row("fused_soft", "fused", 1.22, 5.0, 2.9),
    row("fused_hard", "fused", 1.3, 1.1, 2.95),
    row("fused_no_catch_up", "fused", 1.4, 1.0 + 1e-12, 3.05),
]


def test_a_system_is_dominated_by_a_better_point_that_costs_no_more() -> None:
    found = dominance(ROWS)
    pure, switching = found["pure"], found["switching"]
    assert pure["curve"] == ["fused_no_catch_up", "fused_hard", "fused_soft"]
    beaten = {one["system"]: (one["beaten_by"], one["dominated"]) for one in pure["against"]}
    assert beaten == {
        "trunk": ("fused_no_catch_up", True),
        "expert_code": ("fused_no_catch_up", True),
        "expert_maths": (None, False),  # better than every point
        "merge_ties": ("fused_no_catch_up", True),
        "ensemble_uniform": ("fused_soft", True),  # fused_hard is as good, and not better
        "ensemble_posterior": ("fused_soft", True),
    }
    assert pure["dominates"] == {"trunk": True, "expert": False, "merge": True, "ensemble": True}
    one = next(one for one in switching["against"] if one["system"] == "expert_maths")
    assert (one["beaten_by"], one["beaten_at"], one["dominated"]) == ("fused_hard", 1.1, False)  # at more cost


def test_text_that_was_not_measured_has_no_curve() -> None:
    assert set(dominance([row("trunk", "trunk", 2.0, 1.0), row("fused_soft", "fused", 1.0, 2.0)])) == {"pure"}
    assert dominance([row("trunk", "trunk", 2.0, 1.0)]) == {}


def test_points_cost_what_lies_between_one_expert_and_all(tmp_path: Path) -> None:
    router = {"type": "topk", "topk": {"window": 2, "catch_up": 2}}
    job = make_job(save_corpus(tmp_path / "corpus"), router=router)
    model = stir(build(job, make_store(save_sources(tmp_path), tmp_path / "blocks")), 0.5).eval()
    ids = torch.randint(1, VOCAB, (6, 24), generator=torch.Generator().manual_seed(1))
    assert list(points(model, ())) == []
    costs = {}
    for name, _, _, selection in points(model, (0.9, 0.4, 0.4)):
        model.set_routing(selection)
        totals = RoutingTotals(model)
        with torch.no_grad():
            totals.add(model(input_ids=ids), ids.numel())
        costs[name] = totals.cost()
    assert list(costs) == ["fused_no_catch_up", "fused_mass_0.4", "fused_mass_0.9"]
    assert costs["fused_no_catch_up"] == pytest.approx(1.0, abs=1e-9)
    assert 1.0 < costs["fused_mass_0.4"] < costs["fused_mass_0.9"] < 3.0


def test_the_report_draws_the_curve_and_says_what_it_dominates() -> None:
    document = example()
    document["budget"] = dominance(document["systems"])
    page = render(parse(document))
    section = page.split("<h2>Quality against cost</h2>")[1].split("</section>")[0]
    assert section.count('class="curve"') == 2
    for kind in ("expert", "merge", "ensemble"):  # all on one plot
        assert f'class="mark {kind}"' in section
    rows = section.split("<tbody>")[1].split("</tr>")
    compared = [system for system in document["systems"] if system["kind"] not in ("fused", "oracle")]
    assert len(rows) - 1 == len([system for system in compared if system["name"] != "best_single"])
    lines = tables(parse(document))["budget.csv"].splitlines()
    assert lines[0] == "text,system,kind,cost,loss,beaten_by,beaten_at,dominated"
    assert len(lines) == 1 + sum(len(found["against"]) for found in document["budget"].values())
    figures = headline_metrics(document)
    for text, found in document["budget"].items():
        for kind, on in found["dominates"].items():
            assert figures[f"budget.{text}.dominates_{kind}"] == float(on)
    document["budget"]["pure"]["curve"].append("nobody")
    with pytest.raises(EvaluationError, match=r"budget\.pure: no system is called 'nobody'"):
        parse(document)
