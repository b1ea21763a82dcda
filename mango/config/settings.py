"""Settings that change no result: they come from the environment alone, and DVC need not see them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ByteSize, Field, SecretStr, ValidationError

from mango.config.base import Frozen
from mango.config.explain import describe, near
from mango.config.overrides import PREFIX as OVERRIDE_PREFIX
from mango.errors import ConfigError

PREFIX = "MANGO_"


READ_ELSEWHERE = frozenset(
    {
        "MANGO_ARTIFACT_ROOT",
        "MANGO_EXPERIMENT",
        "MANGO_LOCK_TIMEOUT_S",
        "MANGO_PARENT_RUN",
        "MANGO_POLICY",
        "MANGO_TRACKING",
        "MANGO_TRUSTED_KEY",
        "MANGO_UPGRADE_URI",
    }
)
"""Variables that another room reads by itself; a test keeps this list true."""


class Settings(Frozen):
    """Where and how to run. Each field ``name`` is read from ``MANGO_NAME``; an empty value counts as unset."""

    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="device that trains and evaluates")
    cache: Path | None = Field(None, description="folder for converted and downloaded models")
    threads: int | None = Field(None, ge=1, description="threads that torch may use")
    signing_key: Path | None = Field(None, description="private key (PEM) that signs the package; unsigned without one")
    signing_password: SecretStr | None = Field(None, min_length=1, description="password of that key; never logged")
    memory_limit: ByteSize | None = Field(
        None, ge=1, description="memory that a command and its children may hold, as `8GiB`; more ends it with an error"
    )
    time_limit_s: float | None = Field(None, gt=0, description="seconds that a command may run; more ends it")
    disk_reserve: ByteSize = Field(
        ByteSize(64 * 2**20), ge=0, description="disk that must stay free beside what is going to be written, in bytes"
    )

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the settings.

        Args:
            environ: the variables; the process's environment by default.

        Returns:
            The settings, defaults where a variable is not set.

        Raises:
            ConfigError: one line for each variable that is unknown or has a wrong value.
        """
        environ = os.environ if environ is None else environ
        fields = {f"{PREFIX}{name.upper()}": name for name in cls.model_fields}
        known = {*fields, *READ_ELSEWHERE}
        given: dict[str, Any] = {}
        problems = []
        for variable in sorted(v for v in environ if v.startswith(PREFIX) and not v.startswith(OVERRIDE_PREFIX)):
            if variable not in known:
                hint = near(variable, known) or "."
                problems.append(f"environment {variable}: unknown setting{hint} Known: {', '.join(sorted(known))}")
            elif environ[variable] and variable in fields:
                given[fields[variable]] = environ[variable]
        try:
            settings = cls.model_validate(given)
        except ValidationError as error:
            for item in error.errors(include_url=False):
                problems.append(f"environment {PREFIX}{str(item['loc'][0]).upper()}: {describe(item, cls)}")
            raise ConfigError("\n".join(problems)) from error
        if problems:
            raise ConfigError("\n".join(problems))
        return settings
