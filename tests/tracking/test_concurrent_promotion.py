"""Fifty promotions at the same time leave the best package as champion."""

from __future__ import annotations

import json
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
import json, sys
from pathlib import Path
from mango.tracking import TrackingSettings, promote
from mango.tracking.store import open_store
settings = TrackingSettings(root=sys.argv[1])
open_store(settings).search_registered_models()  # the slow imports come before the start
print("ready", flush=True)
sys.stdin.readline()
for package in sys.argv[2:]:
    print(json.dumps(promote("tiny", Path(package), settings=settings).as_dict()), flush=True)
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
    lines = [line for process in processes for line in process.communicate(timeout=300)[0].splitlines()]
    assert [process.returncode for process in processes] == [0] * NUM_PROCESSES

    # Versions are numbered under the lock, so in their order the promotions must read like a queue.
    results = sorted((json.loads(line) for line in lines), key=lambda result: result["version"])
    assert [result["version"] for result in results] == list(range(1, NUM_PROMOTIONS + 1))
    best = None
    for result in results:
        assert result["champion_value"] == best
        assert result["promoted"] == (best is None or result["value"] < best)
        best = result["value"] if result["promoted"] else best
    assert best == min(values) == 1.0

    client = open_store(settings)
    found = client.search_model_versions("name = 'tiny'")
    versions = {int(version.version): float(version.tags["mango.metric.value"]) for version in found}
    assert sorted(versions.values()) == sorted(values)
    aliases = {alias: int(version) for alias, version in client.get_registered_model("tiny").aliases.items()}
    assert versions[aliases["champion"]] == 1.0
    # The one before was champion when the best came, so it is the best of everything that was registered before.
    assert versions[aliases["previous"]] == min(v for n, v in versions.items() if n < aliases["champion"])
