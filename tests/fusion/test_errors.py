"""What cannot be fused or run is refused with one line that says where, what and what to do."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import (
    FalconConfig,
    GraniteConfig,
    OpenAIGPTConfig,
    OPTConfig,
    PretrainedConfig,
    RecurrentGemmaConfig,
    TrOCRConfig,
    XLNetConfig,
)

from mango.blocks import BlockStore, extract
from mango.checkpoints import ModelSource
from mango.errors import ArchitectureError, ConfigError, IncompatibleBlocksError
from mango.fusion import AdapterParams, FusionParams, MolForCausalLM, RouterParams, Selection, build_fused
from tests.blocks.families import GROUPED, VOCAB, save_model
from tests.fusion.models import LAYOUTS, ROUTERS, config_named, fuse, tokens

IDS = tokens(2, 8)
NAMES = {"vocab_size": VOCAB, "pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1}


def span(enter: int, exit_: int, *blocks: int) -> dict[str, Any]:
    return {"enter": enter, "exit": exit_, "blocks": list(blocks)}


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (RouterParams, {"type": "topp"}, r"unknown router 'topp'.*did you mean 'topk'\?.*Known: simple, token, topk"),
        (AdapterParams, {"type": "linnear"}, r"unknown adapter 'linnear'.*'linear'"),
        (RouterParams, {"other": {}}, "unknown router 'other'"),
        (RouterParams, {"type": "topk", "topk": {"k": 0}}, "greater than or equal to 1"),
        (RouterParams, {"type": "topk", "topk": {"catch_up": -1}}, "greater than or equal to 0"),
        (RouterParams, {"token": {"pooling": "future"}}, "'window', 'prompt', 'segment' or 'windows'"),
        (RouterParams, {"token": {"temperature": {"start": 0.05}}}, "0.05 is not above the floor, 0.1"),
        (
            FusionParams,
            {"trunk": "base", "experts": [{"model": "sister", "cut": "finely"}]},
            "'auto', 'fine' or 'whole'",
        ),
        (FusionParams, {"trunk": "base", "depth": 3}, "Extra inputs are not permitted"),
    ],
)
def test_parameters(section: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises((ValidationError, ConfigError), match=message):
        section.model_validate(values)


@pytest.mark.parametrize(
    ("fusion", "message"),
    [
        ({"trunk": "bass"}, "unknown model 'bass'"),
        ({"trunk": "base", "span": 5}, r"fusion\.span: 5 is more than the 4 blocks of 'base'"),
        (
            {"trunk": "base", "experts": [{"model": "short", "cut": "fine"}], "span": 1},
            r"experts\.0\.cut: 'short' has 2 blocks, fewer than 4 positions",
        ),
        (
            {"trunk": "base", "experts": [{"model": "sister", "cut": [span(0, 3, 0, 2)]}]},
            r"experts\.0\.cut\.0: it enters at cut 0 and exits at 3; cuts go from 0 to 2",
        ),
        (
            {"trunk": "base", "experts": ["brother", {"model": "sister", "cut": [span(0, 1, 0, 9)]}]},
            r"experts\.1\.cut\.0\.blocks: \[0, 9\] is out of range: 'sister' has blocks 0 to 3",
        ),
        (
            {"trunk": "base", "experts": [{"model": "sister", "cut": [span(0, 2, 0, 2), span(1, 2, 2, 4)]}]},
            r"experts\.0\.cut\.1: it starts before the span in front of it ends",
        ),
        ({"trunk": "base", "experts": [{"model": "sister", "cut": []}]}, r"experts\.0\.cut: no span is given"),
    ],
)
def test_layouts(store: BlockStore, fusion: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, KeyError), match=message):
        build_fused(store, FusionParams.model_validate(fusion), RouterParams(), AdapterParams(), seed=0)


def test_all_that_is_wrong_with_explicit_spans_is_said_at_once(store: BlockStore) -> None:
    cut = [span(0, 9, 0, 9), span(0, 1, 3, 2)]
    params = FusionParams.model_validate({"trunk": "base", "experts": [{"model": "sister", "cut": cut}]})
    with pytest.raises(ConfigError) as error:
        build_fused(store, params, RouterParams(), AdapterParams(), seed=0)
    assert len(str(error.value).splitlines()) == 4


def test_more_experts_than_there_are(store: BlockStore) -> None:
    many = {"type": "topk", "topk": {"k": 4}}
    with pytest.raises(ConfigError, match="router: k is 4, but there are 3 experts, the anchor among them"):
        fuse(store, LAYOUTS["siblings"], many)
    model = fuse(store, LAYOUTS["siblings"], {"type": "topk", "topk": {"k": 3}})
    with pytest.raises(ConfigError, match="k is 4"):
        model.set_routing(Selection(k=4))
    with pytest.raises(ConfigError, match=r"routing 'harder' is unknown\. Known: soft, hard"):
        model.set_routing("harder")


def stored(tmp_path: Path, models: dict[str, PretrainedConfig], changed: dict[str, Any] | None = None) -> BlockStore:
    """Extract models of these configurations, one of them with a tokenizer of its own if told so."""
    folders = {
        name: save_model(tmp_path / name, seed=seed, config=config)
        for seed, (name, config) in enumerate(models.items())
    }
    for name, vocabulary in (changed or {}).items():
        file = folders[name] / "tokenizer.json"
        tokenizer = json.loads(file.read_text())
        tokenizer["model"]["vocab"] = vocabulary
        file.write_text(json.dumps(tokenizer))
    sources = {name: ModelSource(source=str(folder)) for name, folder in folders.items()}
    return extract(sources, tmp_path / "store", "reference")


def test_two_tokenizers_that_do_not_match(tmp_path: Path) -> None:
    config = config_named("base")[1]
    other = {f"u{number}": number for number in range(VOCAB)}
    store = stored(tmp_path, {"base": config, "other": config}, {"other": other})
    with pytest.raises(IncompatibleBlocksError, match="the tokenizer of 'other' is not that of the trunk 'base'"):
        fuse(store, ["other"])


def test_vocabularies_of_other_sizes(tmp_path: Path) -> None:
    small = config_named("base")[1]
    large = config_named("base")[1]
    large.vocab_size = 80
    store = stored(tmp_path, {"base": small, "other": large})
    with pytest.raises(
        IncompatibleBlocksError, match="'other' has a vocabulary of 80 tokens, the trunk 'base' one of 64"
    ):
        fuse(store, ["other"])


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            TrOCRConfig(d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=48, **NAMES),
            "TrOCRDecoder takes no position_ids and places tokens by counting them",
        ),
        (
            FalconConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True, **NAMES),
            "FalconModel does not place tokens where position_ids say, and its blocks tell the order of tokens apart",
        ),
        (
            XLNetConfig(d_model=32, n_layer=2, n_head=4, d_inner=48, **NAMES),
            "in XLNetModel a token sees those behind it",
        ),
    ],
    ids=["positions counted", "positions ignored", "looks ahead"],
)
def test_architectures_that_cannot_be_fused(tmp_path: Path, config: PretrainedConfig, reason: str) -> None:
    store = stored(tmp_path, {"base": config})
    with pytest.raises(ArchitectureError, match=reason):
        fuse(store, [], trunk="base")


@pytest.mark.parametrize(
    "config",
    [
        OPTConfig(
            hidden_size=32, num_hidden_layers=3, ffn_dim=48, num_attention_heads=4, word_embed_proj_dim=16, **NAMES
        ),
        GraniteConfig(**GROUPED, embedding_multiplier=3.0, logits_scaling=2.0),
        OpenAIGPTConfig(n_embd=32, n_layer=2, n_head=4, **NAMES),
        RecurrentGemmaConfig(
            hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48, lru_width=32, **NAMES
        ),
    ],
    ids=["projections around the blocks", "scaled embedding and logits", "no cache", "a state beside the cache"],
)
def test_architectures_with_more_around_their_blocks_are_fused_truly(tmp_path: Path, config: PretrainedConfig) -> None:
    """Building compares every part with its source, so that it succeeds means that they agree."""
    store = stored(tmp_path, {"base": config})
    model = fuse(store, [{"model": "base", "cut": "fine", "edges": "trunk"}], trunk="base")
    assert bool(model(IDS).logits.isfinite().all())


def test_a_span_that_computes_something_else_is_noticed(store: BlockStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should the way in which spans run break for a model, building it fails and tells where."""
    from mango.fusion import shells

    plain = shells.Body.forward

    def scaled(self: Any, inputs: torch.Tensor, *args: Any) -> torch.Tensor:
        return plain(self, inputs, *args) * (1 + 1e-3 * (self.start == 2))

    monkeypatch.setattr(shells.Body, "forward", scaled)
    with pytest.raises(ArchitectureError, match=r"'base': blocks 2 to 3 do not compute .* difference is \d"):
        fuse(store, ["sister"], span=2)


