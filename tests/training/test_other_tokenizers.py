"""A guest with a tokenizer of its own: read in its tokens, paired where tokens end together, trained, evaluated."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedTokenizerFast

from mango.blocks import BlockStore, load_source
from mango.corpus import token_losses
from mango.errors import IncompatibleBlocksError
from mango.evaluation import EvaluateParams, Subjects, evaluate_all, validate
from mango.fusion import MolForCausalLM
from mango.surgery.vocabulary import Retokeniser
from mango.tensors import RidgeFit
from mango.training import Job, source_losses, start_adapters, train_all
from mango.training.calibration import recorded_states
from mango.training.data import mixture
from tests.training.toys import LENGTH, build, make_job, make_store, make_tokenizer, save_sources

GUEST: dict[str, Any] = {
    "model": "foreign",
    "edges": "trunk",
    "cut": [{"enter": 0, "exit": 1, "blocks": [0, 1]}, {"enter": 1, "exit": 2, "blocks": [1, 3]}],
}
MERGES = ("12", "34", "345", "67", "90", "ab", "cd", "cde", "fg", "ij")


def foreign_tokenizer(begin: str | None = "<s>") -> PreTrainedTokenizerFast:
    """Return a tokenizer with tokens of several bytes, in another order than that of the trunk."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True)
    vocabulary = {t: i for i, t in enumerate(["<s>", "</s>", *alphabet, *MERGES])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[(m[:-1], m[-1]) for m in MERGES]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=begin, eos_token="</s>")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> BlockStore:
    root = tmp_path_factory.mktemp("foreign")
    folders = save_sources(root)
    tokens: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1, "vocab_size": 258 + len(MERGES)}
    with torch.random.fork_rng():
        torch.manual_seed(7)
        config = GPT2Config(n_embd=24, n_layer=3, n_head=4, n_inner=40, n_positions=64, **tokens)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    folders["foreign"] = root / "foreign"
    model.save_pretrained(folders["foreign"])
    foreign_tokenizer().save_pretrained(folders["foreign"])
    return make_store(folders, root / "blocks")


@pytest.fixture(scope="module")
def job(toy_corpus: Path) -> Job:
    return make_job(toy_corpus, {"steps": 20, "batch_size": 4}, experts=(GUEST,))


def rows(*texts: str, end: bool = True) -> torch.Tensor:
    tokenizer = make_tokenizer()
    return torch.tensor([tokenizer(text).input_ids + ([0] if end else []) for text in texts])


def reader(store: BlockStore) -> Retokeniser:
    found = Retokeniser.between(store, "base", "foreign")
    assert found is not None
    return found


def test_tokens_are_paired_where_they_end_at_the_same_byte(store: BlockStore) -> None:
    read = reader(store).read(rows("12 345"))
    theirs = foreign_tokenizer()
    assert theirs.convert_ids_to_tokens(read.input_ids[0].tolist()) == ["<s>", "12", "Ġ", "345", "</s>"]
    assert read.our_ends[0].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert read.their_ends[0].tolist() == [0, 2, 3, 6, 7]
    assert read.pairs.tolist() == [[0, 1, 1], [0, 2, 2], [0, 5, 3], [0, 6, 4]]


def test_characters_of_several_bytes_and_halves_of_them_keep_their_bytes(store: BlockStore) -> None:
    whole = rows("aé日", end=False)  # bytes: 1, 2, 3
    read = reader(store).read(torch.cat([whole, whole.roll(-2, 1)]))  # the second row starts within é
    assert read.their_ends[0].tolist()[-1] == 6
    assert read.pairs[read.pairs[:, 0] == 0, 1].tolist() == [0, 2, 5]
    assert read.our_ends[1].tolist() == read.our_ends[0].tolist()
    assert read.their_ends[1].tolist()[-1] == 6
    assert (1, 0) in {(row, ours) for row, ours, _ in read.pairs.tolist()}


def test_losses_keep_their_sum_and_fall_on_the_tokens_of_their_bytes(store: BlockStore) -> None:
    read = reader(store).read(rows("12 345"))
    told = read.on_our_tokens(torch.tensor([[2.0, 1.0, 6.0, 4.0]]))  # of 12, the space, 345 and the end
    torch.testing.assert_close(told, torch.tensor([[1.0, 1.0, 2.0, 2.0, 2.0, 4.0]]))


def test_without_a_token_for_the_beginning_the_first_bytes_cost_as_much_as_the_others(store: BlockStore) -> None:
    silent = Retokeniser(reader(store).ours, foreign_tokenizer(begin=None))
    read = silent.read(rows("12 345"))
    assert read.their_ends[0].tolist() == [2, 3, 6, 7]
    told = read.on_our_tokens(torch.tensor([[1.0, 6.0, 3.0]]))  # ten nats over five bytes
    torch.testing.assert_close(told, torch.tensor([[2.0, 1.0, 2.0, 2.0, 2.0, 3.0]]))


