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
import json, multiprocessing, sys
from pathlib import Path
from mango.tracking import TrackingSettings, promote
import alembic.script, mlflow, mlflow.store.model_registry.sqlalchemy_store, mlflow.store.tracking.sqlalchemy_store

def run(package):
    return promote("tiny", Path(package), settings=TrackingSettings(root=sys.argv[1])).as_dict()

with multiprocessing.get_context("fork").Pool(int(sys.argv[2])) as pool:  # after the slow imports, before any store
    print(json.dumps(pool.map(run, sys.argv[3:], chunksize=1)))
"""


@pytest.mark.slow
def test_the_best_of_fifty_concurrent_promotions_is_champion(
    settings: TrackingSettings, make_package: Callable[..., Path]
) -> None:
    values = [1.0 + index / 64 for index in range(NUM_PROMOTIONS)]
    random.Random(0).shuffle(values)  # an order of arrival that is no order of quality
    packages = [str(make_package(value, f"package-{index}")) for index, value in enumerate(values)]
    command = [sys.executable, "-c", PROMOTE, str(settings.root), str(NUM_PROCESSES), *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr

    # Versions are numbered under the lock, so in their order the promotions must read like a queue.
    results = sorted(json.loads(done.stdout), key=lambda result: result["version"])
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