def test_inputs(store: BlockStore) -> None:
    model = fuse(store, ["sister"])
    with pytest.raises(ConfigError, match="takes input_ids, not inputs_embeds"):
        model(inputs_embeds=torch.zeros(1, 2, 32))
    with pytest.raises(ConfigError, match="takes input_ids"):
        model()
    with pytest.raises(ConfigError, match=re.escape("attention_mask has shape [2, 5], wanted [2, 8]")):
        model(IDS, attention_mask=torch.ones(2, 5))
    for name in ("output_attentions", "output_hidden_states"):
        with pytest.raises(ConfigError, match=f"{name}: a fused model has several residual streams"):
            model(IDS, **{name: True})
    with pytest.raises(ConfigError, match="cannot be replaced"):
        model.set_input_embeddings(torch.nn.Embedding(2, 2))


def test_an_output_can_be_a_tuple(store: BlockStore) -> None:
    model = fuse(store, ["sister"], ROUTERS["token window"])
    output = model(IDS, labels=IDS, return_dict=False)
    assert isinstance(output, tuple)
    assert output[0].equal(model(IDS, labels=IDS).loss)


def test_the_same_model_twice_has_two_names(store: BlockStore) -> None:
    model = fuse(store, ["sister", "sister", {"model": "sister", "cut": "whole"}])
    assert isinstance(model, MolForCausalLM)
    assert [expert.name for expert in model.layout.experts] == ["anchor", "sister", "sister_2", "sister_3"]
