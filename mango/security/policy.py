"""Whom to trust with what: three tiers, and the rules that give a model one of them."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from pydantic import Field, field_validator, model_validator

from mango.config import Frozen, load
from mango.errors import ConfigError, UnsafeFileError
from mango.security.signing import is_signed, verify_folder

VARIABLE = "MANGO_POLICY"
_HUB = "hub:"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class Tier(StrEnum):
    """How far a model is trusted.

    ``trusted`` may hold safetensors, GGUF and checkpoints that torch reads as weights only; code that it brings runs
    when the user names that code and pins its revision. ``community`` may hold safetensors and GGUF, with the commit
    of a Hub repository pinned. ``unknown`` may hold anything: pickles are converted in the sandbox.
    """

    TRUSTED = "trusted"
    COMMUNITY = "community"
    UNKNOWN = "unknown"


class Rule(Frozen):
    """Gives a tier to the models that all of its conditions fit; at least one is needed."""

    tier: Tier = Field(description="`trusted`, `community` or `unknown`")
    source: str | None = Field(
        None, description="pattern of where the model is: `hub:OWNER/NAME` or a path, with `*`, `?` and `[...]`"
    )
    publisher_key: Path | None = Field(None, description="public key; the folder's signature must fit it")
    sha256: tuple[str, ...] = Field((), description="SHA-256 of every weight file that the model may have")
    commit: str | None = Field(None, description="full commit of the Hub repository")

    @field_validator("source")
    @classmethod
    def _place(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith((_HUB, "/", "./", "../", "~/")):
            raise ValueError(
                f"{value!r} may be a folder or a Hub id: write hub:{value} for the Hub, ./{value} for a path"
            )
        return value

    @field_validator("sha256", mode="before")
    @classmethod
    def _one_or_more(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _conditions(self) -> Rule:
        for digest in self.sha256:
            if not _SHA256.fullmatch(digest):
                raise ValueError(f"sha256: {digest!r} is no SHA-256 of 64 small hexadecimal digits")
        if self.commit is not None and not _COMMIT.fullmatch(self.commit):
            raise ValueError(f"commit: {self.commit!r} is no full commit of 40 small hexadecimal digits")
        if self.publisher_key and (self.source or "").startswith(_HUB):
            raise ValueError("publisher_key: of a Hub repository only a part is fetched; pin its commit or sha256")
        if not (self.source or self.publisher_key or self.sha256 or self.commit):
            raise ValueError("a rule needs a condition: source, publisher_key, sha256 or commit; else set `default`")
        return self


class Policy(Frozen):
    """The rules in order, the first that fits decides; and the tier of what no rule fits."""

    default: Tier = Field(Tier.COMMUNITY, description="tier of models that no rule fits")
    rules: tuple[Rule, ...] = Field((), description="the first that fits a model gives its tier")


class Place(Frozen):
    """A model as rules see it.

    Attributes:
        hub: id of its Hub repository, or None for a folder or file.
        path: where its files are on this machine; None as long as they are not fetched.
        commit: commit of its Hub repository, where that is known.
        weights: its weight files, where they are on this machine.
    """

    hub: str | None = None
    path: Path | None = None
    commit: str | None = None
    weights: tuple[Path, ...] = ()


def tier_of(place: Place, policy: Policy, digest: Callable[[Path], str]) -> Tier:
    """Return the tier that a policy gives a model.

    A condition on bytes (key, hashes) cannot fit a model that is not fetched yet.

    Args:
        place: the model.
        policy: the rules.
        digest: returns the SHA-256 of a file.

    Raises:
        IntegrityError: a rule asks for a signature, and the model has one that does not fit its bytes or the key.
        ConfigError: the public key of a rule is missing.
    """
    for rule in policy.rules:
        if _fits(rule, place, digest):
            return rule.tier
    return policy.default


def may_depend_on_bytes(place: Place, policy: Policy) -> bool:
    """Tell whether a rule that looks at bytes could still decide about a model that is not fetched yet."""
    return any(rule.sha256 and _fits_source(rule, place) for rule in policy.rules)


def _fits(rule: Rule, place: Place, digest: Callable[[Path], str]) -> bool:
    if not _fits_source(rule, place):
        return False
    if rule.sha256 and not (place.weights and all(digest(file) in rule.sha256 for file in place.weights)):
        return False
    if rule.publisher_key is None:
        return True
    key = rule.publisher_key.expanduser()
    if not key.is_file():
        raise ConfigError(f"security: publisher_key {key} does not exist; correct the rule or fetch the key")
    if place.path is None or not place.path.is_dir() or not is_signed(place.path):
        return False
    verify_folder(place.path, key)
    return True


def _fits_source(rule: Rule, place: Place) -> bool:
    if rule.commit is not None and rule.commit != place.commit:
        return False
    if rule.source is None:
        return True
    if rule.source.startswith(_HUB):
        return place.hub is not None and fnmatch.fnmatchcase(place.hub, rule.source.removeprefix(_HUB))
    if place.hub is not None or place.path is None:
        return False
    pattern = Path(os.path.normpath(Path(rule.source).expanduser().absolute()))
    real = os.path.realpath(place.path)
    forms = {str(pattern), os.path.realpath(pattern.parent) + "/" + pattern.name}  # the folder above may be a link
    return any(fnmatch.fnmatchcase(real, form) for form in forms)


def user_policy() -> Policy:
    """Return the policy of the user: the file that ``$MANGO_POLICY`` names, else ``~/.config/mango/security.yaml``.

    Raises:
        ConfigError: the file has an error, or the variable names a file that does not exist.
        UnsafeFileError: others may write the file.
    """
    named = os.environ.get(VARIABLE)
    path = Path(named).expanduser() if named else Path.home() / ".config" / "mango" / "security.yaml"
    if not path.is_file():
        if named:
            raise ConfigError(f"environment {VARIABLE}: there is no file {path}")
        return Policy()
    status = path.stat()
    if status.st_uid not in {0, os.geteuid()} or status.st_mode & 0o022:
        raise UnsafeFileError(f"{path}: others may write it, so it cannot say whom to trust; run: chmod go-w {path}")
    return load(Policy, path, environ={}).value


_enforced: list[Policy] = []


@contextmanager
def enforced(policy: Policy) -> Iterator[None]:
    """Let a policy decide about every model that is opened in the body, in all threads, instead of the user's own."""
    _enforced.append(policy)
    try:
        yield
    finally:
        _enforced.remove(policy)


def current_policy() -> Policy:
    """Return the policy in force: the one of `enforced`, else the user's; see `user_policy`."""
    return _enforced[-1] if _enforced else user_policy()
