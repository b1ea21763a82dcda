"""``topk`` in models that read whole rows: k experts a row, softly and sparsely trained, cached and not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from mango.blocks import BlockStore
from mango.errors import ConfigError
from mango.fusion import MolPreTrainedModel, MolRowModel
from mango.fusion.expert import FusedExpert
from mango.fusion.routers import Selection
from tests.fusion import test_images, test_seq2seq
from tests.fusion.heads import ENCODERS, TOKEN, fuse_heads, store_of, train_steps
from tests.fusion.models import tokens

IDS = tokens(6, 9, seed=11)
MASK = torch.ones_like(IDS)
MASK[1, 6:] = 0
TARGET = tokens(6, 5, seed=22)
AUTO: dict[str, Any] = {
    "masked-lm": AutoModelForMaskedLM,
    "sentence-embedding": AutoModel,
    "image-classification": AutoModelForImageClassification,
    "seq2seq-lm": AutoModelForSeq2SeqLM,
}
SOURCES: dict[str, Any] = {"vit": test_images.SOURCES, "bart": test_seq2seq.SOURCES, "bert": ENCODERS}
TRUNKS = {"image-classification": "vit", "seq2seq-lm": "bart"}
EXPERTS: dict[str, list[Any]] = {
    "bert": ["sister", "roberta", {"model": "sister", "cut": "fine"}],
    "vit": ["dinov2", "finer", {"model": "vit", "edges": "trunk"}],
    "bart": ["bart_wide", {"model": "bart_wide", "cut": test_seq2seq.PIECES}, "bart"],
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BlockStore]:
    kinds = {"bert": "masked-lm", "vit": "image-classification", "bart": "seq2seq-lm"}
    return {n: store_of(tmp_path_factory.mktemp(n), SOURCES[n], kind) for n, kind in kinds.items()}


def topk(**how: Any) -> dict[str, Any]:
    return {"type": "topk", "topk": {"k": 2, "window": 3, **how}}


def fused(stores: dict[str, BlockStore], task: str, router: dict[str, Any]) -> MolPreTrainedModel:
    trunk = TRUNKS.get(task, "bert")
    return fuse_heads(stores[trunk], task, trunk, EXPERTS[trunk], router)


def inputs_of(task: str) -> dict[str, Tensor]:
    if task == "image-classification":
        return {"pixel_values": test_images.IMAGES}
    more = {"decoder_input_ids": TARGET} if task == "seq2seq-lm" else {}
    return {"input_ids": IDS, "attention_mask": MASK, **more}


def answer(model: MolPreTrainedModel, task: str, **inputs: Tensor) -> Tensor:
    output = model(**inputs)
    return output.pooler_output if task == "sentence-embedding" else output.logits  # type: ignore[no-any-return]


def rows_run(model: MolPreTrainedModel) -> dict[str, set[int]]:
    """Return a record, filled while the model runs, of how many rows each part of each expert is given."""
    ran: dict[str, set[int]] = {}
    for number, expert in enumerate(model.experts):
        assert isinstance(expert, FusedExpert)
        parts = {f"{number}/{place}": body for place, body in enumerate(expert.bodies)}
        for name, part in {**parts, f"{number}/encoder": expert.encoder}.items():
            if part is not None:
                part.register_forward_hook(
                    lambda _m, args, _o, name=name: ran.setdefault(name, set()).add(len(args[0]))
                )
    return ran


@pytest.mark.parametrize("task", AUTO)
@torch.no_grad()
def test_k_experts_run_on_each_row_and_no_other(stores: dict[str, BlockStore], task: str) -> None:
    for k in (1, 2):
        model = fused(stores, task, topk(k=k))
        inputs = inputs_of(task)
        ran = rows_run(model)
        output = model(**inputs)
        (first, *_) = output.routing
        chosen = first.weights > 0
        assert bool(((chosen == chosen[:, :1]) | ~first.present.unsqueeze(-1)).all())
        by_row = chosen.any(1)
        assert bool((by_row.sum(-1) == k).all())
        assert len({tuple(row) for row in by_row.tolist()}) > 1  # rows choose differently
        torch.testing.assert_close(first.weights.sum(-1), first.present.float())
        # of what enters at the first cut, an expert gets the rows that chose it
        for place, (expert, span) in enumerate(model._entering[0]):
            assert ran.get(f"{expert}/{span}", {0}) == {int(by_row[:, place].sum())}
        # and all alone each row gets the same answer
        names = [name for name in inputs if name != "attention_mask"]
        for row in (0, 1):
            length = int(MASK[row].sum())
            own = {n: inputs[n][row : row + 1] for n in names}
            if "input_ids" in own:
                own["input_ids"] = own["input_ids"][:, :length]
            alone, every = answer(model, task, **own)[0], answer(model, task, **inputs)[row]
            every = every[:length] if task == "masked-lm" else every
            torch.testing.assert_close(alone, every, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_encoders_of_experts_that_no_text_chooses_do_not_run(stores: dict[str, BlockStore]) -> None:
    model = fused(stores, "seq2seq-lm", topk(k=1))
    ran = rows_run(model)
    weights = model(**inputs_of("seq2seq-lm")).routing[0].weights[:, 0]
    for number in range(1, len(model.experts)):
        positions = [p for p, entering in enumerate(model._entering) for e, _ in entering if e == number]
        wanted = int((weights.argmax(-1) == number).sum()) if positions == [0] else None
        if wanted is not None:
            assert ran.get(f"{number}/encoder", {0}) == {wanted}
    assert ran["0/encoder"] == {len(IDS)}


@pytest.mark.parametrize("training", ["soft", "sparse"])
@pytest.mark.parametrize("task", AUTO)
def test_it_is_trained_on_the_decision_that_it_is_used_with(
    stores: dict[str, BlockStore], tmp_path: Path, task: str, training: str
) -> None:
    model = fused(stores, task, topk(training=training))
    assert isinstance(model, MolRowModel)
    inputs = inputs_of(task)
    if task == "image-classification":
        inputs["labels"] = test_images.LABELS
    elif task == "sentence-embedding":
        inputs = {"input_ids": tokens(12, 7, seed=12).view(6, 2, 7), "labels": torch.zeros(6, dtype=torch.long)}
    elif task == "masked-lm":
        inputs["labels"] = IDS.masked_fill(torch.arange(9) % 2 == 0, -100)
    else:
        inputs["labels"] = inputs.pop("decoder_input_ids")
    model.train(True)
    routing = model(**inputs, losses_only=True).routing
    for one in routing:
        count = (one.weights > 0).sum(-1)[one.present]
        assert bool((count == (2 if training == "sparse" else one.weights.shape[-1])).all())
        spread = (one.weights - one.weights[:, :1]).masked_fill(~one.present.unsqueeze(-1), 0.0)
        assert float(spread.detach().abs().max()) == 0.0  # one decision a row, softly too
    before = [router.outer.weight.clone() for router in model.iter_routers()]
    losses = train_steps(model, inputs)
    assert losses[-1] < losses[0] - 0.1
    assert all(not r.outer.weight.equal(old) for r, old in zip(model.iter_routers(), before, strict=True))
    model.save_pretrained(tmp_path)
    opened = AUTO[task].from_pretrained(tmp_path)
    given = {name: value for name, value in inputs_of(task).items() if name != "labels"}
    with torch.no_grad():
        assert answer(opened, task, **given).equal(answer(model, task, **given))


@pytest.mark.parametrize("k", [1, 2])
@torch.no_grad()
def test_cached_is_uncached_with_experts_that_texts_choose(stores: dict[str, BlockStore], k: int) -> None:
    model: Any = fused(stores, "seq2seq-lm", topk(k=k))
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    given = {"input_ids": IDS, "attention_mask": MASK}
    whole = model(**given, decoder_input_ids=TARGET).logits
    out = model(**given, decoder_input_ids=TARGET[:, :2], use_cache=True)
    logits = [out.logits]
    for column in range(2, TARGET.shape[1]):
        new = TARGET[:, column : column + 1]
        out = model(**given, decoder_input_ids=new, past_key_values=out.past_key_values, use_cache=True)
        logits.append(out.logits)
    torch.testing.assert_close(torch.cat(logits, 1), whole, atol=1e-5, rtol=1e-5)
    for how in ({"no_repeat_ngram_size": 1}, {"no_repeat_ngram_size": 2, "num_beams": 3}):
        cached, plain = (
            model.generate(**given, max_new_tokens=5, do_sample=False, use_cache=use, **how) for use in (True, False)
        )
        assert cached.equal(plain)


@torch.no_grad()
def test_a_budget_and_biases_count_in_choosing(stores: dict[str, BlockStore]) -> None:
    model = fused(stores, "masked-lm", topk(k=3, mass=0.5))
    output = model(**inputs_of("masked-lm"))
    numbers = (output.routing[0].weights[:, 0] > 0).sum(-1)
    assert int(numbers.min()) == 1
    assert int(numbers.max()) <= 3
    model = fused(stores, "masked-lm", topk(k=1, training="sparse", balance_rate=0.1))
    for router in model.iter_routers():
        assert router.balance is not None
        router.balance.bias[2] = 50.0
    output = model(**inputs_of("masked-lm"))
    assert bool((output.routing[0].weights[..., 2] == output.routing[0].present).all())


@torch.no_grad()
def test_heads_of_experts_that_nobody_chose_do_not_run(stores: dict[str, BlockStore]) -> None:
    model = fused(stores, "masked-lm", topk())
    model.set_routing(Selection(k=2))
    given: dict[int, int] = {}
    for number, expert in enumerate(model.experts):
        if expert.tail is not None:
            expert.tail.register_forward_hook(  # type: ignore[union-attr]
                lambda _m, args, _o, number=number: given.__setitem__(number, len(args[0]))
            )
    output = model(**inputs_of("masked-lm"))
    for place, (expert, _) in enumerate(model._entering[0]):
        if len(model.layout.experts[expert].spans) == 1 and expert in given:
            tokens_given = int((output.routing[0].weights[..., place] > 0).sum())
            assert given[expert] == max(16, tokens_given)
            assert tokens_given < IDS.numel()


@pytest.mark.parametrize(
    ("task", "router", "message"),
    [
        ("masked-lm", topk(switch=0.1), r"router\.topk\.switch: it goes on from what was chosen for the token before"),
        ("seq2seq-lm", topk(k=1, stickiness=1.0), r"router\.topk\.stickiness: it goes on from what was chosen"),
        ("image-classification", topk(pooling="windows"), r"router\.topk\.pooling: 'windows' pools what stands before"),
        ("sentence-embedding", TOKEN, r"router\.token: it weighs experts for each token.*wants one decision a row"),
        ("seq2seq-lm", TOKEN, r"router\.token: it weighs experts for each token.* or topk"),
    ],
)
def test_routers_that_cannot_decide_there(
    stores: dict[str, BlockStore], task: str, router: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        fused(stores, task, router)
