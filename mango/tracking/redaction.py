"""Keeps secrets out of everything that is logged: by name, by shape and by their place in an address."""

from __future__ import annotations

import re

REDACTED = "***"

_SECRET_WORDS = {"token", "password", "passwd", "passphrase", "pwd", "secret", "key", "apikey", "credential"}
_SECRET_GROUPS = {"secret", "secrets", "password", "passwords", "credential", "credentials"}
_VOCABULARY = re.compile(r"^(?:additional_special|bos|cls|decoder_start|eos|mask|pad|sep|special|unk)_token$")
_WORDS = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")
_URI_CREDENTIALS = re.compile(r"(?P<scheme>\b[A-Za-z][\w+.-]*://)[^\s/]+@")
_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|gh[oprsu]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|sk-[\w-]{16,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{12,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,})"
)
_ASSIGNMENT = re.compile(r"(?P<name>[A-Za-z_][\w.-]*)(?P<equals>=)(?P<value>'[^']*'|\"[^\"]*\"|[^\s&;,'\"]+)")


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


def redact_text(text: str) -> str:
    """Return ``text`` without credentials in addresses, well-known token shapes and ``secret=value`` pairs."""
    text = _URI_CREDENTIALS.sub(rf"\g<scheme>{REDACTED}@", text)
    text = _SHAPES.sub(REDACTED, text)

    def hide(match: re.Match[str]) -> str:
        secret = looks_secret(match["name"].replace("-", "_").lstrip("_"))
        return f"{match['name']}={REDACTED}" if secret else match[0]

    return _ASSIGNMENT.sub(hide, text)


def redact(name: str, value: str) -> str:
    """Return what may be logged under ``name`` in place of ``value``; empty and null values stay as they are."""
    if looks_secret(name) and value not in {"", "null", "true", "false"}:
        return REDACTED
    return redact_text(value)
