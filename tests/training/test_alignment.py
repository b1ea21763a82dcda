"""Where experts are cut: the best pairing of depths, and what it makes of models."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel import yaml

from mango.blocks import BlockStore
from mango.errors import ConfigError, TrainingError
from mango.evaluation.report_layers import layers_section, words
from mango.evaluation.schema import Alignment
from mango.fusion import AdapterParams, FusionParams, SpanParams, build_fused, make_layout
from mango.training import Job, Proposal, calibration_text, propose_layers, train_all
from mango.training.alignment import best_chain
from stages.layers import layers
from tests.training.toys import LENGTH, make_job, make_store, make_tokenizer, save_corpus, save_sources


def job_of(corpus: Path, *experts: Any, **auto: Any) -> Job:
    job = make_job(corpus, {"steps": 1})
    values = {"trunk": "base", "experts": experts, "span": 1, "layers": "auto", "auto": auto}
    return Job(job.seed, job.corpus, FusionParams.model_validate(values), job.router, job.adapter, job.train)


def propose(store: BlockStore, job: Job) -> Proposal:
    text = calibration_text(job, make_tokenizer())
    return propose_layers(store, job.fusion, job.adapter, text, ridge=1e-3, batch_size=2)


def slow_chain(gains: list[list[float]]) -> float:
    """The largest sum over all chains, one by one."""
    cells = [(i, j) for i, row in enumerate(gains) for j, gain in enumerate(row) if gain >= 0]
    best = 0.0
    for size in range(1, min(len(gains), len(gains[0])) + 1):
        for chain in itertools.combinations(cells, size):
            if all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(chain)):
                best = max(best, sum(gains[i][j] for i, j in chain))
    return best


@pytest.mark.parametrize("seed", range(6))
def test_the_chain_has_the_largest_sum_of_all(seed: int) -> None:
    gains = (torch.rand(3, 4, generator=torch.Generator().manual_seed(seed)) - 0.4).tolist()
    chain = best_chain(gains)
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(chain))
    assert all(gains[i][j] >= 0 for i, j in chain)
    assert sum(gains[i][j] for i, j in chain) == pytest.approx(slow_chain(gains))


def test_cells_that_are_just_good_enough_are_taken_and_none_below() -> None:
    assert best_chain([[0.0, -1.0], [-1.0, 0.0]]) == [(0, 0), (1, 1)]
    assert best_chain([[-0.1]]) == []
    assert best_chain([]) == []


def test_a_model_beside_itself_is_cut_everywhere_and_a_stranger_nowhere(
    toy_store: BlockStore, toy_corpus: Path
) -> None:
    job = job_of(toy_corpus, "base", "stranger", {"model": "brother", "cut": "fine"}, least=0.99)
    found = propose(toy_store, job)
    itself, stranger, brother = found.fusion.experts
    assert [(s.enter, s.exit, s.blocks) for s in itself.cut] == [(0, 1, (0, 1)), (1, 2, (1, 2))]  # type: ignore[union-attr]
    assert [(s.enter, s.exit, s.blocks) for s in stranger.cut] == [(0, 2, (0, 3))]  # type: ignore[union-attr]
    assert brother.cut == "fine"  # said by the user
    assert found.fusion.layers == "given"
    first, second = found.alignments
    assert (first.expert, first.taken) == ("base", ((1, 1),))
    assert first.fit == ((1.0,),)
    assert (second.expert, second.taken) == ("stranger", ())
    assert [len(row) for row in second.cka] == [4, 4, 4]  # depths of two blocks, and of three
    assert all(first.cka[depth][depth] == pytest.approx(1.0) for depth in range(3))
    make_layout(found.fusion, {n: toy_store.model(n).architecture for n in ("base", "stranger", "brother")})


def test_a_stranger_is_cut_where_little_is_asked_for(toy_store: BlockStore, toy_corpus: Path) -> None:
    job = job_of(toy_corpus, "stranger", least=0.0, measure="cka")
    spans = propose(toy_store, job).fusion.experts[0].cut
    assert [(s.enter, s.exit) for s in spans] == [(0, 1), (1, 2)]  # type: ignore[union-attr]
    assert spans[0].blocks[1] in (1, 2)  # type: ignore[union-attr]
    assert spans[1].blocks == (spans[0].blocks[1], 3)  # type: ignore[union-attr]


def test_few_tokens_and_the_number_of_sequences_a_pass_change_no_pairing(
    toy_store: BlockStore, toy_corpus: Path
) -> None:
    job = job_of(toy_corpus, "sister", least=-10.0, tokens=64)
    text = calibration_text(job, make_tokenizer())
    one, two = (
        propose_layers(toy_store, job.fusion, job.adapter, text, ridge=1e-3, batch_size=size).alignments[0]
        for size in (1, 3)
    )
    assert one.taken == two.taken == ((1, 1),)
    assert one.fit[0][0] == pytest.approx(two.fit[0][0], abs=1e-4)


def test_a_fusion_that_is_not_made_spans_yet_is_refused(toy_store: BlockStore, toy_corpus: Path) -> None:
    job = job_of(toy_corpus, "sister")
    with pytest.raises(ConfigError, match=r"layers: auto has to be made spans first.*propose_layers"):
        build_fused(toy_store, job.fusion, job.router, AdapterParams(), seed=0)
    masked = job.fusion.model_copy(update={"task": "masked-lm"})
    other = Job(job.seed, job.corpus, masked, job.router, job.adapter, job.train)
    with pytest.raises(TrainingError, match=r"layers: auto compares states of language models.*masked-lm"):
        other.check()


def test_a_training_takes_the_proposal_and_keeps_what_it_rests_on(
    toy_store: BlockStore, toy_corpus: Path, tmp_path: Path
) -> None:
    job = job_of(toy_corpus, "base", "stranger", least=0.99)
    train_all(job, toy_store, out=tmp_path / "fused", controls=tmp_path / "controls", work=tmp_path / "work")
    layout = json.loads((tmp_path / "fused" / "config.json").read_text())["layout"]
    assert [len(expert["spans"]) for expert in layout["experts"]] == [2, 2, 1]
    kept = json.loads((tmp_path / "fused" / "training.json").read_text())["layers"]
    assert kept == json.loads(json.dumps([one.to_dict() for one in propose(toy_store, job).alignments]))
    stitched = json.loads((tmp_path / "controls" / "self_stitch" / "config.json").read_text())["layout"]
    assert [len(expert["spans"]) for expert in stitched["experts"]] == [2, 2, 1]


def test_the_page_shows_the_matrix_and_says_where_it_is_cut(toy_store: BlockStore, toy_corpus: Path) -> None:
    job = job_of(toy_corpus, "base", "stranger", least=0.99)
    found = [Alignment.model_validate(one.to_dict()) for one in propose(toy_store, job).alignments]
    shown = layers_section(found)
    assert shown.count('class="cell top"') == 1  # one pair is taken
    assert shown.count('class="cell"') == 9 + 12 - 1
    assert words(found[0]) == "Cut at trunk 1 and expert 1 (1.00); fit is at least 0.99."
    assert words(found[1]).startswith("Not cut: no pair of depths has fit of at least 0.99: the most is ")
    assert layers_section([]) == ""


def test_the_command_prints_the_proposal_as_params_yaml_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = save_sources(tmp_path / "models" / "tiny")
    make_store(folders, tmp_path / "models" / "blocks")
    save_corpus(tmp_path / "data" / "corpus")
    monkeypatch.chdir(tmp_path)
    document = {
        "models": {name: {"source": f"models/tiny/{name}"} for name in folders},
        "merge": {"method": "linear", "models": ["base", "sister"]},
        "corpus": {"sequence_length": LENGTH, "segment_length": 8},
        "fusion": {"trunk": "base", "experts": ["base", "stranger"], "span": 1, "auto": {"least": 0.99}},
    }
    Path("params.yaml").write_text(json.dumps(document))
    layers(Path("params.yaml"), [], out=Path("page.html"), as_json=False)
    said = capsys.readouterr().out
    assert "base: Cut at trunk 1 and expert 1 (1.00)" in said
    section = yaml.YAML(typ="safe").load(said[said.index("fusion:") :])
    again = document["fusion"] | section["fusion"]
    assert FusionParams.model_validate(again).experts[1].cut == (SpanParams(enter=0, exit=2, blocks=(0, 3)),)
    assert "Trunk and stranger" in Path("page.html").read_text()
    layers(Path("params.yaml"), ["fusion.auto.least=-100"], out=None, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert [len(expert["cut"]) for expert in found["experts"]] == [2, 2]
    with pytest.raises(ConfigError, match=r"--out page\.txt: .* ends in \.html"):
        layers(Path("params.yaml"), [], out=Path("page.txt"), as_json=False)
