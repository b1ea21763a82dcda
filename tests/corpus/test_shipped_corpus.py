"""The corpus that the repository ships is what its provenance says, and its splits share nothing."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mango.corpus import SPLITS, CorpusParams, read_split

DATA = Path(__file__).parents[2] / "data"


@pytest.fixture(scope="module")
def near() -> ModuleType:
    spec = importlib.util.spec_from_file_location("near_duplicates", DATA / "near_duplicates.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shipped() -> dict[str, list[dict[str, Any]]]:
    return {split: pq.read_table(DATA / "corpus" / f"{split}.parquet").to_pylist() for split in SPLITS}


def test_provenance_and_files_agree(shipped: dict[str, list[dict[str, Any]]]) -> None:
    provenance = json.loads((DATA / "corpus" / "provenance.json").read_text())
    for split, by_domain in provenance["splits"].items():
        documents = Counter(row["domain"] for row in shipped[split])
        size: Counter[str] = Counter()
        for row in shipped[split]:
            size[row["domain"]] += len(row["text"].encode())
        assert by_domain == {d: {"documents": documents[d], "bytes": size[d]} for d in documents}
    licences = {(row["source"], row["licence"]) for rows in shipped.values() for row in rows}
    assert licences == {(source["source"], source["licence"]) for source in provenance["sources"]}


def test_size_and_text_are_within_bounds(shipped: dict[str, list[dict[str, Any]]]) -> None:
    texts = [row["text"] for rows in shipped.values() for row in rows]
    assert sum(len(text.encode()) for text in texts) < 12_000_000
    assert not [text[:40] for text in texts if "\0" in text or "\ufffd" in text]
    assert min(Counter(row["domain"] for row in shipped["test"]).values()) >= 20


@pytest.mark.parametrize("split", SPLITS)
def test_the_library_reads_it(split: str) -> None:
    dataset = read_split(CorpusParams(path=DATA / "corpus"), split)
    assert set(dataset["domain"]) == {"code", "novels", "manuals", "maths"}


@pytest.mark.slow
def test_no_split_has_a_near_duplicate_in_another(shipped: dict[str, list[dict[str, Any]]], near: ModuleType) -> None:
    rows = [(split, row) for split in SPLITS for row in shipped[split]]
    assert len({row["doc_id"] for _, row in rows}) == len(rows)
    pairs = near.similar_pairs([near.shingles(row["text"]) for _, row in rows], 0.5)
    crossing = [(rows[a][1]["doc_id"], rows[b][1]["doc_id"]) for a, b in pairs if rows[a][0] != rows[b][0]]
    assert pairs, "near-duplicates are kept on one side, not dropped: some must be found"
    assert not crossing


@settings(derandomize=True, max_examples=200, deadline=None)
@given(
    st.lists(st.frozensets(st.integers(0, 9).map(lambda n: (str(n),)), min_size=1), max_size=8),
    st.sampled_from([0.3, 0.5, 0.8, 1.0]),
)
def test_similar_pairs_are_those_that_brute_force_finds(
    near: ModuleType, sets: list[frozenset[tuple[str, ...]]], threshold: float
) -> None:
    expected = {
        (a, b)
        for b in range(len(sets))
        for a in range(b)
        if len(sets[a] & sets[b]) >= threshold * len(sets[a] | sets[b])
    }
    assert set(near.similar_pairs(sets, threshold)) == expected


def test_components_join_chains(near: ModuleType) -> None:
    assert near.components(6, [(0, 3), (3, 5), (1, 2)]) == [[0, 3, 5], [1, 2], [4]]
