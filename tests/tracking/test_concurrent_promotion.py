"""Fifty promotions at the same time leave the best package as champion."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mango.tracking import TrackingSettings
from mango.tracking.store import open_store

NUM_PROCESSES = 8
NUM_PROMOTIONS = 50
PROMOTE = """
import sys
from pathlib import Path
from mango.tracking import TrackingSettings, promote
import mlflow
print("ready", flush=True)
sys.stdin.readline()
for package in sys.argv[2:]:
    promote("tiny", Path(package), settings=TrackingSettings(root=sys.argv[1]))
"""


@pytest.mark.slow
def test_the_best_of_fifty_concurrent_promotions_is_champion(
    settings: TrackingSettings, make_package: Callable[..., Path]
) -> None:
    values = [1.0 + index / 64 for index in range(NUM_PROMOTIONS)]
    random.Random(0).shuffle(values)  # an order of arrival that is no order of quality
    packages = [str(make_package(value, f"package-{index}")) for index, value in enumerate(values)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROMOTE, str(settings.root), *packages[start::NUM_PROCESSES]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for start in range(NUM_PROCESSES)
    ]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * NUM_PROCESSES
    for process in processes:  # all at once
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=300)
    assert [process.returncode for process in processes] == [0] * NUM_PROCESSES

    client = open_store(settings)
    found = client.search_model_versions("name = 'tiny'")
    versions = {int(version.version): float(version.tags["mango.metric.value"]) for version in found}
    assert sorted(versions.values()) == sorted(values)
    aliases = {alias: int(version) for alias, version in client.get_registered_model("tiny").aliases.items()}
    assert versions[aliases["champion"]] == 1.0
    # The one before was champion when the best came, so it is the best of everything that was registered before.
    assert versions[aliases["previous"]] == min(v for n, v in versions.items() if n < aliases["champion"])
