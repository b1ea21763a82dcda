from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from mango.corpus import CorpusParams, Sequences, concatenate, pack, read_split, switching
from mango.errors import DataError

MakeTokenizer = Callable[..., PreTrainedTokenizerFast]
EOS = 0


def equal(a: Sequences, b: Sequences) -> bool:
    return all(torch.equal(getattr(a, n), getattr(b, n)) for n in ("input_ids", "domain_ids", "num_bytes"))


@pytest.fixture
def params(corpus: Path) -> CorpusParams:
    return CorpusParams(path=corpus, sequence_length=32, segment_length=8)


@pytest.fixture
def packed(params: CorpusParams, make_tokenizer: MakeTokenizer) -> dict[str, Sequences]:
    return pack(params, "test", make_tokenizer(), seed=0)


def test_packs_whole_documents_with_their_ends(params: CorpusParams, make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    packed = pack(params, "test", tokenizer, seed=0)
    documents = read_split(params, "test")
    assert list(packed) == ["code", "manuals", "novels"]
    for index, (domain, sequences) in enumerate(packed.items()):
        texts = {text for text, name in zip(documents["text"], documents["domain"], strict=True) if name == domain}
        assert sequences.domains == ("code", "manuals", "novels")
        assert sequences.sequence_length == 32
        assert bool((sequences.domain_ids == index).all())
        decoded = tokenizer.decode(sequences.input_ids.flatten()).split("<|end|>")
        assert set(decoded[:-1]) <= texts
        assert decoded[-1] == "" or any(text.startswith(decoded[-1].rstrip("\ufffd")) for text in texts)
        assert bool((sequences.num_bytes[sequences.input_ids == EOS] == 0).all())
        whole = sum(len(text.encode()) for text in texts)
        left_over = whole - int(sequences.num_bytes.sum())
        assert 0 <= left_over < 32 * max(int(sequences.num_bytes.max()), 1)


def test_bytes_are_those_of_the_text_that_was_packed(packed: dict[str, Sequences]) -> None:
    sequences = packed["code"]  # ASCII: each token's bytes are its characters
    assert bool((sequences.num_bytes[sequences.input_ids != EOS] >= 1).all())
    assert int((sequences.input_ids == EOS).sum()) > 0


def test_the_seed_decides_the_order(params: CorpusParams, make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    first, again, other = (pack(params, "test", tokenizer, seed=seed)["novels"] for seed in (3, 3, 4))
    assert equal(first, again)
    assert not equal(first, other)


def test_a_domain_is_packed_alike_whatever_stands_beside_it(
    params: CorpusParams, make_tokenizer: MakeTokenizer
) -> None:
    tokenizer = make_tokenizer()
    alone = pack(params.model_copy(update={"domains": ("novels",)}), "test", tokenizer, seed=0)["novels"]
    beside = pack(params, "test", tokenizer, seed=0)["novels"]
    assert torch.equal(alone.input_ids, beside.input_ids)
    assert alone.domains == ("novels",)


def test_a_sample_is_balanced_and_has_no_sequence_twice(params: CorpusParams, make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    everything = pack(params, "test", tokenizer, seed=0)
    smallest = min(len(sequences) for sequences in everything.values())
    for wanted, count in ((5, 5), (10_000, smallest)):
        sample = pack(params, "test", tokenizer, seed=0, max_sequences_per_domain=wanted)
        for domain, sequences in sample.items():
            assert len(sequences) == count
            available = Counter(map(tuple, everything[domain].input_ids.tolist()))
            assert not Counter(map(tuple, sequences.input_ids.tolist())) - available


def test_the_order_of_domains_is_the_users(params: CorpusParams, make_tokenizer: MakeTokenizer) -> None:
    chosen = params.model_copy(update={"domains": ("novels", "code")})
    packed = pack(chosen, "test", make_tokenizer(), seed=0)
    assert list(packed) == ["novels", "code"]
    assert bool((packed["code"].domain_ids == 1).all())


def test_what_cannot_be_packed_is_refused(params: CorpusParams, make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(DataError, match=r"has no end-of-text token \(eos_token\)"):
        pack(params, "test", make_tokenizer(eos=False), seed=0)
    with pytest.raises(DataError, match=r"domain 'code' of test has fewer than corpus\.sequence_length=100000 tokens"):
        pack(params.model_copy(update={"sequence_length": 100_000}), "test", make_tokenizer(), seed=0)
    with pytest.raises(DataError, match="max_sequences_per_domain is 0"):
        pack(params, "test", make_tokenizer(), seed=0, max_sequences_per_domain=0)


@pytest.mark.parametrize("segment_length", [8, 12, 31])
def test_text_switches_domain_at_every_segment(packed: dict[str, Sequences], segment_length: int) -> None:
    mixed = switching(packed, segment_length=segment_length, seed=0)
    assert mixed.sequence_length == 32
    for row in mixed.domain_ids.tolist():
        segments = [set(row[start : start + segment_length]) for start in range(0, 32, segment_length)]
        assert all(len(segment) == 1 for segment in segments)
        assert all(a != b for a, b in pairwise(segments))


def test_segments_keep_their_tokens_and_bytes_and_none_is_used_twice(packed: dict[str, Sequences]) -> None:
    mixed = switching(packed, segment_length=8, seed=0)
    available = {
        domain: Counter(
            (tuple(ids), tuple(sizes))
            for ids, sizes in zip(
                sequences.input_ids.reshape(-1, 8).tolist(), sequences.num_bytes.reshape(-1, 8).tolist(), strict=True
            )
        )
        for domain, sequences in packed.items()
    }
    used: dict[str, Counter[Any]] = {domain: Counter() for domain in packed}
    columns = (mixed.domain_ids, mixed.input_ids, mixed.num_bytes)
    for domains, ids, sizes in zip(*(column.reshape(-1, 8).tolist() for column in columns), strict=True):
        used[mixed.domains[domains[0]]][tuple(ids), tuple(sizes)] += 1
    for domain, counter in used.items():
        assert counter
        assert not counter - available[domain]


def test_domains_have_equal_shares_of_switching_text(packed: dict[str, Sequences]) -> None:
    share = switching(packed, segment_length=8, seed=0).domain_ids.flatten().bincount(minlength=3).float()
    assert (share / share.sum() - 1 / 3).abs().max() < 0.1


def test_switching_text_follows_the_seed(packed: dict[str, Sequences]) -> None:
    first, again, other = (switching(packed, segment_length=8, max_sequences=4, seed=seed) for seed in (0, 0, 1))
    assert len(first) == 4
    assert equal(first, again)
    assert not equal(first, other)


def test_switching_text_that_cannot_be_made_is_refused(packed: dict[str, Sequences]) -> None:
    with pytest.raises(DataError, match="at least 2 domains, found 1"):
        switching({"code": packed["code"]}, segment_length=8, seed=0)
    with pytest.raises(DataError, match="segment_length=32 leaves no switch in sequences of 32 tokens"):
        switching(packed, segment_length=32, seed=0)
    with pytest.raises(DataError, match="max_sequences is 0"):
        switching(packed, segment_length=8, max_sequences=0, seed=0)
    few = {domain: sequences.select([]) for domain, sequences in packed.items()}
    with pytest.raises(DataError, match="too little text for one sequence"):
        switching(few, segment_length=8, seed=0)
    other = Sequences(*(torch.zeros(1, 16, dtype=torch.int64) for _ in range(3)), packed["code"].domains)
    with pytest.raises(DataError, match="domain 'novels' was packed otherwise"):
        switching({**packed, "novels": other}, segment_length=8, seed=0)


def test_sequences_check_what_they_hold() -> None:
    ones = torch.ones(2, 3, dtype=torch.int64)
    good = Sequences(ones, ones, ones, ("a", "b"))
    assert (len(good), good.sequence_length) == (2, 3)
    with pytest.raises(DataError, match=r"num_bytes is torch\.float32 of shape \[2, 3\]"):
        Sequences(ones, ones, ones.float(), ("a", "b"))
    with pytest.raises(DataError, match=r"domain_ids is torch\.int64 of shape \[1, 3\]"):
        Sequences(ones, ones[:1], ones, ("a", "b"))
    with pytest.raises(DataError, match="domain_ids reach from 1 to 1, but there are 1 domains"):
        Sequences(ones, ones, ones, ("a",))
    with pytest.raises(DataError, match="num_bytes has a negative entry, -1"):
        Sequences(ones, ones, -ones, ("a", "b"))
    with pytest.raises(DataError, match="a domain is named twice in a, a"):
        Sequences(ones, ones, ones, ("a", "a"))


def test_concatenate_keeps_the_order_and_refuses_what_does_not_fit(packed: dict[str, Sequences]) -> None:
    joined = concatenate([packed["novels"], packed["code"]])
    assert equal(joined.select(range(len(packed["novels"]))), packed["novels"])
    assert equal(joined.select(range(len(packed["novels"]), len(joined))), packed["code"])
    with pytest.raises(DataError, match="no sequences were given"):
        concatenate([])
    ones = torch.zeros(1, 3, dtype=torch.int64)
    with pytest.raises(DataError, match="sequences of 3 tokens over code, manuals, novels do not fit"):
        concatenate([packed["code"], Sequences(ones, ones, ones, packed["code"].domains)])
