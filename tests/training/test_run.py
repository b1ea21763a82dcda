"""Whole trainings: killed and resumed, controls, folders, and what is shown meanwhile."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from mango.blocks import BlockStore, load_source
from mango.checkpoints import verify
from mango.corpus import token_losses
from mango.errors import CheckpointError
from mango.fusion import MolForCausalLM, make_layout
from mango.signals import how_to_go_on
from mango.training import Trained, continue_trunk, self_stitch, train_all, train_one
from mango.training.checkpoints import latest_checkpoint
from mango.training.controls import ResumedTrunk
from mango.training.data import mixture
from mango.training.run import prepare
from tests.training.toys import SOURCES, build, config_of, make_job, make_tokenizer

SIX = {"steps": 6, "save_every": 2}


class _KilledError(Exception):
    """Stands for a process that dies while it logs."""


def run(store: BlockStore, corpus: Path, work: Path, *, kill_at: int | None = None, **train: Any) -> Trained:
    job = make_job(corpus, {**SIX, **train})

    def log(metrics: Mapping[str, float], step: int) -> None:
        if step == kill_at:
            raise _KilledError

    data = prepare(job, store, make_tokenizer(), "cpu")
    return train_one(job, store, data, what="fused", work=work, device="cpu", log=log)


@pytest.fixture(scope="module")
def undisturbed(toy_store: BlockStore, toy_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return run(toy_store, toy_corpus, tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(scope="module")
def killed(toy_store: BlockStore, toy_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("killed")
    with pytest.raises(_KilledError):
        run(toy_store, toy_corpus, work, kill_at=5)
    assert sorted(path.parent.name for path in work.glob("fused/*/MANIFEST.json")) == ["checkpoint-2", "checkpoint-4"]
    return work


def state(model: MolForCausalLM) -> dict[str, Tensor]:
    return model.state_dict()


def unmark(path: Path) -> None:
    """Take away what marks a checkpoint as whole."""
    (path / "MANIFEST.json").unlink()


@pytest.mark.parametrize(
    ("incomplete", "damage", "resumed"),
    [
        ((), None, "checkpoint-4"),
        (("checkpoint-4",), unmark, "checkpoint-2"),
        (("checkpoint-4",), lambda path: (path / "optimizer.pt").write_bytes(b"half"), "checkpoint-2"),
        (("checkpoint-4", "checkpoint-2"), lambda path: (path / "model.safetensors").unlink(), None),
    ],
)
def test_a_killed_run_ends_as_an_undisturbed_one(
    toy_store: BlockStore, toy_corpus: Path, tmp_path: Path, killed: Path, undisturbed: Trained,
    incomplete: tuple[str, ...], damage: Any, resumed: str | None, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    work = tmp_path / "work"
    shutil.copytree(killed, work)
    for name in incomplete:
        damage(work / "fused" / name)
    out = run(toy_store, toy_corpus, work)
    shown = capsys.readouterr().err
    assert (f"/{resumed})" in shown) is (resumed is not None)
    told = [name for name in incomplete if f"{name}: not resumed: " in shown]
    assert told == ([] if damage is unmark else list(incomplete))  # without a mark there is no checkpoint
    assert ("starting adapters" in shown) is (resumed is None)
    wanted = state(undisturbed.model)
    assert {name for name, tensor in state(out.model).items() if not tensor.equal(wanted[name])} == set()
    assert out.starts == undisturbed.starts
    assert out.summary == undisturbed.summary
    assert out.curve == undisturbed.curve


TOPK = {"type": "topk", "topk": {"k": 2, "catch_up": 4, "window": 4}}


def test_resuming_between_two_lines_of_the_log_keeps_every_number(
    toy_store: BlockStore, toy_corpus: Path, tmp_path: Path
) -> None:
    """Sums of losses, accumulated steps, further losses, the order of the data: all of it goes on where it was."""
    train = {"steps": 8, "save_every": 3, "log_every": 4, "accumulation": 2, "validate_every": 4}
    losses = {"balance": 0.1, "entropy": 0.2, "adapter": 0.3, "supervision": 0.4}
    job = make_job(toy_corpus, {**train, "losses": losses}, router=TOPK, adapter="bottleneck")
    data = prepare(job, toy_store, make_tokenizer(), "cpu")
    sent: dict[str, list[tuple[int, dict[str, float]]]] = {"whole": [], "resumed": []}

    def one(name: str, kill_at: int | None = None) -> Trained:
        def log(metrics: Mapping[str, float], step: int) -> None:
            if step == kill_at:
                raise _KilledError
            sent[name].append((step, dict(metrics)))

        return train_one(job, toy_store, data, what="fused", work=tmp_path / name, device="cpu", log=log)

    whole = one("whole")
    with pytest.raises(_KilledError):
        one("resumed", kill_at=8)
    sent["resumed"].clear()
    resumed = one("resumed")
    assert {n for n, t in state(resumed.model).items() if not t.equal(state(whole.model)[n])} == set()
    assert resumed.curve == whole.curve
    assert sent["resumed"] == sent["whole"]  # a tracked run that was resumed has the whole curve


def test_the_trunk_resumes_with_its_dropout(toy_corpus: Path, tmp_path: Path) -> None:
    config = config_of("stranger")
    config.attn_pdrop = config.resid_pdrop = config.embd_pdrop = 0.2
    job = make_job(toy_corpus, {"save_every": 2})
    text = mixture(job.corpus, "train", make_tokenizer(), num_sequences=14, switching_share=0.5, seed=0)

    def trained(resume: ResumedTrunk | None = None, length: int = 14) -> dict[str, Tensor]:
        torch.manual_seed(1)
        trunk = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        torch.manual_seed(length)  # what was drawn before makes no difference
        return continue_trunk(trunk, Few(text, length), job.train, device="cpu", seed=5, resume=resume).state_dict()

    class Few:
        """The same sequences, of which the last ones cannot be read."""

        def __init__(self, text: Any, length: int) -> None:
            self.input_ids = Batches(text.input_ids, length)

    class Batches:
        def __init__(self, ids: Tensor, length: int) -> None:
            self.ids, self.length = ids, length

        def split(self, size: int) -> Any:
            return Parts(self.ids.split(size), self.length // size)

    class Parts(tuple):  # type: ignore[type-arg]
        def __new__(cls, parts: tuple[Tensor, ...], length: int) -> Parts:
            made = super().__new__(cls, parts)
            made.length = length  # type: ignore[attr-defined]
            return made

        def __getitem__(self, which: Any) -> Any:
            chosen = tuple.__getitem__(self, which)
            if not isinstance(which, slice):
                return chosen
            start = which.start or 0

            def some() -> Any:
                for number, part in enumerate(chosen, start):
                    if number == self.length:  # type: ignore[attr-defined]
                        raise _KilledError
                    yield part

            return some()

    resume = ResumedTrunk(tmp_path / "continued_trunk", "mine")
    wanted = trained()
    with pytest.raises(_KilledError):
        trained(resume, length=10)  # after five of seven steps
    assert sorted(path.name for path in resume.folder.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    got = trained(resume)
    assert {name for name, tensor in got.items() if not tensor.equal(wanted[name])} == set()
    other = trained(ResumedTrunk(resume.folder, "another's"))
    assert all(tensor.equal(wanted[name]) for name, tensor in other.items())


@pytest.mark.slow
def test_a_training_that_died_after_its_last_phase_ends_as_an_undisturbed_one(
    toy_store: BlockStore, toy_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    controls = {"self_stitch": True, "continued_trunk": True}
    job = make_job(toy_corpus, {"steps": 3, "save_every": 2, "controls": controls})

    def once(root: Path) -> None:
        train_all(job, toy_store, out=root / "fused", controls=root / "controls", work=root / "work")

    def die(*_: Any, **__: Any) -> None:
        raise _KilledError

    once(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("mango.training.run.save_ordinary", die)
        with pytest.raises(_KilledError):
            once(tmp_path / "died")
    assert [path.name for path in (tmp_path / "died").iterdir()] == ["work"]
    shutil.rmtree(tmp_path / "died" / "work" / "self_stitch" / "checkpoint-3")
    capsys.readouterr()
    once(tmp_path / "died")
    shown = capsys.readouterr().err
    assert "fused: resuming from step 3" in shown
    assert "self_stitch: resuming from step 2" in shown
    assert "continued trunk: resuming from step 2" in shown
    for name in ("fused", "controls"):
        manifests = [(tmp_path / root / name / "MANIFEST.json").read_text() for root in ("whole", "died")]
        assert manifests[0] == manifests[1]
        verify(tmp_path / "died" / name)


def test_an_interrupted_training_says_where_it_goes_on(
    toy_store: BlockStore, toy_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = make_job(toy_corpus, {"steps": 4, "save_every": 2, "controls": {"self_stitch": False}})
    places = {"out": Path("fused"), "controls": Path("controls"), "work": Path("work")}

    def stop_at(wanted: int) -> Any:
        def log(metrics: Mapping[str, float], step: int) -> None:
            if step == wanted:
                raise KeyboardInterrupt

        return log

    for at, said in ((1, "it starts over, since no checkpoint is whole yet"),
                     (4, "'fused' goes on from step 2 (work/fused/checkpoint-2)")):  # fmt: skip
        how_to_go_on("forget what other tests did")
        with pytest.raises(KeyboardInterrupt):
            train_all(job, toy_store, **places, log=stop_at(at))
        assert how_to_go_on("dvc repro x") == f"nothing was replaced. To go on, run `dvc repro x`: {said}"


def test_a_training_that_has_no_room_does_not_begin(
    toy_store: BlockStore, toy_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mango.checkpoints.room.free_bytes", lambda path: 2**26 + 1000)
    with pytest.raises(CheckpointError, match=r"fused: no room to write: needs [\d,]+ bytes and 67,108,864 in reserve"):
        train_all(make_job(toy_corpus), toy_store, out=tmp_path / "fused", controls=tmp_path / "c", work=tmp_path / "w")
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_of_another_run_are_not_resumed(
    toy_store: BlockStore, toy_corpus: Path, tmp_path: Path, killed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    shutil.copytree(killed, work)
    assert latest_checkpoint(work / "fused", "another fingerprint") is None
    run(toy_store, toy_corpus, work, batch_size=1)
    assert "resuming" not in capsys.readouterr().err


def test_the_fingerprint_knows_everything_that_counts(toy_store: BlockStore, toy_corpus: Path, tmp_path: Path) -> None:
    other = tmp_path / "corpus"
    shutil.copytree(toy_corpus, other)
    (other / "test.parquet").write_bytes((toy_corpus / "train.parquet").read_bytes())
    jobs = [
        make_job(toy_corpus),
        make_job(toy_corpus, {"steps": 5}),
        make_job(toy_corpus, experts=("sister",)),
        make_job(toy_corpus, adapter="bottleneck"),
        make_job(toy_corpus, router={"type": "token", "token": {"window": 5}}),
        make_job(other),
    ]
    prints = {job.fingerprint("fused", toy_store) for job in jobs}
    assert len(prints) == len(jobs)
    assert make_job(toy_corpus).fingerprint("fused", toy_store) in prints
    assert jobs[0].fingerprint("self_stitch", toy_store) not in prints


def test_no_bars_without_a_terminal(
    toy_store: BlockStore, toy_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(toy_store, toy_corpus, tmp_path, steps=3, save_every=0, validate_every=2)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "\r" not in shown.err
    assert "%|" not in shown.err
    lines = [line.partition(":")[0] for line in shown.err.splitlines()]
    assert lines == ["fused", "fused", "step 1/3", "step 3/3"]


def test_metrics_are_handed_on_with_their_steps(toy_store: BlockStore, toy_corpus: Path, tmp_path: Path) -> None:
    job = make_job(toy_corpus, {"steps": 5, "log_every": 2, "validate_every": 4})
    seen: list[tuple[int, frozenset[str]]] = []
    data = prepare(job, toy_store, make_tokenizer(), "cpu")
    train_one(
        job, toy_store, data, what="fused", work=tmp_path, device="cpu",
        log=lambda metrics, step: seen.append((step, frozenset(metrics))),
    )  # fmt: skip
    parts = {"loss", "lm", "balance", "entropy", "adapter", "grad_norm", "learning_rate"}
    assert [step for step, names in seen if names == parts] == [1, 2, 4]
    assert [step for step, names in seen if names == {"validation"}] == [4, 5]


def test_self_stitch_has_the_same_layout_with_the_trunk_everywhere(toy_store: BlockStore, toy_corpus: Path) -> None:
    job = make_job(toy_corpus, experts=("sister", "stranger", {"model": "brother", "edges": "trunk"}))
    maps = {name: toy_store.model(name).architecture for name in SOURCES}
    layout = make_layout(job.fusion, maps)
    stitched = make_layout(self_stitch(job.fusion, layout), maps)
    assert stitched.cuts == layout.cuts
    assert {expert.source for expert in stitched.experts} == {"base"}
    for ours, theirs in zip(stitched.experts, layout.experts, strict=True):
        assert ours.own_edges == theirs.own_edges
        assert [(s.enter, s.exit) for s in ours.spans] == [(s.enter, s.exit) for s in theirs.spans]
        assert [(s.start, s.stop) for s in ours.spans] == [
            (layout.cuts[s.enter], layout.cuts[s.exit]) for s in theirs.spans
        ]


def test_an_untrained_self_stitch_is_the_trunk(toy_store: BlockStore, toy_corpus: Path) -> None:
    job = make_job(toy_corpus, experts=("sister", "stranger"))
    layout = build(job, toy_store).layout
    stitched = make_job(toy_corpus, experts=self_stitch(job.fusion, layout).experts)
    ids = torch.arange(1, 21).view(2, -1)
    with torch.no_grad():
        wanted = load_source(toy_store, "base")(ids).logits
        # Sums of equal shares round in float32.
        torch.testing.assert_close(build(stitched, toy_store)(ids).logits, wanted, atol=1e-5, rtol=1e-5)


def test_the_trunk_learns_when_it_is_trained_on(toy_store: BlockStore, toy_corpus: Path) -> None:
    job = make_job(toy_corpus, {"steps": 10, "batch_size": 2, "accumulation": 2})
    text = mixture(job.corpus, "train", make_tokenizer(), num_sequences=40, switching_share=0.5, seed=0)
    test = mixture(job.corpus, "test", make_tokenizer(), num_sequences=4, switching_share=0.5, seed=0)
    trunk = load_source(toy_store, "base")
    before = token_losses(trunk, test.input_ids, batch_size=4).mean()
    again = continue_trunk(load_source(toy_store, "base"), text, job.train, device="cpu", seed=0)
    after = token_losses(continue_trunk(trunk, text, job.train, device="cpu", seed=0), test.input_ids, batch_size=4)
    assert after.mean() < before - 0.1
    assert not trunk.training
    assert all(p.equal(q) for p, q in zip(trunk.parameters(), again.parameters(), strict=True))


def test_everything_is_saved_and_opens_again(toy_store: BlockStore, toy_corpus: Path, tmp_path: Path) -> None:
    job = make_job(toy_corpus, {"steps": 2, "save_every": 1})
    fused, controls, work = (tmp_path / name for name in ("fused", "controls", "work"))
    summary = train_all(job, toy_store, out=fused, controls=controls, work=work)
    assert set(summary) == {"validation_loss", "self_stitch_validation_loss"}
    assert not work.exists()
    text = prepare(job, toy_store, make_tokenizer(), "cpu").validation.input_ids
    for folder, kind, loss in (
        (fused, MolForCausalLM, summary["validation_loss"]),
        (controls / "self_stitch", MolForCausalLM, summary["self_stitch_validation_loss"]),
        (controls / "continued_trunk", type(load_source(toy_store, "base")), None),
    ):
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert type(model) is kind
        assert AutoTokenizer.from_pretrained(folder).eos_token == "<|end|>"
        if loss is not None:
            assert token_losses(model, text, batch_size=2).mean().item() == pytest.approx(loss, abs=1e-5)
            record = json.loads((folder / "training.json").read_text())
            assert [entry["step"] for entry in record["curve"]] == [1, 2]
            assert set(record["starts"]["routers"]) == {"0", "1"}
            assert record["summary"] == {"validation": loss}


def test_a_failed_training_leaves_the_folders_as_they_were(
    toy_store: BlockStore, toy_corpus: Path, tmp_path: Path
) -> None:
    fused = tmp_path / "fused"
    fused.mkdir()
    (fused / "old").write_text("old")

    def log(metrics: Mapping[str, float], step: int) -> None:
        raise _KilledError

    with pytest.raises(_KilledError):
        train_all(
            make_job(toy_corpus), toy_store, out=fused, controls=tmp_path / "controls", work=tmp_path / "w", log=log
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fused", "w"]
    assert (fused / "old").read_text() == "old"
