"""Calibration text: what is drawn from files, folders and corpora, and how wrong ones are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mango.errors import MergeError
from mango.merging.sections import CalibrationSection
from mango.merging.texts import CalibrationText, _blocks, draw_text
from mango.merging.vocabularies import Vocabulary
from tests.merging.conftest import MakeModel

LINE = "the cat sat on the mat "


@pytest.fixture
def vocabulary(make_model: MakeModel) -> Vocabulary:
    found = Vocabulary.of(make_model("vocabulary"))
    assert found is not None
    return found


def draw(vocabulary: Vocabulary, data: Path, **changes: object) -> CalibrationText:
    section = CalibrationSection.model_validate({"data": data, "sequences": 4, "tokens": 8, **changes})
    return draw_text(section, section, vocabulary)


def test_the_seed_decides_what_is_drawn(tmp_path: Path, vocabulary: Vocabulary) -> None:
    words = ("the", "cat", "sat", "on", "mat")
    lines = [json.dumps({"text": " ".join(words[(i >> j) % 5] for j in range(5))}) for i in range(64)]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    first, again, other = (draw(vocabulary, tmp_path / "text.jsonl", seed=seed) for seed in (0, 0, 5))
    assert first.input_ids.shape == (4, 8)
    assert torch.equal(first.input_ids, again.input_ids)
    assert not torch.equal(first.input_ids, other.input_ids)


def test_tokens_come_with_the_bytes_that_they_stand_for(tmp_path: Path, vocabulary: Vocabulary) -> None:
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": LINE.strip(), "more": 1}) + "\n\n")
    found = draw(vocabulary, tmp_path / "text.jsonl", sequences=1, tokens=4)
    tokens = vocabulary.tokens
    whole = draw(vocabulary, tmp_path / "text.jsonl", sequences=1, tokens=int(_count(vocabulary, LINE.strip())) + 1)
    assert whole.num_bytes.sum() == len(LINE.strip())
    assert int(whole.input_ids[0, -1]) == tokens["<s>"]  # the end of the text
    assert int(whole.num_bytes[0, -1]) == 0
    assert torch.equal(found.input_ids[0], whole.input_ids[0, :4])


def _count(vocabulary: Vocabulary, text: str) -> int:
    return len(vocabulary.backend().encode(text).ids)


def test_a_folder_gives_all_of_its_text_files(tmp_path: Path, vocabulary: Vocabulary) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("a.txt", "deep/b.md"):
        (tmp_path / name).write_text(LINE)
    (tmp_path / "c.bin").write_bytes(b"\xff\xfe")
    per_file = _count(vocabulary, LINE) + 1
    assert draw(vocabulary, tmp_path, sequences=1, tokens=2 * per_file).input_ids.shape == (1, 2 * per_file)
    with pytest.raises(MergeError, match=rf"has {2 * per_file} tokens, and 1 sequences of {2 * per_file + 1} take"):
        draw(vocabulary, tmp_path, sequences=1, tokens=2 * per_file + 1)


def test_text_is_cut_behind_lines_and_between_characters(tmp_path: Path) -> None:
    for text in ("a line\n" * 3000, "ä" * 9001 + "x", "€" * 5000, "𝄞" * 3000 + "\n" + "b" * 5000):
        (tmp_path / "text.txt").write_text(text)
        parts = [part() for part in _blocks(tmp_path / "text.txt")]
        assert "".join(parts) == text
        assert len(parts) > 1
    (tmp_path / "text.txt").write_text("a line\n" * 3000)
    assert all(part().endswith("\n") for part in _blocks(tmp_path / "text.txt"))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rows = {
        "doc_id": [str(i) for i in range(8)],
        "domain": ["cats"] * 6 + ["mats"] * 2,
        "text": ["cat " * 24] * 6 + ["mat " * 24] * 2,
        "source": ["made"] * 8,
        "licence": ["CC0-1.0"] * 8,
    }
    (tmp_path / "corpus").mkdir()
    pq.write_table(pa.table(rows), tmp_path / "corpus" / "train.parquet")
    return tmp_path / "corpus"


def test_a_corpus_gives_equally_much_of_every_domain(corpus: Path, vocabulary: Vocabulary) -> None:
    found = draw(vocabulary, corpus, sequences=5)
    rows = [vocabulary.backend().decode(row) for row in found.input_ids.tolist()]
    assert ["c" in row for row in rows] == [True, True, True, False, False]
    assert ["m" in row for row in rows] == [False, False, False, True, True]
    alone = draw(vocabulary, corpus, sequences=2, domains=["mats"])
    assert "c" not in vocabulary.backend().decode(alone.input_ids.reshape(-1).tolist())


@pytest.mark.parametrize(
    ("name", "content", "changes", "message"),
    [
        ("nowhere", None, {}, r"nowhere does not exist; name a text file"),
        ("empty.txt", b"", {}, r"empty\.txt holds no text"),
        ("bad.txt", b"the cat \xff", {}, r"bad\.txt: byte 8 is not UTF-8"),
        ("bad.jsonl", b'{"text": "the"}\n{"txt": 1}\n', {}, r'bad\.jsonl:2: wanted \{"text": "\.\.\."\}'),
        ("bad.jsonl", b"{\n", {}, r"bad\.jsonl:1: is no JSON"),
        ("text.txt", b"the cat", {"domains": ["cats"]}, r"calibration\.domains: .* is no corpus"),
        ("text.txt", b"the cat", {"split": "test"}, r"calibration\.split: .* is no corpus"),
        ("corpus", None, {"domains": ["dogs"]}, r"no document of domain 'dogs'; found cats, mats"),
        ("corpus", None, {"split": "test"}, r"holds no file in \.txt, \.md, \.jsonl and no test\.parquet"),
    ],
)
def test_text_that_cannot_be_had_is_refused(
    tmp_path: Path, corpus: Path, vocabulary: Vocabulary, name: str, content: bytes | None, changes: dict, message: str
) -> None:
    assert corpus.is_dir()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(MergeError, match=message):
        draw(vocabulary, tmp_path / name, **changes)
