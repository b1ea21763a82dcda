from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from mango.corpus import token_bytes, tokenize
from mango.errors import DataError

MakeTokenizer = Callable[..., PreTrainedTokenizerFast]
TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60)


@pytest.mark.parametrize("trim_offsets", [True, False])
@pytest.mark.parametrize("prefix_space", [True, False])
def test_bytes_add_up_for_every_text(make_tokenizer: MakeTokenizer, trim_offsets: bool, prefix_space: bool) -> None:
    tokenizer = make_tokenizer(trim_offsets=trim_offsets, prefix_space=prefix_space)

    @settings(derandomize=True, max_examples=100, deadline=None)
    @given(st.lists(TEXT, min_size=1, max_size=3))
    def check(texts: list[str]) -> None:
        for text, (ids, sizes) in zip(texts, tokenize(tokenizer, texts), strict=True):
            assert ids.dtype == sizes.dtype == np.int64
            assert len(ids) == len(sizes) > 0
            assert sizes.min() >= 0
            assert sizes.sum() == len(text.encode())

    check()


def test_a_character_that_tokens_share_counts_once(make_tokenizer: MakeTokenizer) -> None:
    ((ids, sizes),) = tokenize(make_tokenizer(), ["日a"])
    assert len(ids) == 4  # three single bytes and the letter
    assert sizes.tolist() == [3, 0, 0, 1]


def test_a_space_that_offsets_leave_out_counts_for_the_later_token() -> None:
    assert token_bytes("ü b ", [1, 3]).tolist() == [2, 3]


def test_one_result_for_each_text_and_no_token_for_no_text(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    texts = ["", *(f"text {number}" for number in range(150)), ""]
    results = list(tokenize(tokenizer, texts))
    assert len(results) == len(texts)
    assert [tokenizer.decode(ids) for ids, _ in results] == texts
    assert len(results[0][0]) == len(results[0][1]) == 0


def test_a_tokenizer_without_offsets_is_refused() -> None:
    from transformers import ByT5Tokenizer

    with pytest.raises(DataError, match="ByT5Tokenizer gives no character offsets"):
        next(tokenize(ByT5Tokenizer(), ["text"]))


def test_a_text_that_becomes_no_token_is_an_error(make_tokenizer: MakeTokenizer) -> None:
    from tokenizers import normalizers

    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Strip()
    with pytest.raises(DataError, match=r"turns the text '  ' into no token"):
        list(tokenize(tokenizer, ["  "]))
