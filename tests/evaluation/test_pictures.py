"""Trunk and fused model on pairs of image and text, and what is wrong with pairs."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from mango.blocks import BlockStore, extract, load_source
from mango.checkpoints import ModelSource
from mango.corpus import CorpusParams
from mango.corpus.pictures import PairReader, read_pairs
from mango.errors import CheckpointError, DataError
from mango.evaluation import Subjects
from mango.evaluation.pictures import evaluate_pictures
from mango.evaluation.report_pictures import pictures_section
from mango.evaluation.schema_pictures import Pictures
from tests.fusion.heads import TOKEN, fuse_heads
from tests.fusion.models import to_expert
from tests.training.toys import make_tokenizer

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Sighted:
    root: Path
    store: BlockStore

    def measure(self, fused: str, **images: Any) -> dict[str, Any]:
        corpus = CorpusParams.model_validate({"images": {"path": self.root / "pairs", **images}})
        subjects = Subjects(self.root / fused, self.store, self.root / "none", self.root / "none")
        found = evaluate_pictures(subjects, corpus, "llava", device=CPU)
        assert found is not None
        return found


def write_pairs(folder: Path, index: str = "metadata.jsonl") -> None:
    """Write six handwritten digits, as PNG files, with their values in text."""
    folder.mkdir(parents=True)
    digits = load_digits()
    rows = [{"file_name": f"{i}.png", "text": f"it is {digits.target[i]} ."} for i in range(6)]
    for i, row in enumerate(rows):
        Image.fromarray((digits.images[i] * 15).astype("uint8")).save(folder / row["file_name"])
    lines = [json.dumps(row) for row in rows]
    if index.endswith("csv"):
        lines = ["file_name,text", *(f"{row['file_name']},{row['text']}" for row in rows)]
    (folder / index).write_text("\n".join(lines))


@pytest.fixture(scope="module")
def sighted(tmp_path_factory: pytest.TempPathFactory) -> Sighted:
    root = tmp_path_factory.mktemp("pictures")
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    sizes: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    }  # fmt: skip
    text: dict[str, Any] = {**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 128, "pad_token_id": 0}
    eyes = CLIPVisionConfig(**{**sizes, "num_hidden_layers": 3}, image_size=16, patch_size=8)
    place = tokenizer.convert_tokens_to_ids("<image>")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        models = {
            "llava": LlavaForConditionalGeneration(
                LlavaConfig(text_config=LlamaConfig(**text), vision_config=eyes, image_token_index=place)
            ),
            "llama": LlamaForCausalLM(LlamaConfig(**{**text, "hidden_size": 24})),
        }
    for name, model in models.items():
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    pixels = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    LlavaProcessor(
        pixels, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1
    ).save_pretrained(root / "llava")
    sources = {name: ModelSource(source=str(root / name)) for name in models}
    store = extract(sources, root / "store", "reference")
    write_pairs(root / "pairs")
    for name, place in (("seeing", 0), ("blind", 1)):
        fused: Any = fuse_heads(store, "image-text-to-text", "llava", ["llama"], TOKEN)
        to_expert(fused, place)
        fused.save_pretrained(root / name)
    return Sighted(root, store)


def test_a_fused_model_that_is_its_trunk_sees_what_it_saw(sighted: Sighted) -> None:
    found = sighted.measure("seeing")
    trunk, soft, hard = found["systems"]
    assert [one["system"] for one in found["systems"]] == ["trunk", "fused_soft", "fused_hard"]
    assert (found["pairs"], found["text_bytes"]) == (6, 6 * len("it is 0 ."))
    for one in (soft, hard):
        assert one["own_image"] == pytest.approx(trunk["own_image"], abs=1e-4)
    assert trunk["own_image"] != trunk["other_image"]  # the image matters
    assert (soft["cost"], hard["cost"]) == (2, 1)
    assert "Fused, hard top-1" in pictures_section(Pictures.model_validate_json(json.dumps(found)))


def test_one_that_listens_to_text_alone_is_told(sighted: Sighted) -> None:
    trunk, _, hard = sighted.measure("blind", limit=3)["systems"]
    assert abs(hard["own_image"] - trunk["own_image"]) > 1e-3


@torch.no_grad()
def test_the_loss_is_that_of_the_texts_tokens(sighted: Sighted) -> None:
    pairs = read_pairs(sighted.root / "pairs")
    reader = PairReader(sighted.root / "llava", "{image}")
    model = load_source(sighted.store, "llava")
    bits = 0.0
    for pair in pairs:
        own = reader.processor.tokenizer(pair.text, add_special_tokens=False)["input_ids"]
        with Image.open(pair.image) as image:
            inputs = reader.processor(images=image.convert("RGB"), text="<image>" + pair.text, return_tensors="pt")
        logits = model(**inputs).logits[0]
        assert inputs["input_ids"][0].tolist()[-len(own) :] == own
        bits += float(cross_entropy(logits[-len(own) - 1 : -1], torch.tensor(own), reduction="sum")) / math.log(2)
    found = sighted.measure("seeing")
    assert found["systems"][0]["own_image"] == pytest.approx(bits / found["text_bytes"], rel=1e-5)


def test_both_kinds_of_index_say_the_same(tmp_path: Path) -> None:
    write_pairs(tmp_path / "a")
    write_pairs(tmp_path / "b", "metadata.csv")
    first, second = ([(p.image.name, p.text) for p in read_pairs(tmp_path / n)] for n in "ab")
    assert first == second
    assert len(first) == 6


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file": "0.png", "text": "a"}', r"metadata\.jsonl: entry 1: missing column file_name; it has file, text"),
        ('{"file_name": "0.png", "caption": "a"}', r"entry 1: missing column text; it has caption, file_name"),
        ('{"file_name": "0.png", "text": " "}', r"entry 1: text is ' ', wanted a text"),
        ('{"file_name": "none.png", "text": "a"}', r"entry 1: image .*none\.png is missing"),
        ('{"file_name": "../0.png", "text": "a"}', r"'\.\./0\.png' leads out of"),
        ('{"file_name": ', r"metadata\.jsonl: cannot be read as jsonl"),
        ("[1]", r"entry 1 is no object with file_name and text"),
        ('{"file_name": "0.png", "text": "a"}', r"has 1 pairs, wanted at least two"),
    ],
)
def test_pairs_that_are_wrong(tmp_path: Path, line: str, message: str) -> None:
    write_pairs(tmp_path / "pairs")
    (tmp_path / "pairs" / "metadata.jsonl").write_text(line)
    with pytest.raises(DataError, match=message):
        read_pairs(tmp_path / "pairs")


def test_what_cannot_be_read(sighted: Sighted, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"wanted one index, metadata\.jsonl or metadata\.csv, found neither"):
        read_pairs(tmp_path)
    with pytest.raises((DataError, CheckpointError), match=r"llama: holds .*no processor of images and text"):
        PairReader(sighted.root / "llama", "{image}")
    with pytest.raises(DataError, match=r"corpus\.images\.prompt: 'look', wanted one \{image\}"):
        PairReader(sighted.root / "llava", "look")
    broken = tmp_path / "broken.png"
    broken.write_bytes((sighted.root / "pairs" / "0.png").read_bytes()[:60])
    with pytest.raises(DataError, match=r"broken\.png: is no image that can be read"):
        PairReader(sighted.root / "llava", "{image}").read(broken, "it is")
