"""Fused encoder-decoder models: two families, each with a wider guest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, BartConfig, PretrainedConfig, T5Config

from mango.blocks import BlockStore, load_source
from mango.errors import ConfigError
from mango.fusion import MolForSeq2SeqLM
from tests.fusion.heads import CHOOSING, SIMPLE, TOKEN, VOCAB, fuse_heads, store_of, train_steps
from tests.fusion.models import to_expert, tokens

BART: dict[str, Any] = {
    "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64, "vocab_size": VOCAB,
    "bos_token_id": 0, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 1, "forced_eos_token_id": None,
}  # fmt: skip
T5: dict[str, Any] = {
    "d_kv": 8, "d_ff": 48, "num_heads": 4, "vocab_size": VOCAB, "decoder_start_token_id": 0, "pad_token_id": 0,
    "eos_token_id": 1,
}  # fmt: skip
SOURCES: dict[str, PretrainedConfig] = {
    "bart": BartConfig(d_model=32, **BART),
    "bart_wide": BartConfig(d_model=48, **{**BART, "decoder_layers": 2}),
    "t5": T5Config(d_model=32, num_layers=3, **T5),
    "t5_wide": T5Config(d_model=48, num_layers=2, tie_word_embeddings=False, **T5),
}
IDS, TARGET = tokens(4, 7, seed=21), tokens(4, 6, seed=22)
MASK = torch.ones_like(IDS)
MASK[1, 5:] = 0
GIVEN = {"input_ids": IDS, "attention_mask": MASK}
PIECES = [{"enter": 0, "exit": 1, "blocks": [0, 1]}, {"enter": 1, "exit": 3, "blocks": [1, 2]}]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> BlockStore:
    return store_of(tmp_path_factory.mktemp("seq2seq"), SOURCES, "seq2seq-lm")


def fused(store: BlockStore, trunk: str, router: dict[str, Any], **how: Any) -> MolForSeq2SeqLM:
    wide = f"{trunk}_wide"
    model = fuse_heads(store, "seq2seq-lm", trunk, [wide, {"model": wide, "cut": PIECES}, trunk], router, **how)
    assert isinstance(model, MolForSeq2SeqLM)
    assert model.generation_config is not None
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return model


@torch.no_grad()
def own_logits(store: BlockStore, name: str) -> Tensor:
    return load_source(store, name)(**GIVEN, decoder_input_ids=TARGET).logits  # type: ignore[no-any-return]


@torch.no_grad()
def stepwise(model: MolForSeq2SeqLM) -> Tensor:
    out = model(**GIVEN, decoder_input_ids=TARGET[:, :3], use_cache=True)
    logits = [out.logits]
    for column in range(3, TARGET.shape[1]):
        new = TARGET[:, column : column + 1]
        out = model(**GIVEN, decoder_input_ids=new, past_key_values=out.past_key_values, use_cache=True)
        logits.append(out.logits)
    return torch.cat(logits, 1)


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("span", [1, 2])
@torch.no_grad()
def test_alone_the_trunk_is_itself_to_the_bit(store: BlockStore, name: str, span: int) -> None:
    model = fuse_heads(store, "seq2seq-lm", name, [], span=span)
    assert model(**GIVEN, decoder_input_ids=TARGET).logits.equal(own_logits(store, name))


@pytest.mark.parametrize("trunk", ["bart", "t5"])
@torch.no_grad()
def test_a_text_that_takes_an_uncut_expert_gets_its_own_logits(store: BlockStore, trunk: str) -> None:
    model = fused(store, trunk, CHOOSING)
    for place, name in ((0, trunk), (1, f"{trunk}_wide")):
        to_expert(model, place)
        found = model(**GIVEN, decoder_input_ids=TARGET)
        torch.testing.assert_close(found.logits, own_logits(store, name), atol=1e-5, rtol=1e-5)
        assert sum(int(n) > 0 for n in found.processed) == (3 if place == 0 else 1)


@pytest.mark.parametrize("router", [SIMPLE, CHOOSING], ids=["soft", "one expert a text"])
@pytest.mark.parametrize("trunk", ["bart", "t5"])
def test_cached_is_uncached_and_trained_saved_and_opened(
    store: BlockStore, tmp_path: Path, trunk: str, router: dict[str, Any]
) -> None:
    model = fused(store, trunk, router)
    with torch.no_grad():
        whole = model(**GIVEN, decoder_input_ids=TARGET)
    weights = whole.routing[0].weights[:, 0]
    assert len(set(weights.argmax(-1).tolist())) > 1  # texts take different experts
    if router is SIMPLE:
        assert bool((whole.processed == TARGET.numel()).all())
    torch.testing.assert_close(stepwise(model), whole.logits, atol=1e-5, rtol=1e-5)
    for how in ({"no_repeat_ngram_size": 1}, {"no_repeat_ngram_size": 2, "num_beams": 3}):
        cached, plain = (
            model.generate(**GIVEN, max_new_tokens=6, do_sample=False, use_cache=use, **how) for use in (True, False)
        )
        assert cached.equal(plain)
        assert len(set(cached[0].tolist())) > 2
    losses = train_steps(model, {**GIVEN, "labels": TARGET})
    assert losses[-1] < losses[0] - 0.5
    model.save_pretrained(tmp_path)
    opened = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert isinstance(opened, MolForSeq2SeqLM)
    with torch.no_grad():
        wanted = model(**GIVEN, decoder_input_ids=TARGET).logits
        assert opened(**GIVEN, decoder_input_ids=TARGET).logits.equal(wanted)
    assert {n for n, p in opened.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }


@torch.no_grad()
def test_texts_are_what_they_are_alone(store: BlockStore) -> None:
    model = fused(store, "t5", CHOOSING)
    every = model(**GIVEN, decoder_input_ids=TARGET).logits
    for row in range(len(IDS)):
        length = int(MASK[row].sum())
        alone = model(input_ids=IDS[row : row + 1, :length], decoder_input_ids=TARGET[row : row + 1]).logits
        torch.testing.assert_close(every[row : row + 1], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_no_later_token_moves_an_earlier_logit(store: BlockStore) -> None:
    model = fused(store, "bart", SIMPLE)
    before = model(**GIVEN, decoder_input_ids=TARGET).logits
    changed = TARGET.clone()
    changed[:, 4] = (changed[:, 4] + 5) % VOCAB
    after = model(**GIVEN, decoder_input_ids=changed).logits
    assert after[:, :4].equal(before[:, :4])
    assert not after[:, 4].equal(before[:, 4])


@torch.no_grad()
def test_encoders_of_experts_that_no_text_chooses_do_not_run(store: BlockStore) -> None:
    model = fused(store, "bart", CHOOSING)
    to_expert(model, 0)
    ran: list[int] = []
    for number, expert in enumerate(model.experts):
        expert.encoder.register_forward_hook(lambda *_, number=number: ran.append(number))  # type: ignore[union-attr]
    model(**GIVEN, decoder_input_ids=TARGET)
    assert ran == [0]


def test_what_is_refused(store: BlockStore) -> None:
    for router, message in (
        (TOKEN, r"wants one decision a row; use router\.type simple, or topk"),
        ({"type": "topk", "topk": {"switch": 0.1}}, r"router\.topk\.switch: it goes on from what was chosen"),
    ):
        with pytest.raises(ConfigError, match=message):
            fuse_heads(store, "seq2seq-lm", "bart", ["bart_wide"], router)
    model = fuse_heads(store, "seq2seq-lm", "bart", ["bart_wide"])
    with pytest.raises(ConfigError, match="takes input_ids, or encoder_outputs"):
        model(decoder_input_ids=TARGET)
    with pytest.raises(ConfigError, match="there are none, and no labels"):
        model(**GIVEN)
    with pytest.raises(ConfigError, match="decoder_attention_mask has shape"):
        model(**GIVEN, decoder_input_ids=TARGET, decoder_attention_mask=MASK)
