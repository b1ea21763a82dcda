"""Who becomes champion, and how to go back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mango.errors import RegistryError
from mango.tracking import PromotionResult, TrackingSettings, promote, register, rollback
from mango.tracking.store import open_store

Promote = Callable[..., PromotionResult]


@pytest.fixture
def champion(settings: TrackingSettings, make_package: Callable[..., Path]) -> Promote:
    """Give a function that promotes a package whose metric has a value."""

    def run(value: float, **options: object) -> PromotionResult:
        changes = options.pop("changes", {})
        package = make_package(value, f"package-{value}", **changes)
        return promote("tiny", package, settings=settings, **options)

    return run


def aliases(settings: TrackingSettings) -> dict[str, int]:
    found = open_store(settings).get_registered_model("tiny").aliases
    return {alias: int(version) for alias, version in found.items()}


def test_the_first_package_is_champion(champion: Promote, settings: TrackingSettings) -> None:
    result = champion(3.0)
    assert (result.version, result.promoted, result.champion, result.previous) == (1, True, 1, None)
    assert (result.value, result.champion_value, result.min_delta) == (3.0, None, 0.0)
    assert result.reason == "version 1 is the first champion (fused_hard.switching 3)"
    assert aliases(settings) == {"champion": 1}


def test_a_better_package_takes_over_and_the_old_one_is_kept(champion: Promote, settings: TrackingSettings) -> None:
    champion(3.0)
    result = champion(2.5)
    assert (result.version, result.promoted, result.champion, result.previous) == (2, True, 2, 1)
    assert result.reason == "version 2 is champion: fused_hard.switching 2.5 against 3 of version 1"
    assert aliases(settings) == {"champion": 2, "previous": 1}


@pytest.mark.parametrize("value", [3.5, 3.25])
def test_a_worse_package_is_registered_and_no_more(champion: Promote, settings: TrackingSettings, value: float) -> None:
    champion(3.0)
    result = champion(value)
    assert (result.version, result.promoted, result.champion, result.previous) == (2, False, 1, None)
    assert "version 1 stays champion" in result.reason
    assert aliases(settings) == {"champion": 1}


def test_an_equal_package_does_not_win(
    settings: TrackingSettings, make_package: Callable[..., Path], champion: Promote
) -> None:
    champion(3.0)
    again = make_package(3.0, "again", reproduce="another command")
    result = promote("tiny", again, settings=settings)
    assert (result.version, result.promoted, result.champion) == (2, False, 1)


@pytest.mark.parametrize(("value", "promoted"), [(2.75, False), (2.5, True), (2.25, True)])
def test_min_delta_is_asked_for(champion: Promote, value: float, promoted: bool) -> None:
    champion(3.0)
    assert champion(value, min_delta=0.5).promoted is promoted


def test_min_delta_of_the_package_holds_when_none_is_given(champion: Promote) -> None:
    champion(3.0)
    result = champion(2.75, changes={"parameters": {"package": {"min_delta": 0.5}}})
    assert (result.promoted, result.min_delta) == (False, 0.5)


@pytest.mark.parametrize("min_delta", [-1.0, float("nan"), float("inf")])
def test_min_delta_must_be_a_distance(champion: Promote, min_delta: float) -> None:
    with pytest.raises(RegistryError, match=r"min_delta: found .*, wanted a finite number of at least 0"):
        champion(3.0, min_delta=min_delta)


def test_more_is_better_where_the_package_says_so(champion: Promote) -> None:
    up = {"metric": {"name": "gap", "value": 0.5, "mode": "max"}}
    champion(1.0, changes=up)
    assert not champion(2.0, changes={"metric": {"name": "gap", "value": 0.25, "mode": "max"}}).promoted
    assert champion(3.0, changes={"metric": {"name": "gap", "value": 0.75, "mode": "max"}}).promoted


def test_opposite_modes_cannot_be_compared(champion: Promote) -> None:
    champion(3.0)
    with pytest.raises(RegistryError, match="better when less, the package says the opposite"):
        champion(2.0, mode="max")


def test_another_metric_is_read_from_both_evaluations(champion: Promote) -> None:
    def closed(gap: float) -> dict[str, object]:
        return {"evaluation": {"headline": {"gap_closed_soft": gap}}}

    champion(3.0, changes=closed(0.5))
    result = champion(4.0, metric="gap_closed_soft", mode="max", changes=closed(0.75))
    assert (result.promoted, result.value, result.champion_value) == (True, 0.75, 0.5)


def test_a_champion_without_the_metric_cannot_be_beaten_on_it(champion: Promote) -> None:
    champion(3.0)
    other = {"metric": {"name": "new", "value": 1.0, "mode": "min"}}
    with pytest.raises(RegistryError, match=r"models:/tiny/1 \(champion\): metric 'new': found None"):
        champion(2.0, changes=other)


def test_the_same_package_keeps_its_version(champion: Promote, settings: TrackingSettings) -> None:
    champion(3.0)
    result = champion(3.0)
    assert (result.version, result.promoted, result.champion) == (1, False, 1)
    assert result.reason == "version 1 is champion already (fused_hard.switching 3)"
    assert len(open_store(settings).search_model_versions("name = 'tiny'")) == 1


def test_roll_back_and_forth(champion: Promote, settings: TrackingSettings) -> None:
    champion(3.0)
    champion(2.0)
    result = rollback("tiny", settings=settings)
    assert (result.champion, result.previous) == (1, 2)
    assert aliases(settings) == {"champion": 1, "previous": 2}
    assert rollback("tiny", settings=settings).as_dict() == {"name": "tiny", "champion": 2, "previous": 1}
    assert aliases(settings) == {"champion": 2, "previous": 1}


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_a_rollback_that_was_cut_off_is_finished_by_the_next_call(
    champion: Promote, settings: TrackingSettings, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """Cut off after each of its writes: the intention, one alias, both."""
    for value in (3.0, 2.5):
        champion(value)
    cut_off(monkeypatch, calls, lambda: rollback("tiny", settings=settings))
    if calls < 3:
        assert aliases(settings) != {"champion": 1, "previous": 2}
    assert rollback("tiny", settings=settings).as_dict() == {"name": "tiny", "champion": 1, "previous": 2}
    assert aliases(settings) == {"champion": 1, "previous": 2}
    assert "mango.pending_aliases" not in open_store(settings).get_registered_model("tiny").tags


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_a_promotion_that_was_cut_off_is_finished_by_the_next_one(
    champion: Promote, settings: TrackingSettings, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    champion(3.0)
    cut_off(monkeypatch, calls, lambda: champion(2.5))
    champion(2.75)  # worse than the one that was cut off
    assert aliases(settings) == {"champion": 2, "previous": 1}


def cut_off(monkeypatch: pytest.MonkeyPatch, calls: int, work: Callable[[], object]) -> None:
    """Let a kill come after some of the calls that move aliases."""
    from mlflow import MlflowClient

    left = [calls]

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def call(*given: object) -> object:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return real(*given)

        return call

    with monkeypatch.context() as patch:
        for name in ("set_registered_model_tag", "set_registered_model_alias", "delete_registered_model_tag"):
            patch.setattr(MlflowClient, name, counted(getattr(MlflowClient, name)))
        with pytest.raises(KeyboardInterrupt):
            work()


def test_a_package_that_was_rolled_back_can_return(champion: Promote, settings: TrackingSettings) -> None:
    champion(3.0)
    champion(2.0)
    rollback("tiny", settings=settings)
    result = champion(2.0)
    assert (result.version, result.promoted, result.champion, result.previous) == (2, True, 2, 1)


def test_there_may_be_nothing_to_go_back_to(champion: Promote, settings: TrackingSettings) -> None:
    with pytest.raises(RegistryError, match="models:/tiny: no such model; register one with `mango promote tiny`"):
        rollback("tiny", settings=settings)
    champion(3.0)
    with pytest.raises(RegistryError, match="has no previous champion"):
        rollback("tiny", settings=settings)


def test_registering_gives_no_alias(settings: TrackingSettings, make_package: Callable[..., Path]) -> None:
    assert register(make_package(3.0), "tiny", settings=settings) == 1
    assert register(make_package(3.0), "tiny", settings=settings) == 1
    assert register(make_package(2.0, "other"), "tiny", settings=settings) == 2
    assert aliases(settings) == {}


def test_mlflow_finds_the_package_by_its_alias(
    champion: Promote, settings: TrackingSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    champion(3.0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", settings.uri)
    from mlflow.artifacts import download_artifacts

    folder = download_artifacts("models:/tiny@champion", dst_path=str(tmp_path / "got"))
    assert (Path(folder) / "model.safetensors").read_bytes() == b"weights 3.0"


def test_no_secret_is_stored(champion: Promote, settings: TrackingSettings) -> None:
    champion(3.0)
    tags = open_store(settings).get_model_version("tiny", "1").tags
    assert "hf_secret" not in str(tags)
    assert tags["mango.reproduce"] == "git checkout 0123456 && dvc exp run -S router.type=token -S hub.token=***"


@pytest.mark.parametrize("name", ["", "a/b", "models:/x", "it's", "../x"])
def test_names_that_no_registry_takes(settings: TrackingSettings, make_package: Callable[..., Path], name: str) -> None:
    with pytest.raises(RegistryError, match="model name"):
        promote(name, make_package(), settings=settings)


def test_switched_off_nothing_is_promoted(settings: TrackingSettings, make_package: Callable[..., Path]) -> None:
    with pytest.raises(RegistryError, match="tracking is off"):
        promote("tiny", make_package(), settings=settings.model_copy(update={"enabled": False}))
