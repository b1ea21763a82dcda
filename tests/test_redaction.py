"""Secrets never reach the store, and what is no secret is kept."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mango.redaction import hide_secrets, looks_secret, redact, redact_text, redact_tree
from mango.tracking.values import flatten


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


PLANTED = {
    "HF_TOKEN": "planted-hub-secret",
    "AWS_SECRET_ACCESS_KEY": "pl/anted+aws=secret",
    "PGPASSWORD": 'pla"nted\\pg',
    "MLFLOW_TRACKING_URI": "postgresql://me:planted%40db@host/x",
    "REMOTE": "https://plantedremotetoken0@host/repository.git",
}


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize(
    "secret",
    [
        "planted-hub-secret",
        "pl/anted+aws=secret",
        "pl%2Fanted%2Baws%3Dsecret",
        'pla"nted\\pg',
        json.dumps('pla"nted\\pg'),
        repr('pla"nted\\pg'),
        "planted%40db",
        "planted@db",
        "plantedremotetoken0",
    ],
)
def test_what_the_environment_keeps_secret_is_hidden_by_value(secret: str) -> None:
    hidden = hide_secrets(f"before {secret} after")
    assert hidden.replace('"', "").replace("'", "") == "before *** after"


@pytest.mark.usefixtures("planted")
def test_places_of_keys_short_values_and_the_current_folder_are_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MANGO_SIGNING_KEY": "/keys/release.pem", "ONE_KEY": "1", "PWD": "/home/me/work"}.items():
        monkeypatch.setenv(name, value)
    text = "1 file in /home/me/work signed with /keys/release.pem"
    assert hide_secrets(text) == text


def test_a_private_key_is_hidden_whole() -> None:
    pem = "-----BEGIN EC PRIVATE KEY-----\nAAAA\nBBBB\n-----END EC PRIVATE KEY-----"
    assert hide_secrets(f"a {pem} b {pem[:40]}") == "a *** b ***"


PROGRAM = """
import logging, sys, warnings
import typer
from mango.cli.app import run
from mango.errors import MangoError

def work():
    import os
    secret = os.environ["HF_TOKEN"]
    print("out", secret)
    warnings.warn("warned " + secret)
    logging.getLogger("some.library").warning("logged %s", secret)
    print(sys.stdout.isatty(), sys.stderr.fileno() > 0)
    raise {error}("raised " + secret)

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(work)
sys.exit(run(typer.main.get_command(app), [], "work"))
"""


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        ("MangoError", 2, "error: raised ***"),
        ("OSError", 2, "error: raised ***"),
        ("RuntimeError", 1, "RuntimeError: raised ***"),
    ],
)
def test_output_logs_warnings_and_tracebacks_of_a_command_are_guarded(error: str, code: int, said: str) -> None:
    program = PROGRAM.format(error=error)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "out ***" in done.stdout
    for words in ("warned ***", "logged ***", said):
        assert words in done.stderr
    assert "planted" not in done.stdout + done.stderr
