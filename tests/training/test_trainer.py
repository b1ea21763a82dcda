"""The trainer: every part of the loss counts, and nothing but adapters and routers moves."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mango.blocks import BlockStore
from mango.corpus import token_losses
from mango.errors import TrainingError
from mango.fusion import MolForCausalLM
from mango.training import FusedTrainer, Job, TokenDataset, Trained, train_one
from mango.training.data import mixture
from mango.training.fitting import _arguments
from mango.training.run import _Data, prepare
from tests.training.toys import build, is_trained, make_job, make_tokenizer, stir

PARTS = ("lm", "balance", "entropy", "adapter", "supervision")
ALL = {"balance": 0.1, "entropy": 0.2, "adapter": 0.3, "supervision": 0.4}


def hashes(model: MolForCausalLM) -> dict[str, str]:
    return {n: hashlib.sha256(t.numpy().tobytes()).hexdigest() for n, t in model.state_dict().items()}


def data_of(job: Job, store: BlockStore) -> _Data:
    return prepare(job, store, make_tokenizer(), "cpu")


def trained(job: Job, store: BlockStore, work: Path, data: _Data | None = None) -> Trained:
    return train_one(job, store, data or data_of(job, store), what="fused", work=work, device="cpu")


def trainer_of(job: Job, store: BlockStore, work: Path, targets: Tensor | None = None) -> FusedTrainer:
    text = mixture(job.corpus, "train", make_tokenizer(), num_sequences=8, switching_share=0.5, seed=0)
    model = stir(build(job, store)).train()
    arguments = _arguments(job, work, "cpu")
    return FusedTrainer(
        train=job.train, model=model, args=arguments, train_dataset=TokenDataset(text, targets)
    )  # fmt: skip


def test_every_part_is_logged_and_the_loss_is_their_weighted_sum(
    toy_store: BlockStore, toy_corpus: Path, tmp_path: Path
) -> None:
    for accumulation in (1, 2):
        job = make_job(toy_corpus, {"losses": ALL, "accumulation": accumulation, "steps": 3})
        out = trained(job, toy_store, tmp_path / str(accumulation))
        assert [entry["step"] for entry in out.curve] == [1, 2, 3]
        for entry in out.curve:
            assert set(PARTS) <= set(entry)
            whole = entry["lm"] + sum(weight * entry[name] for name, weight in ALL.items())
            assert entry["loss"] == pytest.approx(whole, abs=2e-4)  # logged with four decimals
        assert out.curve[-1]["adapter"] > 0 == out.curve[0]["adapter"]
        assert out.curve[-1]["validation"] == out.summary["validation"]


def test_validation_is_the_mean_loss_of_a_token(toy_store: BlockStore, toy_corpus: Path, tmp_path: Path) -> None:
    job = make_job(toy_corpus)
    data = data_of(job, toy_store)
    out = trained(job, toy_store, tmp_path, data)
    losses = token_losses(out.model, data.validation.input_ids, batch_size=2)
    assert out.summary["validation"] == pytest.approx(losses.mean().item(), abs=1e-5)


@pytest.mark.parametrize("part", PARTS)
def test_every_part_has_a_gradient(toy_store: BlockStore, toy_corpus: Path, tmp_path: Path, part: str) -> None:
    job = make_job(toy_corpus, {"losses": ALL})
    trainer = trainer_of(job, toy_store, tmp_path)
    model = trainer.model
    assert isinstance(model, MolForCausalLM)
    ids = trainer.train_dataset[0]["input_ids"].view(1, -1)  # type: ignore[index]
    output = model(ids, labels=ids, losses_only=True)
    targets = torch.ones(1, ids.shape[1], 2, dtype=torch.long)
    parts = {"lm": output.loss, **trainer._further(output, targets)}
    assert set(parts) == set(PARTS)
    parts[part].backward()
    silent = {n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
    routers = {n for n, _ in model.named_parameters() if n.startswith("routers.")}
    if part == "lm":
        assert silent == set()
    elif part == "adapter":
        assert silent == routers
    else:
        assert routers & silent == set()


def test_training_moves_all_that_is_trained_and_no_bit_of_the_experts(
    toy_store: BlockStore, toy_corpus: Path, tmp_path: Path
) -> None:
    job = make_job(toy_corpus, {"losses": ALL})
    before = hashes(build(job, toy_store))
    out = trained(job, toy_store, tmp_path)
    changed = {name for name, value in hashes(out.model).items() if value != before[name]}
    starts = {n for n in before if n.endswith(("start_weight", "start_bias"))}
    assert changed == {n for n, p in out.model.named_parameters() if p.requires_grad} | starts
    assert all(is_trained(name) for name in changed)
    assert not out.model.training


def test_adapters_and_routers_have_learning_rates_of_their_own(
    toy_store: BlockStore, toy_corpus: Path, tmp_path: Path
) -> None:
    job = make_job(
        toy_corpus, {"adapter_learning_rate": 1e-3, "router_learning_rate": 5e-2, "weight_decay": 0.01, "warmup": 0.5}
    )
    trainer = trainer_of(job, toy_store, tmp_path)
    optimizer = trainer.create_optimizer()
    groups = optimizer.param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(1e-3, 0.01), (5e-2, 0.01)]
    assert trainer.model is not None
    names = {id(p): n for n, p in trainer.model.named_parameters()}
    assert {names[id(p)].split(".")[0] for p in groups[0]["params"]} == {"experts"}
    assert {names[id(p)].split(".")[0] for p in groups[1]["params"]} == {"routers"}
    wanted = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert {names[id(p)] for group in groups for p in group["params"]} == wanted
    schedule = trainer.create_scheduler(4, optimizer)
    rates = []
    for _ in range(4):
        rates.append([group["lr"] for group in groups])
        optimizer.step()
        schedule.step()
    assert [adapters / 1e-3 for adapters, _ in rates] == pytest.approx([0.0, 0.5, 1.0, 0.5])
    assert [routers / adapters for adapters, routers in rates[1:]] == pytest.approx([50.0] * 3)


def test_a_model_with_nothing_to_train_is_refused(toy_store: BlockStore, toy_corpus: Path, tmp_path: Path) -> None:
    trainer = trainer_of(make_job(toy_corpus, experts=()), toy_store, tmp_path)
    with pytest.raises(TrainingError, match="nothing to train: the fused model has neither adapters nor routers"):
        trainer.create_optimizer()


def steps(job: Job, store: BlockStore, work: Path) -> tuple[list[float], dict[str, Tensor]]:
    out = trained(job, store, work)
    state = {n: p.detach() for n, p in out.model.named_parameters() if p.requires_grad}
    return [entry["loss"] for entry in out.curve], state


def test_gradients_are_clipped(toy_store: BlockStore, toy_corpus: Path, tmp_path: Path) -> None:
    job = make_job(toy_corpus, {"max_grad_norm": 1e-3, "steps": 2})
    seen: list[float] = []
    trainer = trainer_of(job, toy_store, tmp_path)

    def norm(optimizer: Any, *_: Any) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        seen.append(float(torch.stack([grad.norm() for grad in grads]).norm()))

    trainer.create_optimizer().register_step_pre_hook(norm)
    trainer.train()
    assert len(seen) == 2
    assert seen == pytest.approx([1e-3, 1e-3], rel=1e-2)
    assert max(entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry) > 1e-2


def test_accumulated_steps_are_one_big_batch(toy_store: BlockStore, toy_corpus: Path, tmp_path: Path) -> None:
    # Balance and entropy are of the part of the batch that is there, so they stay out.
    losses = {"balance": 0.0, "entropy": 0.0, "adapter": 0.1, "supervision": 0.5}
    runs = [
        steps(
            make_job(toy_corpus, {"batch_size": size, "accumulation": 4 // size, "losses": losses}),
            toy_store,
            tmp_path / str(size),
        )
        for size in (4, 1)
    ]
    assert runs[1][0] == pytest.approx(runs[0][0], abs=2e-4)
    for name, tensor in runs[0][1].items():
        # Sums in another order; AdamW's first steps divide gradients near zero by their own size.
        torch.testing.assert_close(runs[1][1][name], tensor, atol=2e-4, rtol=2e-3)


def test_the_load_is_that_of_all_accumulated_steps(toy_store: BlockStore, toy_corpus: Path, tmp_path: Path) -> None:
    trainer = trainer_of(make_job(toy_corpus, {"accumulation": 2}), toy_store, tmp_path)
    first, second = [torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5])], [torch.tensor([0.0, 1.0])] * 2
    state = trainer.accelerator.gradient_state
    state._set_sync_gradients(False)
    assert [load.tolist() for load in trainer._global_load(first)] == [[1.0, 0.0], [0.5, 0.5]]
    state._set_sync_gradients(True)
    assert [load.tolist() for load in trainer._global_load(second)] == [[0.5, 0.5], [0.25, 0.75]]
    assert [load.tolist() for load in trainer._global_load(second)] == [[0.0, 1.0], [0.0, 1.0]]


def test_bf16_trains_and_stays_near(toy_store: BlockStore, toy_corpus: Path, tmp_path: Path) -> None:
    exact, _ = steps(make_job(toy_corpus), toy_store, tmp_path / "fp32")
    mixed, state = steps(make_job(toy_corpus, {"precision": "bf16"}), toy_store, tmp_path / "bf16")
    assert mixed == pytest.approx(exact, abs=0.05)
    assert mixed != exact
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert all(bool(tensor.isfinite().all()) for tensor in state.values())


def test_gradient_checkpointing_gives_the_same_curve(toy_store: BlockStore, toy_corpus: Path, tmp_path: Path) -> None:
    plain, one = steps(make_job(toy_corpus), toy_store, tmp_path / "plain")
    saving, two = steps(make_job(toy_corpus, {"gradient_checkpointing": True}), toy_store, tmp_path / "saving")
    assert saving == pytest.approx(plain, abs=1e-4)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=1e-4)


KINDS: dict[str, dict[str, Any]] = {
    "token": {"type": "token", "token": {"window": 3}},
    "topk": {"type": "topk", "topk": {"catch_up": 2}},
    "simple": {"type": "simple", "simple": {"prompt": 4}},
    "evidence": {"type": "token", "token": {"window": 2, "switch": 0.05, "noise": 0.1, "expert_dropout": 0.1}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_loss_with_every_router(
    toy_store: BlockStore, toy_corpus: Path, tmp_path: Path, kind: str
) -> None:
    found: list[float] = []
    for number in (0, 16):
        job = make_job(toy_corpus, {"steps": number, "batch_size": 4}, router=KINDS[kind])
        out = trained(job, toy_store, tmp_path / str(number))
        out.model.set_routing("soft")
        found.append(float(token_losses(out.model, data_of(job, toy_store).validation.input_ids, batch_size=4).mean()))
    assert found[1] < found[0] - 0.02


def test_a_sparse_router_learns_from_supervision(toy_store: BlockStore, toy_corpus: Path, tmp_path: Path) -> None:
    router = {"type": "topk", "topk": {"training": "sparse", "catch_up": 2, "window": 2}}
    train = {"steps": 16, "batch_size": 4, "losses": {"supervision": 1.0}, "start": {"router_steps": 0}}
    job = make_job(toy_corpus, train, router=router, experts=("sister", "stranger"))
    job.check()
    curve = [entry["supervision"] for entry in trained(job, toy_store, tmp_path).curve]
    assert sum(curve[-3:]) < 0.9 * sum(curve[:3])


def test_biases_of_a_balanced_router_move_with_each_step(
    toy_store: BlockStore, toy_corpus: Path, tmp_path: Path
) -> None:
    router = {"type": "topk", "topk": {"training": "sparse", "window": 2, "balance_rate": 0.01}}
    losses = {"z": 0.01, "supervision": 0.5}
    train = {"steps": 3, "accumulation": 2, "start": {"router_steps": 0}, "losses": losses}
    out = trained(make_job(toy_corpus, train, router=router, experts=("sister", "stranger")), toy_store, tmp_path)
    for each in out.model.iter_routers():
        assert each.balance is not None
        steps = each.balance.bias / 0.01
        torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)  # whole steps, three at most
        assert 0 < steps.abs().max() <= 3.001
    assert all("z" in entry for entry in out.curve if "lm" in entry)


def test_a_router_without_a_gradient_is_refused(toy_corpus: Path) -> None:
    router = {"type": "topk", "topk": {"training": "sparse"}}
    with pytest.raises(TrainingError, match=r"train.losses.supervision: 0, but router.topk is trained on one expert"):
        make_job(toy_corpus, router=router).check()
    make_job(toy_corpus, router={"type": "topk", "topk": {"training": "sparse", "k": 2}}).check()
    make_job(toy_corpus, {"losses": {"supervision": 0.1}}, router=router).check()


def test_a_router_that_decides_once_trains_on_pure_sequences(toy_store: BlockStore, toy_corpus: Path) -> None:
    def switches(router: Mapping[str, Any]) -> list[bool]:
        data = data_of(make_job(toy_corpus, router=dict(router)), toy_store)
        return [
            bool((text.domain_ids != text.domain_ids[:, :1]).any())
            for text in (data.train, data.calibration, data.validation)
        ]

    assert switches({"type": "simple", "simple": {"prompt": 4}}) == [False, False, True]
    assert switches({"type": "token", "token": {"pooling": "prompt", "window": 4}}) == [False, False, True]
    assert switches({"type": "token"}) == [True, True, True]


def test_sequences_are_balanced_shuffled_and_come_from_the_seed(toy_corpus: Path) -> None:
    job = make_job(toy_corpus)

    def draw(number: int, share: float, seed: int) -> Any:
        return mixture(job.corpus, "train", make_tokenizer(), num_sequences=number, switching_share=share, seed=seed)

    text = draw(301, 0.5, 3)
    assert len(text) == 301
    pure = [row for row in text.domain_ids.tolist() if len(set(row)) == 1]
    counts = [sum(row[0] == domain for row in pure) for domain in (0, 1)]
    assert sum(counts) == 151
    assert max(counts) - min(counts) <= 1
    kinds = [len(set(row)) > 1 for row in text.domain_ids.tolist()]
    assert sum(a != b for a, b in itertools.pairwise(kinds)) > 50
    assert draw(301, 0.5, 3).input_ids.equal(text.input_ids)
    assert not draw(301, 0.5, 4).input_ids.equal(text.input_ids)
    assert len(draw(0, 0.5, 3)) == 0