def test_source_losses_are_those_on_its_own_tokens(store: BlockStore) -> None:
    ids = rows("12 345 67 8", "90 12 345 8")
    found = source_losses(store, ["base", "foreign"], ids, batch_size=1, device="cpu", trunk="base")
    theirs = reader(store).read(ids)
    lost = token_losses(load_source(store, "foreign"), theirs.input_ids, batch_size=2)
    first = [lost[0, 0] / 2, lost[1, 0] / 2]  # the first of our tokens is half of their first
    for row in range(2):
        known = len(theirs.their_ends[row]) - 1
        wanted = float(lost[row, :known].sum() - first[row])
        assert float(found["foreign"][row].sum()) == pytest.approx(wanted, rel=1e-5)
    assert found["base"].equal(token_losses(load_source(store, "base"), ids, batch_size=2))


def test_adapters_start_from_ridge_on_paired_activations(store: BlockStore, job: Job) -> None:
    model = build(job, store)
    text = mixture(job.corpus, "train", make_tokenizer(), num_sequences=6, switching_share=0.5, seed=0)
    fits = start_adapters(model, store, text, job.train.start, batch_size=4)
    assert set(fits) == {f"foreign/{span}/{kind}" for span in (0, 1) for kind in ("in", "out")}
    read = reader(store).read(text.input_ids)
    assert 0 < len(read.pairs) < text.input_ids.numel()
    trunk, guest = load_source(store, "base"), load_source(store, "foreign")
    with torch.no_grad(), recorded_states(trunk, [1]) as ours, recorded_states(guest, [1]) as theirs:
        trunk(text.input_ids)
        guest(read.input_ids)
    x = torch.stack([ours[1][row, mine] for row, mine, _ in read.pairs.tolist()])
    y = torch.stack([theirs[1][row, other] for row, _, other in read.pairs.tolist()])
    ridge = RidgeFit(32, 24, ridge=job.train.start.ridge)
    ridge.add(x, y)
    _, _, share = ridge.solve()
    assert fits["foreign/1/in"] == pytest.approx(share, abs=1e-3)
    assert share > 0.1


@pytest.fixture(scope="module")
def trained(store: BlockStore, job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    train_all(job, store, out=root / "fused", controls=root / "controls", work=root / "work")
    return root


def test_it_trains_generates_and_opens_again(store: BlockStore, trained: Path) -> None:
    curve = [entry["loss"] for entry in json.loads((trained / "fused/training.json").read_text())["curve"]
             if "loss" in entry]  # fmt: skip
    assert sum(curve[-5:]) < sum(curve[:5])
    model = MolForCausalLM.from_pretrained(trained / "fused")
    ids = rows("12 345 67", end=False)
    cached, plain = (
        model.generate(ids, max_new_tokens=8, do_sample=False, use_cache=use, pad_token_id=0) for use in (True, False)
    )
    assert cached.equal(plain)
    assert bool((model(input_ids=ids).processed > 0).all())


def test_it_is_evaluated_beside_whole_models_with_their_own_tokens(store: BlockStore, job: Job, trained: Path) -> None:
    params = EvaluateParams(sequences=2, switching_sequences=2, batch_size=2, prompt=4, speed_repeats=1)
    subjects = Subjects(trained / "fused", store, trained / "merged", trained / "controls")
    about = {"git_revision": None, "mango_version": "0"}
    found = evaluate_all(subjects, job.corpus, params, seed=1, provenance=about)
    validate(found)
    systems = {system["name"]: system for system in found["systems"]}
    assert "own tokenizer" in systems["expert_foreign"]["note"]
    assert all(math.isfinite(system["pure_mean"]) for system in systems.values())
    assert "whole_model_by_prompt" in systems
    assert set(found["calibration"]) >= {"trunk", "fused_soft"}
    assert "expert_foreign" not in found["calibration"]  # it guesses other tokens
    assert not [name for name in systems if name.startswith("ensemble")]  # no tokens to mix over


def test_its_own_edges_are_refused_with_what_to_do(store: BlockStore, toy_corpus: Path) -> None:
    for guest in ("foreign", {**GUEST, "edges": "own"}):
        with pytest.raises(IncompatibleBlocksError, match="take its tokens through adapters"):
            build(make_job(toy_corpus, experts=(guest,)), store)


def test_sequences_keep_their_length(store: BlockStore) -> None:
    ids = rows("x" * (LENGTH - 1))
    assert reader(store).read(ids).on_our_tokens(torch.ones(1, LENGTH)).shape == (1, LENGTH - 1)
