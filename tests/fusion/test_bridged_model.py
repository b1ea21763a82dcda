"""Fused models whose guests keep their own tokenizers: what they compute, keep, save and refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, MambaConfig

from mango.blocks import BlockStore, extract, load_source
from mango.checkpoints import ModelSource
from mango.errors import ArchitectureError, CheckpointError, ConfigError, IncompatibleBlocksError
from mango.fusion import (
    AdapterParams,
    FusionParams,
    MolForCausalLM,
    RouterParams,
    bridged_losses,
    build_fused,
    make_layout,
)
from mango.fusion.bridge import Bridge
from mango.fusion.bridge.tree import Tree
from tests.fusion.bridges import (
    GUEST_MERGES,
    TEXTS,
    TOKEN,
    bpe,
    build,
    guest_tokenizer,
    make_store,
    rows,
    save_models,
    trunk_tokenizer,
)

POSTERIOR = {"type": "token", "token": {"window": 2, "posterior": True}}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> BlockStore:
    return make_store(tmp_path_factory.mktemp("bridges"))


@pytest.fixture(scope="module")
def model(store: BlockStore) -> MolForCausalLM:
    return build(store, "gpt", "gemma")


def bridge_of(model: MolForCausalLM, number: int) -> Bridge:
    bridge = model.experts[number].bridge
    assert isinstance(bridge, Bridge)
    return bridge


def told_alone(model: MolForCausalLM, store: BlockStore, number: int, ids: Tensor) -> Tensor:
    """Return what a guest says after each token, run alone on its own tokens of each beginning of the text."""
    bridge, source = bridge_of(model, number), load_source(store, model.layout.experts[number].source)
    trunk = load_source(store, "base")(input_ids=ids.unsqueeze(0)).logits[0]
    told: list[Tensor] = []
    for place, text in enumerate(bridge.opened().reader.read(ids.tolist())):
        logits = source(input_ids=torch.tensor([text])).logits[0]
        told.append(bridge.tell(logits, bridge.places(Tree.of([text])), trunk[place : place + 1]))
    return torch.cat(told)


@torch.no_grad()
@pytest.mark.parametrize("number", [1, 2])
def test_a_guest_says_what_it_says_alone_of_each_beginning_of_the_text(
    model: MolForCausalLM, store: BlockStore, number: int
) -> None:
    source = model.layout.experts[number].source
    for text in TEXTS:
        ids = rows(text)
        found = bridged_losses(model, ids, batch_size=1)[source][0]
        told = told_alone(model, store, number, ids[0])
        torch.testing.assert_close(told.exp().sum(1), torch.ones(len(told)))
        torch.testing.assert_close(found, -told[:-1].gather(1, ids[0, 1:, None])[:, 0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_some_beginnings_are_read_beside_the_text(model: MolForCausalLM) -> None:
    """Without branches the tests here would say little of them; and what was read is what is counted."""
    ids = rows(*TEXTS)
    for number in (1, 2):
        reader = bridge_of(model, number).opened().reader
        texts = [reader.read(row) for row in ids.tolist()]
        nodes = [{tuple(text[:end]) for text in row for end in range(1, len(text) + 1)} for row in texts]
        assert all(len(some) > len(row[-1]) for some, row in zip(nodes, texts, strict=True))
        assert int(model(input_ids=ids).processed[number]) == sum(map(len, nodes))


@torch.no_grad()
@pytest.mark.parametrize("router", [TOKEN, POSTERIOR], ids=["token", "posterior"])
def test_the_mixture_is_that_of_all_distributions(store: BlockStore, router: dict[str, Any]) -> None:
    model = build(store, "gpt", "gemma", router=router)
    ids = rows(*TEXTS)
    mass, lost = model.heads_at(ids, batch_size=2)
    weights = mass.log()
    if model.posterior is not None:
        told = torch.nn.functional.pad(-lost[:, :-1], (0, 0, 1, 0))
        weights, _ = model.posterior.log_weights(mass, told, torch.ones_like(ids, dtype=torch.bool))
    wanted = -torch.logsumexp(weights - lost, -1)[:, :-1]
    losses = model(input_ids=ids, labels=ids, losses_only=True).token_losses
    torch.testing.assert_close(losses, wanted, rtol=1e-5, atol=1e-5)
    logits = model(input_ids=ids).logits
    whole = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    torch.testing.assert_close(whole.view_as(wanted), wanted, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_later_token_moves_nothing_before_it(model: MolForCausalLM) -> None:
    ids = rows(TEXTS[0])
    before = model(input_ids=ids).logits.log_softmax(-1)
    for place in range(1, ids.shape[1]):
        changed = ids.clone()
        changed[0, place:] = (ids[0, place:] + 7) % 200 + 1
        after = model(input_ids=changed).logits.log_softmax(-1)
        torch.testing.assert_close(after[:, :place], before[:, :place], rtol=1e-4, atol=1e-4)
        assert not after[:, place].allclose(before[:, place], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("router", [TOKEN, POSTERIOR], ids=["token", "posterior"])
def test_steps_with_a_cache_are_one_pass(store: BlockStore, router: dict[str, Any]) -> None:
    model = build(store, "gpt", "gemma", router=router)
    ids = rows(*TEXTS)
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    whole = model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
    cache, parts, place = None, [], 0
    for size in (3, 1, 1, 2, 1, ids.shape[1] - 8):
        some = ids[:, place : place + size]
        out = model(input_ids=some, attention_mask=mask[:, : place + size], past_key_values=cache, use_cache=True)
        cache, place = out.past_key_values, place + size
        parts.append(out.logits.log_softmax(-1))
    assert place == ids.shape[1]
    found = torch.cat(parts, 1)
    torch.testing.assert_close(found[mask.bool()], whole[mask.bool()], rtol=1e-4, atol=1e-4)
    held = cache.num_cached_tokens()
    texts = [bridge_of(model, 1).opened().reader.read(r[m.bool()].tolist()) for r, m in zip(ids, mask, strict=True)]
    assert held[1, 0] == sum(len(text[-1]) for text in texts)


@pytest.mark.parametrize("beams", [1, 3])
def test_it_generates_the_same_with_a_cache_without_and_beside_padding(model: MolForCausalLM, beams: int) -> None:
    tokenizer = trunk_tokenizer()
    ids = [tokenizer(text).input_ids for text in ("ab 12", "éa  cde 1")]
    longest = max(map(len, ids))
    padded = torch.tensor([[0] * (longest - len(row)) + row for row in ids])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids])
    how: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "num_beams": beams, "pad_token_id": 0}
    cached, plain = (model.generate(padded, attention_mask=mask, use_cache=use, **how) for use in (True, False))
    assert cached.equal(plain)
    for row, own in zip(cached, ids, strict=True):
        alone = model.generate(torch.tensor([own]), attention_mask=torch.ones(1, len(own)), **how)
        assert row[longest:].tolist()[: alone.shape[1] - len(own)] == alone[0, len(own) :].tolist()


@torch.no_grad()
@pytest.mark.parametrize("router", [TOKEN, {"type": "topk", "topk": {"window": 2}}], ids=["token", "topk"])
def test_a_hard_choice_is_of_one_distribution_and_spares_nobody(store: BlockStore, router: dict[str, Any]) -> None:
    model = build(store, "gpt", "gemma", router=router)
    ids = rows(*TEXTS)
    mass, lost = model.heads_at(ids, batch_size=2)
    best = mass.argmax(-1, keepdim=True)
    assert len(best.unique()) > 1
    model.set_routing("hard")
    out = model(input_ids=ids, labels=ids, losses_only=True)
    torch.testing.assert_close(out.token_losses, lost.gather(-1, best)[:, :-1, 0], rtol=1e-5, atol=1e-5)
    assert int(out.processed[0]) == ids.numel()
    assert out.processed.equal(model(input_ids=ids).processed)


def test_a_trunk_that_is_cut_keeps_its_guests(store: BlockStore) -> None:
    model = build(store, "gpt", span=1)
    assert [(span.enter, span.exit) for span in model.layout.experts[1].spans] == [(0, 2)]
    ids = rows(*TEXTS)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    gradients = [parameter.grad for parameter in model.routers.parameters() if parameter.requires_grad]
    assert any(grad is not None and float(grad.abs().max()) > 0 for grad in gradients)
    assert torch.isfinite(loss)


@torch.no_grad()
def test_saved_and_opened_without_its_sources_it_is_the_same(
    store: BlockStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(store, "gpt", "gemma")
    ids = rows(*TEXTS)
    wanted = model(input_ids=ids).logits
    model.save_pretrained(tmp_path / "fused")
    monkeypatch.setattr("mango.checkpoints.open_tokenizer", None)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "fused")
    assert isinstance(opened, MolForCausalLM)
    assert opened(input_ids=ids).logits.equal(wanted)
    opened.save_pretrained(tmp_path / "again")
    for one, other in ((tmp_path / "fused", tmp_path / "again"),):
        assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


@torch.no_grad()
def test_half_precision_keeps_the_tokenizer(store: BlockStore, tmp_path: Path) -> None:
    model = fuse(store, {"model": "gpt"}, dtype="bfloat16")
    ids = rows(*TEXTS)
    assert torch.isfinite(model(input_ids=ids).logits).all()
    model.save_pretrained(tmp_path)
    opened = MolForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert next(opened.experts[1].parameters()).dtype == torch.bfloat16
    assert opened(input_ids=ids).logits.equal(model(input_ids=ids).logits)
    assert dict(opened.named_buffers())["experts.1.bridge.tokenizer"].dtype == torch.uint8


@torch.no_grad()
def test_without_weights_it_runs_as_other_models_do(store: BlockStore) -> None:
    made = MolForCausalLM(build(store, "gpt").config)
    assert made(input_ids=rows(*TEXTS)).logits.shape[0] == len(TEXTS)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, "bridges has no 'gpt'"),
        ({"gpt": {"trunk_bytes": 1}}, "missing 6 required"),
        ({"gpt": "many"}, "bridges has no 'gpt'"),
        ({"gpt": "negative"}, "not all numbers"),
    ],
)
def test_a_changed_configuration_is_refused(
    store: BlockStore, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    build(store, "gpt").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    if change.get("gpt") == "negative":
        change = {"gpt": {**config["bridges"]["gpt"], "begin": -1}}
    config["bridges"] = change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=says):
        MolForCausalLM.from_pretrained(tmp_path)


def test_a_checkpoint_without_a_tokenizer_is_refused_when_it_reads(store: BlockStore) -> None:
    model = build(store, "gpt")
    bridge = bridge_of(model, 1)
    bridge.get_buffer("tokenizer").zero_()
    bridge._opened = None
    with pytest.raises(CheckpointError):
        model(input_ids=rows(*TEXTS))


def fuse(store: BlockStore, guest: dict[str, Any], **more: Any) -> Any:
    params = FusionParams.model_validate({"trunk": "base", "experts": [{"edges": "bridge", **guest}], **more})
    return build_fused(store, params, RouterParams.model_validate(TOKEN), AdapterParams(), seed=0)


def test_a_cut_is_refused(store: BlockStore) -> None:
    spans = [{"enter": 0, "exit": 1, "blocks": [0, 1]}]
    for cut in ("fine", spans):
        with pytest.raises(ConfigError, match="fused whole"):
            fuse(store, {"model": "gpt", "cut": cut})
    assert fuse(store, {"model": "gpt", "cut": "whole"}).layout.experts[1].bridged


def test_another_task_is_refused(store: BlockStore) -> None:
    maps = {name: store.model(name).architecture for name in ("base", "gpt")}
    params = {"trunk": "base", "experts": [{"model": "gpt", "edges": "bridge"}], "task": "masked-lm"}
    with pytest.raises(ConfigError, match="it is for causal-lm"):
        make_layout(FusionParams.model_validate(params), maps)


def test_the_same_tokenizer_is_refused(store: BlockStore) -> None:
    with pytest.raises(IncompatibleBlocksError, match="set its edges to own"):
        fuse(store, {"model": "base"})


def test_other_tokenizers_are_told_of_the_bridge(store: BlockStore) -> None:
    params = FusionParams.model_validate({"trunk": "base", "experts": ["gemma"]})
    with pytest.raises(IncompatibleBlocksError, match="edges: bridge"):
        build_fused(store, params, RouterParams.model_validate(TOKEN), AdapterParams(), seed=0)


def store_with(tmp_path: Path, name: str, model: Any, tokenizer: Any) -> BlockStore:
    folders = {"base": save_models(tmp_path)["base"], name: tmp_path / name}
    model.save_pretrained(folders[name])
    tokenizer.save_pretrained(folders[name])
    sources = {key: ModelSource(source=str(folder)) for key, folder in folders.items()}
    return extract(sources, tmp_path / "some", "reference")


def test_blocks_that_keep_a_state_are_refused(tmp_path: Path) -> None:
    config = MambaConfig(
        hidden_size=16, num_hidden_layers=2, state_size=4, vocab_size=len(guest_tokenizer()), bos_token_id=0,
        eos_token_id=1,
    )  # fmt: skip
    other = store_with(tmp_path, "mamba", AutoModelForCausalLM.from_config(config), guest_tokenizer())
    with pytest.raises(ArchitectureError, match=r"keep more than keys and values.*edges: trunk"):
        fuse(other, {"model": "mamba"})


def test_a_tokenizer_that_cannot_spell_is_refused(tmp_path: Path, store: BlockStore) -> None:
    gpt = load_source(store, "gpt")
    tokenizer = guest_tokenizer()
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    del document["model"]["vocab"]["z"]
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(document))
    with pytest.raises(IncompatibleBlocksError, match="no token for the byte 0x7a"):
        fuse(store_with(tmp_path, "dumb", gpt, tokenizer), {"model": "dumb"})


def test_a_tokenizer_with_no_beginning_is_refused(tmp_path: Path, store: BlockStore) -> None:
    silent = bpe(GUEST_MERGES, {"unk_token": "<s>", "pad_token": "</s>"})
    with pytest.raises(IncompatibleBlocksError, match="neither a token for the beginning"):
        fuse(store_with(tmp_path, "silent", load_source(store, "gpt"), silent), {"model": "silent"})


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(tmp_path: Path, store: BlockStore) -> None:
    longer = bpe((*GUEST_MERGES, "ef", "fe", "eg", "ge"), {"bos_token": "<s>", "eos_token": "</s>"})
    with pytest.raises(IncompatibleBlocksError, match="rows for them"):
        fuse(store_with(tmp_path, "longer", load_source(store, "gpt"), longer), {"model": "longer"})
