"""A fixed sample of architectures, and every one with a handler, through the whole suite; and its table."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest

from mango.architectures import ARCHITECTURES
from mango.architectures.support import support_table
from mango.blocks import extract
from mango.checkpoints import ModelSource
from mango.errors import MangoError
from mango.fusion import AdapterParams, FusionParams, RouterParams, build_fused
from tests.conformance import fusing
from tests.conformance.checks import Tiny, build, check, one_line

FUSED = (
    "bloom", "falcon_h1", "gemma4_text", "gpt2", "jamba", "lfm2", "lfm3_vl", "llama", "llava", "llava_next", "m2m_100",
    "mamba2", "marian", "mixtral", "mpt", "nanochat", "olmoe", "opt", "qwen3", "qwen3_next", "switch_transformers",
    "t5gemma2",
)  # fmt: skip
AT_ONCE = ("albert", "data2vec-vision", "deberta-v2", "flaubert", "ibert", "longformer", "luke")
REFUSED = (
    "bit", "cpmant", "fsmt", "gemma3n_text", "hrm_text", "imagegpt", "lilt", "mllama", "perceiver", "pix2struct",
    "qwen2_vl_text", "qwen3_vl", "reformer", "segformer", "squeezebert", "timesformer", "trocr", "voxtral",
    "wav2vec2-bert", "xlnet", "zamba",
)  # fmt: skip
CHECKED = (
    "albert", "bart", "beit", "bert", "bloom", "clip", "convnext", "deberta-v2", "dinov2", "distilbert", "electra",
    "falcon", "gemma2", "gpt_neox", "hubert", "led", "llava", "mamba", "mistral", "modernbert", "mpnet", "phi",
    "qwen3_next", "roberta", "siglip", "wav2vec2", "vit", "whisper", "xlm-roberta", "xlnet",
)  # fmt: skip
TABLE = {
    row["model_type"]: row
    for row in json.loads(files("mango.architectures").joinpath("support.json").read_text("utf-8"))["rows"]
}


def test_every_family_with_a_handler_is_in_the_table() -> None:
    assert set(ARCHITECTURES) <= set(TABLE)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", sorted({*CHECKED, *(name for name in ARCHITECTURES if TABLE[name]["host"])}))
def test_blocks_are_found_replayed_and_replaced_to_the_bit(model_type: str) -> None:
    found, wanted = check(model_type, fuse=False), TABLE[model_type]
    assert (found.built, found.host, found.family) == (True, wanted["host"], wanted["family"]), found.reason
    if found.task not in fusing.EXPERTS:
        assert found.guest == wanted["guest"], found.reason
    assert found.stacks == wanted["stacks"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", FUSED)
def test_fused_models_decode_with_a_cache_as_without(model_type: str) -> None:
    found = check(model_type)
    assert (found.host, found.guest, found.cached_decode) == (True, True, True), found.reason
    assert TABLE[model_type]["cached_decode"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", AT_ONCE)
def test_models_that_read_all_at_once_are_fused(model_type: str) -> None:
    found = check(model_type)
    assert (found.guest, found.fused) == (True, True), found.reason
    assert TABLE[model_type]["fused"]


@pytest.mark.filterwarnings("ignore")
def test_a_buffer_that_several_parts_share_is_saved_and_opened() -> None:
    found = check("mistral_large4")
    assert found.cached_decode, found.reason


def test_a_guest_was_fused_as_an_expert_where_its_task_has_experts() -> None:
    for row in TABLE.values():
        if row["task"] in fusing.EXPERTS:
            as_trunk_alone = "not fused as trunk" in (row["reason"] or "")
            assert row["guest"] == (row["fused"] or as_trunk_alone), row["model_type"]


def test_what_is_not_supported_has_a_reason() -> None:
    for row in support_table().values():
        assert (row.host and row.guest and row.cached_decode) == (row.reason is None), row.model_type


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", REFUSED)
def test_asking_for_what_is_not_supported_gives_the_tables_reason(model_type: str, tmp_path: Path) -> None:
    reason = support_table()[model_type].reason
    assert reason is not None
    with pytest.raises(MangoError) as asked:
        _ask(build(model_type), tmp_path, trunk="not fused as trunk" in reason)
    said = one_line(asked.value).replace(f"{tmp_path}/", "")
    # A type that the table knows to have no blocks is refused before it is built, with all of the reason.
    assert said in reason or said.endswith(reason)


def _ask(tiny: Tiny, folder: Path, *, trunk: bool) -> None:
    """Extract a model and one that it might be fused with, and fuse them."""
    known = tiny.task in fusing.PARTNERS
    fusing._save(tiny.model, folder / "typed")
    fusing._save(fusing.PARTNERS[tiny.task](tiny) if known else build("llama").model, folder / "plain")
    models = {name: ModelSource(source=str(folder / name)) for name in ("typed", "plain")}
    store = extract(models, folder / "store", "reference")
    names = ("typed", "plain") if trunk else ("plain", "typed")
    task = tiny.task if known else "causal-lm"
    fusion = FusionParams.model_validate({"trunk": names[0], "experts": [names[1]], "task": task})
    build_fused(store, fusion, RouterParams(), AdapterParams(type="linear"), seed=0)
