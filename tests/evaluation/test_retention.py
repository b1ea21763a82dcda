"""Retention by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mango.evaluation.retention import kept, own_domain, retention, worst_against_best


def row(name: str, kind: str, code: float, prose: float) -> dict[str, Any]:
    return {"name": name, "kind": kind, "pure": {"code": code, "prose": prose}}


ROWS = [
    row("trunk", "trunk", 2.0, 1.0),
    row("expert_coder", "expert", 1.0, 1.5),
    row("expert_writer", "expert", 2.2, 0.9),
    row("fused_soft", "fused", 1.25, 0.9),
    row("fused_hard", "fused", 1.0, 1.2),
]


def test_the_domain_of_an_expert_is_where_it_is_furthest_ahead() -> None:
    assert own_domain({"a": 1.0, "b": 0.1}, {"a": 2.0, "b": 0.15}) == "a"
    assert own_domain({"a": 3.0, "b": 0.2}, {"a": 2.0, "b": 0.15}) == "b"  # the least behind


def test_the_share_that_is_kept_and_the_tokens_that_are_given() -> None:
    hard: Any = {
        "code": SimpleNamespace(by_expert=lambda: {"anchor": 10.0, "coder": 20.0, "coder_2": 10.0, "writer": 0.0}),
        "prose": SimpleNamespace(by_expert=lambda: {"anchor": 0.0, "coder": 1.0, "coder_2": 0.0, "writer": 3.0}),
    }
    sources = {"anchor": "base", "coder": "coder", "coder_2": "coder", "writer": "writer"}
    coder, writer = retention(ROWS, hard, sources)
    assert (coder["expert"], coder["domain"], coder["own"]) == ("coder", "code", 1.0)
    assert (coder["kept_soft"], coder["kept_hard"], coder["given"]) == pytest.approx((0.8, 1.0, 0.75))
    assert (writer["expert"], writer["domain"], writer["given"]) == ("writer", "prose", 0.75)
    assert (writer["kept_soft"], writer["kept_hard"]) == pytest.approx((1.0, 0.75))


def test_a_loss_of_zero_has_no_share() -> None:
    assert kept(0.0, 0.0) is None
    assert kept(0.0, 0.5) == 0.0
    assert worst_against_best([*ROWS, row("expert_perfect", "expert", 0.0, 1.0)], "fused_soft") is None


def test_the_worst_domain_against_the_best_single_model() -> None:
    assert worst_against_best(ROWS, "fused_soft") == pytest.approx(0.25)
    assert worst_against_best(ROWS, "fused_hard") == pytest.approx(1.2 / 0.9 - 1)
