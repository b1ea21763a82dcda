"""Keeps secrets out of everything that is logged, shown or packed: by name, by shape, by place, and by value.

By value means: what the environment holds under the name of a secret (``HF_TOKEN``, ``AWS_SECRET_ACCESS_KEY``,
``PGPASSWORD``, the password inside ``MLFLOW_TRACKING_URI``) is hidden wherever it turns up, whatever it looks like.
"""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from types import TracebackType
from typing import Any, TextIO
from urllib.parse import quote, unquote

REDACTED = "***"

_SECRET_WORDS = {"token", "password", "passwd", "passphrase", "pwd", "secret", "key", "apikey", "credential"}
_SECRET_GROUPS = {"secret", "secrets", "password", "passwords", "credential", "credentials"}
_VOCABULARY = re.compile(r"^(?:additional_special|bos|cls|decoder_start|eos|mask|pad|sep|special|unk)_token$")
_WORDS = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")
_URI_CREDENTIALS = re.compile(r"(?P<scheme>\b[A-Za-z][\w+.-]*://)[^\s/]+@")
_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|gh[oprsu]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|sk-[\w-]{16,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{12,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
_ASSIGNMENT = re.compile(r"(?P<name>[A-Za-z_][\w.-]*)(?P<equals>=)(?P<value>'[^']*'|\"[^\"]*\"|[^\s&;,'\"]+)")

_ENVIRONMENT_ENDS = ("TOKEN", "PASSWORD", "PASSWD", "PASSPHRASE", "PASS", "SECRET", "KEY", "CREDENTIALS", "APIKEY")
_NO_SECRETS = {"MANGO_SIGNING_KEY", "MANGO_TRUSTED_KEY"}  # places of key files
_SHORTEST_SECRET = 6  # a shorter one is found by its name alone: hiding "1" or "test" everywhere garbles text
_PASSWORD_IN_URI = re.compile(r"\b[A-Za-z][\w+.-]*://(?P<user>[^\s/:@]*):(?P<password>[^\s/]+)@")
_TOKEN_IN_URI = re.compile(r"\b[A-Za-z][\w+.-]*://(?P<token>[^\s/:@]{16,})@")


def looks_secret(name: str) -> bool:
    """Whether a parameter or tag of this dotted name would hold a secret.

    The last part decides (``hub.api_key``, ``hubToken``), so that a namespace which merely holds a choice, as
    ``router.token.window``, is kept, and so are the special tokens of a vocabulary (``pad_token``). Everything below
    a part called ``credentials``, ``secrets`` or ``passwords`` is secret.
    """
    *groups, last = name.split(".")
    if any(group.lower() in _SECRET_GROUPS for group in groups):
        return True
    words = [word.lower() for word in _WORDS.findall(last)]
    if not words or _VOCABULARY.match(last):
        return False
    return words[-1] in _SECRET_WORDS or words[-1].removesuffix("s") in _SECRET_WORDS - {"token", "key"}


def hide_secrets(text: str) -> str:
    """Return ``text`` without credentials in addresses, well-known shapes of secrets, and the environment's secrets.

    Unlike `redact_text` it leaves ``name=value`` pairs alone, so it is fit for pages, tables and programs' output.
    """
    if "://" in text:
        text = _URI_CREDENTIALS.sub(rf"\g<scheme>{REDACTED}@", text)
    known = _known(tuple(os.environ.items()))
    if known is not None:
        text = known.sub(REDACTED, text)
    return _SHAPES.sub(REDACTED, text)


def redact_text(text: str) -> str:
    """Return ``text`` as `hide_secrets` does, and without the values of ``secret=value`` pairs."""

    def hide(match: re.Match[str]) -> str:
        secret = looks_secret(match["name"].replace("-", "_").lstrip("_"))
        return f"{match['name']}={REDACTED}" if secret else match[0]

    return _ASSIGNMENT.sub(hide, hide_secrets(text))


def redact(name: str, value: str) -> str:
    """Return what may be logged under ``name`` in place of ``value``; empty and null values stay as they are."""
    if looks_secret(name) and value not in {"", "null", "true", "false"}:
        return REDACTED
    return redact_text(value)


def redact_tree(value: object, name: str = "") -> object:
    """Return nested JSON data in which secrets are redacted and everything else is unchanged."""
    if isinstance(value, Mapping):
        return {str(key): redact_tree(item, f"{name}.{key}" if name else str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_tree(item, name) for item in value]
    if value is None or isinstance(value, bool):
        return value
    text = str(value)
    hidden = redact(name, text)
    return value if hidden == text else hidden


@contextmanager
def guarded_output() -> Iterator[None]:
    """Hide secrets in all that Python writes to stdout and stderr: results, logs, warnings and tracebacks.

    A secret that is written in pieces is not found; what libraries write is written in lines. The traceback of an
    exception that leaves the context and ends the process is guarded too.
    """
    before = sys.stdout, sys.stderr
    guards: list[Any] = [_Guard(stream) for stream in before]
    sys.stdout, sys.stderr = guards
    try:
        yield
    except Exception:
        sys.excepthook = _show_guarded
        raise
    finally:
        for name, guard, stream in zip(("stdout", "stderr"), guards, before, strict=True):
            if getattr(sys, name) is guard:  # somebody else may have put another in its place
                setattr(sys, name, stream)


def _show_guarded(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(hide_secrets("".join(traceback.format_exception(kind, error, trace))))


class _Guard:
    """A text stream in front of another one."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(hide_secrets(text) if isinstance(text, str) else text)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@lru_cache(maxsize=4)
def _known(environ: tuple[tuple[str, str], ...]) -> re.Pattern[str] | None:
    """Return what finds the secrets of an environment, however they are written; None where there are none."""
    found: set[str] = set()
    for name, value in environ:
        if name not in _NO_SECRETS and name.upper().endswith(_ENVIRONMENT_ENDS):
            found.add(value)
        for uri in _PASSWORD_IN_URI.finditer(value):
            found.add(uri["password"])
        for uri in _TOKEN_IN_URI.finditer(value):
            found.add(uri["token"])
    spellings = {spelling for secret in found for spelling in _spellings(secret.strip())}
    longest_first = sorted((s for s in spellings if len(s) >= _SHORTEST_SECRET), key=lambda s: (-len(s), s))
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _spellings(secret: str) -> set[str]:
    """Return a secret as it stands in text, in addresses, in JSON and in Python."""
    plain = {secret, unquote(secret), quote(secret, safe="")}
    return plain | {json.dumps(s)[1:-1] for s in plain} | {repr(s)[1:-1] for s in plain}
