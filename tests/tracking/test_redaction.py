"""Secrets never reach the store, and what is no secret is kept."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mango.tracking.redaction import looks_secret, redact, redact_text
from mango.tracking.values import flatten, redact_tree


@pytest.mark.parametrize(
    "name",
    [
        "hub.token",
        "hubToken",
        "HF_TOKEN",
        "api_key",
        "apiKey",
        "s3.secret_access_key",
        "db.password",
        "credentials.user",
    ],
)
def test_names_of_secrets(name: str) -> None:
    assert looks_secret(name)


@pytest.mark.parametrize(
    "name",
    ["router.token.window", "router.type", "tokens", "num_key_value_heads", "pad_token", "max_new_tokens", "monkey"],
)
def test_names_of_parameters(name: str) -> None:
    assert not looks_secret(name)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("postgresql://me:hunter2@db/x", "postgresql://***@db/x"),
        ("see https://hunter2@host/path", "see https://***@host/path"),
        ("hf_abcdefghijklmnopqrst", "***"),
        ("AKIAABCDEFGHIJKLMNOP used", "*** used"),
        ("https://host/?token=hunter2&page=2", "https://host/?token=***&page=2"),
        (
            "dvc exp run -S hub.token='hunter 2' -S router.type=token",
            "dvc exp run -S hub.token=*** -S router.type=token",
        ),
        ("--max-tokens=5", "--max-tokens=5"),
        ("git checkout abc && dvc repro", "git checkout abc && dvc repro"),
    ],
)
def test_text_is_redacted_by_shape(text: str, kept: str) -> None:
    assert redact_text(text) == kept


@given(st.text(st.characters(codec="ascii", exclude_categories=["C", "Z"], exclude_characters="/"), min_size=1))
def test_no_password_survives_in_an_address(password: str) -> None:
    assert redact_text(f"postgresql://user:{password}@host/db") == "postgresql://***@host/db"


def test_redaction_by_name_keeps_null_and_empty() -> None:
    assert redact("hub.token", "abc") == "***"
    assert redact("hub.token", "null") == "null"
    assert redact("hub.token", "") == ""


def test_flat_parameters() -> None:
    params = {"a": {"b": 1, "c": {}}, "d": [1, "x"], "e": None, "f": True, "lr": 1e-5, "s": "text", "key": "abc"}
    assert flatten(params) == {
        "a.b": "1",
        "a.c": "{}",
        "d": '[1, "x"]',
        "e": "null",
        "f": "true",
        "lr": "1e-05",
        "s": "text",
        "key": "***",
    }


def test_secrets_inside_lists_are_redacted() -> None:
    assert flatten({"sources": [{"name": "a", "token": "hunter2"}]}) == {"sources": '[{"name": "a", "token": "***"}]'}


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False), lambda x: st.lists(x)))
def test_data_without_text_is_unchanged(data: object) -> None:
    assert json.dumps(redact_tree(data)) == json.dumps(data)
