from __future__ import annotations

import copy
import csv
import hashlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mango.errors import EvaluationError
from mango.evaluation.report import tables, write_report
from mango.evaluation.report_html import render
from mango.evaluation.report_sample import expert_colours
from mango.evaluation.report_svg import Point, visible_limit
from mango.evaluation.report_words import verdict
from mango.evaluation.schema import parse
from tests.evaluation.make_example import example

VOID = {"meta", "link", "br", "path", "line", "circle", "polyline"}


class Outline(HTMLParser):
    """Collects tags and text, and fails on tags that do not nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_static_merges_stand_in_one_table_with_what_made_them() -> None:
    page = render(parse(example()))
    section = page.split("<h2>Static merges</h2>")[1].split("</section>")[0]
    assert "density 0.5 for &lt;mlp&gt; or 0.2" in section
    labels = [part.split("</th>")[0] for part in section.split('<th scope="row">')[1:]]
    merges = ["Uniform soup", "TIES, density 0.5", "Task arithmetic, scale 0.6"]
    assert [label for label in labels if label in merges] == merges  # the best first
    assert set(labels) - set(merges) == {
        "Trunk",
        *(f"Expert {name}" for name in ("code", "novels", "manuals", "maths")),
    }
    ties = section.split("TIES, density 0.5")[1].split("</tr>")[0]
    assert "code, novels" in ties
    assert "2.101" in ties


def test_an_evaluation_without_merges_has_no_table_of_them() -> None:
    document = example()
    document["systems"] = [system for system in document["systems"] if system["kind"] != "merge"]
    assert "<h2>Static merges</h2>" not in render(parse(document))


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_report_is_written_whole_and_the_same_each_time(tmp_path: Path) -> None:
    first = write_report(example(), tmp_path / "a")
    second = write_report(example(), tmp_path / "b")
    assert [path.relative_to(tmp_path / "a").as_posix() for path in first] == [
        "report.html",
        "plots/systems.png",
        "plots/quality_cost.png",
        "plots/router.png",
        "plots/similarity.png",
        "plots/training.png",
        "plots/systems.csv",
        "plots/training.csv",
        "plots/retention.csv",
        "plots/calibration.csv",
        "plots/router.csv",
    ]
    hashes = [[hashlib.sha256(path.read_bytes()).hexdigest() for path in paths] for paths in (first, second)]
    assert hashes[0] == hashes[1]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in first if path.suffix == ".png")


def test_a_broken_evaluation_leaves_the_old_report(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("old")
    broken = example()
    broken["systems"][0]["pure_mean"] = float("inf")
    with pytest.raises(EvaluationError, match=r"systems\[0\]\.pure_mean"):
        write_report(broken, tmp_path)
    assert (tmp_path / "report.html").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_tables_hold_every_number(tmp_path: Path) -> None:
    evaluation = example()
    evaluation["systems"][2]["tokens_per_s"] = None
    for name, text in tables(parse(evaluation)).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    systems = {row["system"]: row for row in read(tmp_path / "systems.csv")}
    for system in evaluation["systems"]:
        row = systems[system["name"]]
        assert float(row["pure_mean"]) == system["pure_mean"]
        assert float(row["pure_maths"]) == system["pure"]["maths"]
        assert float(row["switching"]) == system["switching"]
    assert systems["trunk"]["tokens_per_s"] == ""
    router = read(tmp_path / "router.csv")
    positions = evaluation["routing"]["positions"]
    assert len(router) == sum(len(p["experts"]) * len(p["by_domain"]) for p in positions)
    assert float(router[1]["utilisation"]) == positions[0]["by_domain"]["code"]["utilisation"][1]
    training = read(tmp_path / "training.csv")
    assert [int(row["step"]) for row in training] == [point["step"] for point in evaluation["training"]["curve"]]


def test_the_page_says_every_system_and_nests() -> None:
    evaluation = parse(example())
    outline = Outline(render(evaluation))
    for system in evaluation.systems:
        assert system.label in outline.text
        assert f"{system.pure_mean:.3f}" in outline.text
    tags = [tag for tag, _ in outline.tags]
    assert "script" not in tags
    assert "img" not in tags
    assert tags.count("svg") == 8
    links = [value for _, attributes in outline.tags for name, value in attributes.items() if name in ("src", "href")]
    assert links == ["data:,"]


def test_text_from_outside_is_escaped_everywhere() -> None:
    evaluation = example()
    hostile = "<script>alert(1)</script>\"'&"
    evaluation["domains"] = [hostile if name == "code" else name for name in evaluation["domains"]]

    def renamed(value: Any) -> Any:
        if isinstance(value, dict):
            return {(hostile if key == "code" else key): renamed(item) for key, item in value.items()}
        if isinstance(value, list):
            return [renamed(item) for item in value]
        return hostile if value == "code" else value

    evaluation = renamed(evaluation)
    evaluation["units"] = dict.fromkeys(evaluation["units"], hostile)
    for system in evaluation["systems"]:
        system.update(label=hostile, note=hostile)
    evaluation["routing"]["sample"][0]["title"] = hostile
    evaluation["parameters"] = {hostile: hostile}
    evaluation["corpus"]["sha256"] = hostile
    evaluation["provenance"] = {
        "git_revision": hostile,
        "mango_version": hostile,
        "device": hostile,
        "packages": {hostile: hostile},
        "commands": [hostile],
    }
    page = render(parse(evaluation))
    assert "<script" not in page
    outline = Outline(page)
    assert "script" not in [tag for tag, _ in outline.tags]
    assert {name for _, attributes in outline.tags for name in attributes if name.startswith("on")} == set()


def test_the_best_of_each_column_is_bold_and_oracles_do_not_compete() -> None:
    page = render(parse(example()))
    assert '<td class="best first">3.030 <small>' in page
    assert "<td>6\N{NARROW NO-BREAK SPACE}120</td>" in page
    oracle_row = page[page.index(">Oracle per segment</th>") :].split("</tr>")[0]
    assert "3.010" in oracle_row
    assert "best" not in oracle_row


def test_verdict_tells_success_with_its_figures() -> None:
    sentences = verdict(parse(example()))
    assert sentences[0].startswith("The fused model closes 94% of the gap")
    assert "(89% with hard routing)" in sentences[0]
    assert "beats the posterior-weighted ensemble by 0.100 nats per token" in sentences[1]
    assert "processes 1.11 times the tokens of one expert" in sentences[1]
    assert sentences[2] == "It beats every static merge and self-stitch."


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (
            {"gap_closed_soft": -0.2, "gap_closed_hard": None},
            "does not improve on its trunk: it closes \N{MINUS SIGN}20%",
        ),
        ({"gap_closed_soft": None, "gap_closed_hard": None}, "is unknown"),
        ({"switching_hard_minus_posterior_ensemble": 0.25}, "loses to the posterior-weighted ensemble by 0.250"),
        ({"switching_hard_minus_posterior_ensemble": 0.0}, "equals the posterior-weighted ensemble and processes"),
        ({"switching_hard_minus_posterior_ensemble": None, "cost_hard_switching": None}, "was not compared"),
        ({"beats_self_stitch": False}, "It beats every static merge but does not beat self-stitch."),
        (
            {"beats_self_stitch": False, "beats_every_static_merge": False},
            "It does not beat every static merge or self-",
        ),
        ({"beats_self_stitch": None, "beats_every_static_merge": None}, "were not evaluated"),
    ],
)
def test_verdict_tells_failure_as_failure(head: dict[str, Any], said: str) -> None:
    evaluation = example()
    evaluation["headline"].update(head)
    checked = parse(evaluation)
    assert said in " ".join(verdict(checked))
    assert said in Outline(render(checked)).text


def test_a_small_evaluation_without_training_or_baselines_renders(tmp_path: Path) -> None:
    evaluation = example()
    evaluation["systems"] = evaluation["systems"][:1]
    evaluation["systems"][0].update(switching=None, switching_se=None, cost_switching=None, peak_memory_mb=None)
    evaluation["headline"] = dict.fromkeys(evaluation["headline"])
    evaluation["calibration"] = {}
    evaluation["training"]["curve"] = []
    evaluation["routing"]["sample"] = []
    written = write_report(evaluation, tmp_path)
    assert "training.png" not in [path.name for path in written]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "were not trained" in page
    assert "nan" not in page.lower()


def test_one_training_step_is_a_dot() -> None:
    evaluation = example()
    evaluation["training"]["curve"] = evaluation["training"]["curve"][:1]
    assert "<circle" in render(parse(evaluation))


def test_each_expert_keeps_its_colour_and_the_anchor_is_grey() -> None:
    evaluation = parse(example())
    colours = expert_colours(evaluation)
    assert colours["anchor"] == 0
    assert len(set(colours.values())) == len(colours) == 6


def test_one_bad_system_does_not_stretch_the_chart() -> None:
    points = [Point(str(loss), "merge", 1.0, loss) for loss in (3.0, 3.2, 3.5, 3.8, 8.0)]
    assert visible_limit(points) == 3.8
    assert visible_limit(points[:1]) == 3.0


def test_report_does_not_change_its_input() -> None:
    evaluation = example()
    before = copy.deepcopy(evaluation)
    render(parse(evaluation))
    assert evaluation == before
