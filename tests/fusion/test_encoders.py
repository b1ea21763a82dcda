"""Fused encoders: masked language models and sentence embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from mango.blocks import BlockStore, load_source
from mango.checkpoints import open_model
from mango.errors import ArchitectureError, ConfigError
from mango.fusion import MolForMaskedLM, MolForSentenceEmbedding
from mango.fusion.pooling import Pool
from mango.fusion.rows import pool_rows
from tests.fusion.heads import CHOOSING, ENCODERS, SIMPLE, TOKEN, VOCAB, fuse_heads, store_of, train_steps
from tests.fusion.models import to_expert, tokens

IDS = tokens(4, 9, seed=11)
MASK = torch.ones_like(IDS)
MASK[1, 6:] = 0
MASK[3, 4:] = 0
REAL = MASK.bool()
LABELS = IDS.masked_fill(torch.arange(9) % 2 == 0, -100)
PIECES = [{"enter": 0, "exit": 1, "blocks": [0, 1]}, {"enter": 1, "exit": 3, "blocks": [1, 2]}]
EXPERTS: list[Any] = ["sister", {"model": "roberta", "cut": PIECES}, {"model": "untied", "edges": "trunk"}]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> BlockStore:
    return store_of(tmp_path_factory.mktemp("encoders"), ENCODERS, "masked-lm")


def own_logits(store: BlockStore, name: str) -> Tensor:
    with torch.no_grad():
        return load_source(store, name)(input_ids=IDS, attention_mask=MASK).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("span", [1, 3])
def test_alone_the_trunk_is_itself_to_the_bit(store: BlockStore, name: str, span: int) -> None:
    model = fuse_heads(store, "masked-lm", name, [], span=min(span, 2) if name == "roberta" else span)
    assert model(IDS, attention_mask=MASK).logits[REAL].equal(own_logits(store, name)[REAL])


def test_fused_with_itself_it_is_itself(store: BlockStore) -> None:
    wanted = own_logits(store, "bert")[REAL]
    for cut in ("fine", "whole"):
        model = fuse_heads(store, "masked-lm", "bert", [{"model": "bert", "cut": cut}], TOKEN)
        for how in ("soft", "hard"):
            model.set_routing(how)
            torch.testing.assert_close(model(IDS, attention_mask=MASK).logits[REAL], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("place", [1, 2])
def test_a_row_that_takes_an_uncut_expert_gets_its_own_logits(store: BlockStore, place: int) -> None:
    names = ["sister", "roberta"]
    model = fuse_heads(store, "masked-lm", "bert", [{"model": n, "cut": "whole"} for n in names], CHOOSING)
    to_expert(model, place)
    output = model(IDS, attention_mask=MASK)
    torch.testing.assert_close(output.logits[REAL], own_logits(store, names[place - 1])[REAL], atol=1e-5, rtol=1e-5)
    assert [int(n) for n in output.processed] == [0, 0, 0, *[int(REAL.sum()) * (place == p) for p in (1, 2)]]


def test_rows_go_to_different_experts_and_are_what_they_are_alone(store: BlockStore) -> None:
    model = fuse_heads(store, "masked-lm", "bert", EXPERTS, CHOOSING)
    output = model(IDS, attention_mask=MASK)
    chosen = output.routing[0].weights[:, 0].argmax(-1)
    assert len(set(chosen.tolist())) > 1
    assert bool((output.routing[0].weights[REAL].sum(-1) == 1).all())
    for row in range(len(IDS)):
        length = int(MASK[row].sum())
        alone = model(IDS[row : row + 1, :length]).logits[0]
        torch.testing.assert_close(output.logits[row, :length], alone, atol=1e-5, rtol=1e-5)
    # every token is processed once at each cut, and no expert runs on rows that did not choose it
    spans = [model.layout.experts[e].spans[i] for e, i in model.spans]
    assert sum(int(n) * (s.exit - s.enter) for n, s in zip(output.processed, spans, strict=True)) == 3 * int(REAL.sum())


@pytest.mark.parametrize("router", [SIMPLE, CHOOSING, TOKEN], ids=["simple", "one expert a row", "token"])
def test_training_saving_and_opening(store: BlockStore, tmp_path: Path, router: dict[str, Any]) -> None:
    model = fuse_heads(store, "masked-lm", "bert", EXPERTS, router, scatter=False)
    frozen = {name: value.clone() for name, value in model.named_parameters() if not value.requires_grad}
    losses = train_steps(model, {"input_ids": IDS, "attention_mask": MASK, "labels": LABELS})
    assert losses[-1] < losses[0] - 0.1
    assert all(model.get_parameter(name).equal(value) for name, value in frozen.items())
    output = model(IDS, attention_mask=MASK, labels=LABELS)
    wanted = torch.nn.functional.cross_entropy(
        output.logits.flatten(0, 1), LABELS.masked_fill(~REAL, -100).flatten(), ignore_index=-100
    )
    torch.testing.assert_close(output.loss, wanted)
    model.save_pretrained(tmp_path)
    for opened in (AutoModelForMaskedLM.from_pretrained(tmp_path), open_model(tmp_path)):
        assert isinstance(opened, MolForMaskedLM)
        assert opened(IDS, attention_mask=MASK).logits.equal(output.logits)
    with pytest.raises(ConfigError, match="task is 'masked-lm', and MolForCausalLM is for 'causal-lm'; open it with"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_embeddings_are_trained_saved_and_opened(store: BlockStore, tmp_path: Path) -> None:
    model = fuse_heads(store, "sentence-embedding", "bert", ["sister", "roberta"], SIMPLE, scatter=False)
    pairs = tokens(8, 7, seed=12).view(4, 2, 7)
    losses = train_steps(model, {"input_ids": pairs, "labels": torch.zeros(4, dtype=torch.long)})
    assert losses[-1] < losses[0] - 0.3
    output = model(IDS, attention_mask=MASK)
    torch.testing.assert_close(output.pooler_output.norm(dim=-1), torch.ones(4))
    alone = model(IDS[1:2, :6]).pooler_output
    torch.testing.assert_close(output.pooler_output[1:2], alone, atol=1e-5, rtol=1e-5)
    model.save_pretrained(tmp_path)
    opened = AutoModel.from_pretrained(tmp_path)
    assert isinstance(opened, MolForSentenceEmbedding)
    assert opened(IDS, attention_mask=MASK).pooler_output.equal(output.pooler_output)
    assert not any(".cls." in name for name in opened.state_dict())


def test_alone_an_embedding_is_the_mean_of_the_trunks_states(store: BlockStore) -> None:
    model = fuse_heads(store, "sentence-embedding", "bert", [])
    states = load_source(store, "bert").base_model(input_ids=IDS, attention_mask=MASK).last_hidden_state
    mean = (states * MASK.unsqueeze(-1)).sum(1) / MASK.sum(1, keepdim=True)
    wanted = torch.nn.functional.normalize(mean, dim=-1)
    torch.testing.assert_close(model(IDS, attention_mask=MASK).pooler_output, wanted)


def test_pools_look_ahead() -> None:
    states = torch.tensor([[1.0, 2.0, 3.0, 4.0, 99.0], [10.0, 20.0, 30.0, 40.0, 50.0]]).unsqueeze(-1)
    present = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]).bool()
    found = {kind: pool_rows(Pool(kind, 2), states, present)[..., 0] for kind in ("prompt", "window", "segment")}  # type: ignore[arg-type]
    assert found["prompt"].tolist() == [[1.5] * 5, [15.0] * 5]
    assert found["window"][:, :4].tolist() == [[1.5, 2.5, 3.5, 4.0], [15.0, 25.0, 35.0, 45.0]]
    assert found["segment"][:, :4].tolist() == [[1.5, 1.5, 3.5, 3.5], [15.0, 15.0, 35.0, 35.0]]


@pytest.mark.parametrize(
    ("task", "router", "message"),
    [
        ("masked-lm", {"type": "token", "token": {"switch": 0.1}}, r"router\.token\.switch: it goes on from what was"),
        ("sentence-embedding", TOKEN, r"wants one decision a row; use router\.type simple, or topk"),
    ],
)
def test_routers_that_cannot_decide_there(store: BlockStore, task: str, router: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fuse_heads(store, task, "bert", ["sister"], router)


def test_what_is_refused(store: BlockStore) -> None:
    with pytest.raises(ArchitectureError, match=r"'bert' .* is for masked-lm, and fusion\.task is seq2seq-lm"):
        fuse_heads(store, "seq2seq-lm", "bert", ["sister"])
    model = fuse_heads(store, "masked-lm", "bert", ["sister"])
    for arguments in ({"inputs_embeds": torch.zeros(1, 2, 32)}, {}):
        with pytest.raises(ConfigError, match="takes input_ids, not inputs_embeds"):
            model(**arguments)
    with pytest.raises(ConfigError, match="attention_mask has shape"):
        model(IDS, attention_mask=MASK[:, 1:])
    vectors = fuse_heads(store, "sentence-embedding", "bert", ["sister"])
    with pytest.raises(ConfigError, match="wanted input_ids of pairs"):
        vectors(IDS, labels=LABELS)
    assert int(IDS.max()) < VOCAB
