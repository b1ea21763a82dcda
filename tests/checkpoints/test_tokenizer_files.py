from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from mango.checkpoints import copy_tokenizer, tokenizer_sha256
from mango.errors import CheckpointError

TEXTS = ["the cat sat on the mat", "the dog sat on the log", "cats and dogs"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=60, special_tokens=["<s>"], show_progress=False)
    )
    (tmp_path / "model").mkdir()
    tokenizer.save(str(tmp_path / "model" / "tokenizer.json"))
    return tmp_path / "model"


def changed(folder: Path, change: object) -> Path:
    copy = folder.with_name("changed")
    copy.mkdir()
    document = json.loads((folder / "tokenizer.json").read_text())
    change(document)  # type: ignore[operator]
    (copy / "tokenizer.json").write_text(json.dumps(document))
    return copy


def reverse_vocabulary(document: dict) -> None:
    document["model"]["vocab"] = dict(reversed(document["model"]["vocab"].items()))


def merges_as_text(document: dict) -> None:
    document["model"]["merges"] = [" ".join(pair) for pair in document["model"]["merges"]]


def pad(document: dict) -> None:
    document["padding"] = {"strategy": "BatchLongest"}


def swap_two_ids(document: dict) -> None:
    vocabulary = document["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]


def swap_two_merges(document: dict) -> None:
    merges = document["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]


def add_token(document: dict) -> None:
    document["added_tokens"].append({"content": "<new>", "id": 60})


@pytest.mark.parametrize("change", [reverse_vocabulary, merges_as_text, pad])
def test_copies_of_one_tokenizer_match(folder: Path, change: object) -> None:
    assert tokenizer_sha256(changed(folder, change)) == tokenizer_sha256(folder)


@pytest.mark.parametrize("change", [swap_two_ids, swap_two_merges, add_token])
def test_different_vocabularies_do_not_match(folder: Path, change: object) -> None:
    assert tokenizer_sha256(changed(folder, change)) != tokenizer_sha256(folder)


def test_vocabulary_files_match_the_tokenizer_made_of_them(folder: Path) -> None:
    document = json.loads((folder / "tokenizer.json").read_text())
    parts = folder.with_name("parts")
    parts.mkdir()
    (parts / "vocab.json").write_text(json.dumps(document["model"]["vocab"]))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in document["model"]["merges"])]
    (parts / "merges.txt").write_text("\n".join(lines) + "\n")
    assert tokenizer_sha256(parts) == tokenizer_sha256(folder)


def test_unigram_scores_count(tmp_path: Path) -> None:
    for name, score in (("a", -1.0), ("b", -1.0), ("c", -2.0)):
        (tmp_path / name).mkdir()
        document = {"model": {"type": "Unigram", "vocab": [["<unk>", 0.0], ["x", score]]}}
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(document))
    assert tokenizer_sha256(tmp_path / "a") == tokenizer_sha256(tmp_path / "b")
    assert tokenizer_sha256(tmp_path / "a") != tokenizer_sha256(tmp_path / "c")


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.model"])
def test_older_forms_are_told_apart(tmp_path: Path, name: str) -> None:
    for folder, content in (("a", "x\ny\n"), ("b", "y\nx\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(content)
    assert tokenizer_sha256(tmp_path / "a") != tokenizer_sha256(tmp_path / "b")


@pytest.mark.parametrize("text", ["{", "{}", '{"model": {"vocab": 3}}', '{"model": {"vocab": [[1]]}}'])
def test_a_malformed_tokenizer_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: "):
        tokenizer_sha256(tmp_path)


def test_a_folder_without_tokenizer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        tokenizer_sha256(tmp_path)
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        copy_tokenizer(tmp_path, tmp_path)


def test_copying_takes_the_tokenizer_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    for name in ("tokenizer_config.json", "chat_template.jinja", "generation_config.json", "config.json", "code.py"):
        (folder / name).write_text("{}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool.jinja").write_text("x")
    (tmp_path / "copy").mkdir()
    names = copy_tokenizer(folder, tmp_path / "copy")
    assert names == [
        "additional_chat_templates/tool.jinja",
        "chat_template.jinja",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert all((tmp_path / "copy" / name).read_bytes() == (folder / name).read_bytes() for name in names)
    assert "generation_config.json" not in copy_tokenizer(folder, tmp_path / "copy", generation_config=False)
