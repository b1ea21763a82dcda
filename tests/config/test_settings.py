"""Settings: what changes no result comes from the environment, and a typo there is an error too."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import mango
from mango.config import Settings
from mango.config.settings import READ_ELSEWHERE
from mango.errors import ConfigError


def test_settings_come_from_the_environment() -> None:
    settings = Settings.from_environ(
        {"MANGO_DEVICE": "cuda:1", "MANGO_THREADS": "2", "MANGO_CACHE": "", "MANGO_PARAM__seed": "1", "PATH": "/bin"}
    )
    assert settings == Settings(device="cuda:1", threads=2)


def test_every_wrong_setting_is_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.from_environ({"MANGO_DEVCE": "cpu", "MANGO_DEVICE": "gpu", "MANGO_THREADS": "0"})
    unknown, device, threads = str(caught.value).splitlines()
    assert unknown.startswith("environment MANGO_DEVCE: unknown setting; did you mean 'MANGO_DEVICE'? Known: MANGO_")
    assert device.startswith("environment MANGO_DEVICE: 'gpu': string should match pattern")
    assert threads == "environment MANGO_THREADS: '0': must be greater than or equal to 1"


def test_the_list_of_variables_that_other_rooms_read_is_true() -> None:
    package = Path(mango.__file__).parent
    sources = [p for folder in (package, package.parent / "stages") for p in sorted(folder.rglob("*.py"))]
    names = {name for path in sources for name in re.findall(r'"(MANGO_[A-Z_]*[A-Z])"', path.read_text())}
    assert names - {f"MANGO_{field.upper()}" for field in Settings.model_fields} == READ_ELSEWHERE
