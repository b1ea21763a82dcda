from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mango.corpus import COLUMNS

TEXTS = {
    "code": "def add(a, b):\n    return a + b\n\n\nclass Box:\n    pass\n",
    "novels": "It was a truth — universally acknowledged — that “naïve” café-goers read novels.\n",
    "manuals": "Wählen Sie für größere Übersicht die Schaltfläche Öffnen. Schließen Sie das Menü.\n",
}


def _rows(documents: int = 12, domains: tuple[str, ...] = ("code", "novels", "manuals")) -> list[dict[str, Any]]:
    return [
        {
            "doc_id": f"{domain}/{number}",
            "domain": domain,
            "text": f"{domain} {number}: " + TEXTS[domain] * (number % 3 + 1),
            "source": "made",
            "licence": "CC0-1.0",
        }
        for number in range(documents)
        for domain in domains
    ]


def _write(path: Path, table: list[dict[str, Any]], schema: pa.Schema | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = schema or pa.schema([(column, pa.string()) for column in COLUMNS])
    pq.write_table(pa.Table.from_pylist(table, schema=schema), path)
    return path


@pytest.fixture
def made_rows() -> Callable[..., list[dict[str, Any]]]:
    return _rows


@pytest.fixture
def write() -> Callable[..., Path]:
    return _write


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for split in ("train", "validation", "test"):
        made = [{**row, "doc_id": f"{split}/{row['doc_id']}"} for row in _rows()]
        _write(tmp_path / "corpus" / f"{split}.parquet", made)
    return tmp_path / "corpus"


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    def make(*, trim_offsets: bool = True, prefix_space: bool = False, eos: bool = True) -> PreTrainedTokenizerFast:
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
        inner.decoder = decoders.ByteLevel()
        inner.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
        trainer = trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<|end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        inner.train_from_iterator(TEXTS.values(), trainer)
        return PreTrainedTokenizerFast(tokenizer_object=inner, **({"eos_token": "<|end|>"} if eos else {}))

    return make
