"""Locks hold, wait and say who is waited for."""

from __future__ import annotations

import pytest

from mango.errors import RegistryError
from mango.tracking import TrackingSettings
from mango.tracking.locks import machine_lock, store_lock


def test_a_second_holder_is_told_which_lock_it_waited_for(settings: TrackingSettings) -> None:
    impatient = settings.model_copy(update={"lock_timeout_s": 0.05})
    with (
        store_lock(settings, "promote"),
        pytest.raises(RegistryError, match=r"mlflow\.db\.promote\.lock: another process has held the promote lock"),
        store_lock(impatient, "promote"),
    ):
        pytest.fail("two holders")


def test_purposes_do_not_wait_for_each_other(settings: TrackingSettings) -> None:
    impatient = settings.model_copy(update={"lock_timeout_s": 0.05})
    with store_lock(impatient, "promote"), store_lock(impatient, "migrate"), machine_lock(impatient, "pipeline"):
        assert sorted(path.name for path in settings.root.glob("*.lock")) == [
            "mlflow.db.migrate.lock",
            "mlflow.db.pipeline.lock",
            "mlflow.db.promote.lock",
        ]


def test_a_tracking_server_cannot_promote(settings: TrackingSettings) -> None:
    server = TrackingSettings(root=settings.root, uri="http://127.0.0.1:1")
    with pytest.raises(RegistryError, match="a tracking server has no lock"), store_lock(server, "promote"):
        pytest.fail("no lock was held")


def test_runs_on_a_tracking_server_lock_this_machine(settings: TrackingSettings) -> None:
    server = TrackingSettings(root=settings.root, uri="http://127.0.0.1:1", lock_timeout_s=0.05)
    with (
        machine_lock(server, "pipeline"),
        pytest.raises(RegistryError, match="pipeline lock"),
        machine_lock(server, "pipeline"),
    ):
        pytest.fail("two holders")
