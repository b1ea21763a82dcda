"""The diagnosis: figures against a plain float64 reference, findings that follow, a page that stands alone."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from mango.cli import app
from mango.errors import DataError, IncompatibleBlocksError, MergeError
from mango.surgery.diagnosis import diagnose, render
from mango.surgery.diagnosis.states import cka
from tests.evaluation.browser import Browser
from tests.evaluation.test_report_browser import CONTRAST, STICKING_OUT
from tests.surgery.conftest import TINY, MakeModel, random_model

TEXT = "The sum of two numbers is found by adding them. def add(a, b): return a + b\nShe looked at him. " * 6
MODELS = [str(TINY / name) for name in ("code", "novels", "maths")]


def titles(found: object) -> str:
    return "; ".join(finding.title for finding in found.findings)  # type: ignore[attr-defined]


def test_figures_are_those_of_a_plain_reference(make_model: MakeModel) -> None:
    models = [random_model("llama", seed) for seed in range(3)]
    base, *others = [str(make_model(f"m{seed}", model)) for seed, model in enumerate(models)]
    found = diagnose(others, base)
    states = [{n: p.detach().double().numpy() for n, p in model.named_parameters()} for model in models]
    differences = [{n: state[n] - states[0][n] for n in state} for state in states[1:]]
    whole = [np.concatenate([d[n].ravel() for n in sorted(d)]) for d in differences]
    norm = np.sqrt(sum((p**2).sum() for p in states[0].values()))
    assert found.whole.relative_norms == pytest.approx([np.linalg.norm(d) / norm for d in whole], rel=1e-9)
    cosine = whole[0] @ whole[1] / np.linalg.norm(whole[0]) / np.linalg.norm(whole[1])
    assert found.whole.cosines == pytest.approx([cosine], rel=1e-9)
    size = np.abs(whole[0]) + np.abs(whole[1])
    assert found.whole.cancelled == pytest.approx(1 - np.abs(whole[0] + whole[1]).sum() / size.sum(), rel=1e-9)
    large, opposed = 0, 0
    for name in states[0]:
        a, b = (d[name] for d in differences)
        both = (np.abs(a) > np.sqrt((a**2).mean())) & (np.abs(b) > np.sqrt((b**2).mean()))
        large += both.sum()
        opposed += (both & (a * b < 0)).sum()
    assert found.whole.conflict == pytest.approx(opposed / large)
    name = "model.layers.1.self_attn.q_proj.weight"
    tensor = next(t for t in found.tensors if t.name == name)
    singular = np.linalg.svd(differences[0][name])[1]
    spectrum = tensor.spectra[0]
    assert spectrum is not None
    assert spectrum.values == pytest.approx(singular[:16] / np.linalg.norm(singular), rel=1e-5)
    assert spectrum.stable_rank == pytest.approx((singular**2).sum() / singular[0] ** 2, rel=1e-5)
    left = [np.linalg.svd(d[name])[0][:, :16] for d in differences]
    assert tensor.overlaps == pytest.approx([((left[0].T @ left[1]) ** 2).sum() / 16], rel=1e-5)
    assert (tensor.block, tensor.part) == (1, "attention")
    assert sum(block.num_elements for block in found.blocks) < found.whole.num_elements


def test_alignment_is_one_for_rotations_and_about_zero_for_strangers() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(60, 200, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(200, 200, generator=generator, dtype=torch.float64)).Q
    other = torch.randn(60, 200, generator=generator, dtype=torch.float64)
    moved = 3 * states @ turn + 5
    assert cka(states @ states.T, moved @ moved.T) == pytest.approx(1, abs=1e-9)
    assert abs(cka(states @ states.T, other @ other.T)) < 0.1  # 60 tokens of 200 dimensions: the biased form says 0.77
    near = states + 0.5 * other
    assert 0.6 < cka(states @ states.T, near @ near.T) < 0.95


def tuned(seed: int, scale: float = 0.01, rank: int | None = None, sign: float = 1.0) -> torch.nn.Module:
    model = copy.deepcopy(random_model("llama", 0))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if rank is not None and parameter.ndim == 2:
            noise = torch.randn(parameter.shape[0], rank, generator=generator)
            noise = noise @ torch.randn(rank, parameter.shape[1], generator=generator)
        elif rank is not None:
            continue
        parameter.data += sign * scale * noise
    return model


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        (({"seed": 1}, {"seed": 2}), "Differences are nearly orthogonal; Signs differ about as often as by chance"),
        (({"seed": 1}, {"seed": 1, "sign": -1}), "pull in opposite directions; Signs are in conflict"),
        (({"seed": 1}, {"seed": 1, "scale": 0.02}), "learned much of the same; Signs agree"),
        (({"seed": 1, "scale": 0.1}, {"seed": 2}), "outweighs"),
        (({"seed": 1, "rank": 2}, {"seed": 2}), "m0 is of low rank"),
        (({"seed": 1, "scale": 0.3}, {"seed": 2}), "Far from the base: m0"),
        (({"seed": 1, "scale": 1e-5}, {"seed": 2}), "m0 is very near to the base"),
        (({"seed": 1, "scale": 0.0}, {"seed": 2}), "m0 is the base"),
    ],
)
def test_each_finding_follows_from_its_figure(
    changes: tuple[dict[str, float], ...], wanted: str, make_model: MakeModel
) -> None:
    base = str(make_model("base", random_model("llama", 0)))
    models = [str(make_model(f"m{i}", tuned(**change))) for i, change in enumerate(changes)]  # type: ignore[arg-type]
    found = diagnose(models, base)
    assert wanted in titles(found)
    assert all(finding.figure and finding.advice for finding in found.findings)


def test_without_a_base_weights_are_compared(make_model: MakeModel) -> None:
    related = [str(make_model(f"r{i}", tuned(i))) for i in range(2)]
    assert "are related" in titles(diagnose(related))
    stranger = random_model("llama", 9)
    for parameter in stranger.parameters():
        torch.nn.init.normal_(parameter)
    assert "do not come from one model" in titles(diagnose([related[0], str(make_model("s", stranger))]))


def test_states_on_text_and_their_limits(make_model: MakeModel, tmp_path: Path) -> None:
    found = diagnose(MODELS, str(TINY / "base"), text=TEXT, num_tokens=100)
    assert [len(row) for row in found.cka] == [6] * 4
    assert all(-0.2 < value < 1 for row in found.cka for value in row)
    assert found.cka[0][0] > found.cka[-1][0]  # models of one base drift apart with depth
    with pytest.raises(DataError, match="wanted at least 32"):
        diagnose(MODELS, str(TINY / "base"), text="short")
    other = make_model("other", random_model("llama", 0))
    document = json.loads((other / "tokenizer.json").read_text())
    document["model"]["merges"] = document["model"]["merges"][:-5]
    (other / "tokenizer.json").write_text(json.dumps(document))
    strange = diagnose([str(other), str(make_model("one", random_model("llama", 1)))], text=TEXT)
    assert "vocabularies differ" in strange.notes[0]
    assert strange.cka == ()


def test_tensors_that_cannot_be_compared_are_named_and_strangers_refused(make_model: MakeModel) -> None:
    one = str(make_model("one", random_model("llama", 0)))
    wide = str(make_model("wide", random_model("llama", 1, vocab_size=2050)))
    found = diagnose([one, wide])
    assert sorted(name for name, _ in found.skipped) == ["lm_head.weight", "model.embed_tokens.weight"]
    assert "[2050, 32] in" in found.skipped[0][1]
    deep = str(make_model("deep", random_model("llama", 1, num_hidden_layers=3)))
    with pytest.raises(IncompatibleBlocksError, match="of 3 blocks and width 32"):
        diagnose([one, deep])
    with pytest.raises(MergeError, match="at least two different models"):
        diagnose([one, one])
    with pytest.raises(MergeError, match="'nowhere': nowhere"):
        diagnose([one, "nowhere"])
    broken = random_model("llama", 0)
    broken.lm_head.weight.data[0, 0] = torch.nan
    with pytest.raises(MergeError, match=r"lm_head\.weight: a model holds NaN"):
        diagnose([one, str(make_model("broken", broken))])


def test_the_command_writes_page_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    arguments = ["diagnose", *MODELS, "--base", str(TINY / "base"), "--text", str(tmp_path / "text.txt")]
    for name in ("page.html", "figures.json"):
        with pytest.raises(SystemExit) as stop:
            app.main([*arguments, "--out", str(tmp_path / name), "--json", "--tokens", "64"])
        assert stop.value.code == 0
    printed = json.loads(capsys.readouterr().out.split("\n}\n")[1] + "\n}")
    assert json.loads((tmp_path / "figures.json").read_text()) == printed
    assert len(printed["blocks"]) == 4
    assert "What follows" in (tmp_path / "page.html").read_text()
    with pytest.raises(SystemExit) as stop:
        app.main([*arguments, "--out", str(tmp_path / "page.pdf")])
    assert stop.value.code == 2
    assert "ends in .html" in capsys.readouterr().err


@pytest.fixture(scope="module")
def browser(need: Callable[[str], Path]) -> Iterator[Browser]:
    with Browser(str(need("chromium"))) as opened:
        yield opened


@pytest.mark.slow
def test_the_page_opens_alone_and_fits_a_phone(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "diagnosis.html"
    page.write_text(render(diagnose(MODELS, str(TINY / "base"), text=TEXT, num_tokens=64)), encoding="utf-8")
    for width in (360, 1280):
        for dark in (False, True):
            browser.open(page, width=width, dark=dark)
            assert browser.requested() == [page.as_uri()]
            assert browser.complaints() == []
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
            assert browser.evaluate(STICKING_OUT) == []
            assert browser.evaluate("document.querySelectorAll('figure > svg').length") == 4
            assert browser.evaluate(CONTRAST) >= 4.5
    assert "<script" not in page.read_text()


@pytest.mark.slow
def test_names_are_escaped_and_long_ones_do_not_widen_the_page(
    browser: Browser, make_model: MakeModel, tmp_path: Path
) -> None:
    names = ["<b>" + "endless_" * 20, "other_" * 30]
    models = [str(make_model(name, tuned(i))) for i, name in enumerate(names)]
    page = tmp_path / "long.html"
    page.write_text(render(diagnose(models, str(make_model("base", random_model("llama", 0))))), encoding="utf-8")
    assert "<b>endless" not in page.read_text()
    browser.open(page, width=360)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 360
    assert browser.evaluate(STICKING_OUT) == []
