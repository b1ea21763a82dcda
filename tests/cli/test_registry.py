"""The registry's commands, as a person calls them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from mango.cli import app
from mango.security.signing import sign_folder


@pytest.fixture(autouse=True)
def repository(tmp_path: Path, migrated_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go into a repository with a store and a package."""
    (tmp_path / ".git").mkdir()
    shutil.copyfile(migrated_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    package(3.0)
    return tmp_path


def package(value: float, folder: str = "models/package") -> None:
    content = f"weights {value}".encode()
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    (place / "model.safetensors").unlink(missing_ok=True)
    (place / "model.safetensors").write_bytes(content)
    manifest = {
        "format_version": 1,
        "name": "mango-tiny",
        "files": {"model.safetensors": {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}},
        "git": {"revision": "0" * 40, "dirty": False},
        "metric": {"name": "fused_hard.switching", "value": value, "mode": "min"},
        "gates": {"corpus": {"success": True}},
        "reproduce": f"git checkout {'0' * 40} && dvc repro",
    }
    (place / "mango.json").unlink(missing_ok=True)
    (place / "mango.json").write_text(json.dumps(manifest))


def mango(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as stop:
        app.main(arguments)
    return stop.value.code


def test_promote_roll_back_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert mango("promote", "tiny") == 0
    first = "models:/tiny: version 1 is the first champion (fused_hard.switching 3)\n"
    assert capsys.readouterr().out == first
    package(2.0)
    assert mango("promote", "tiny", "--gate", "corpus", "--require", "--json") == 0
    assert json.loads(capsys.readouterr().out)["champion"] == 2
    package(2.5, "other")
    assert mango("promote", "tiny", "--package", "other") == 0
    assert "version 2 stays champion: fused_hard.switching 2.5 against 2 of version 2" in capsys.readouterr().out
    assert mango("promote", "tiny", "--package", "other", "--require") == 1
    capsys.readouterr()
    assert mango("rollback", "tiny") == 0
    assert capsys.readouterr().out == "models:/tiny: version 1 is champion again, 2 is previous\n"
    assert mango("rollback", "tiny", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"champion": 2, "name": "tiny", "previous": 1}
    assert mango("why", "models:/tiny@champion") == 0
    assert f"  git checkout {'0' * 40} && dvc repro\n" in capsys.readouterr().out
    assert mango("why", "models:/tiny@champion", "--json") == 0
    assert json.loads(capsys.readouterr().out)["gates"] == {"corpus": True}


def test_without_a_name_the_package_gives_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert mango("promote") == 0
    assert capsys.readouterr().out.startswith("models:/mango-tiny: version 1 is the first champion")


def test_the_version_links_to_the_run_of_the_package_stage(capsys: pytest.CaptureFixture[str]) -> None:
    from mango.tracking import stage_run

    with stage_run("package", params={}) as run:
        pass
    Path("reports").mkdir()
    Path("reports/package.json").write_text(json.dumps({"run_id": run.run_id}))
    assert mango("promote", "tiny") == 0
    assert mango("why", "models:/tiny/1") == 0
    assert f"run         {run.run_id}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["promote", "tiny", "--package", "none"], "none: no mango.json found; build the package first"),
        (["promote", "tiny", "--gate", "blocks"], "gate 'blocks' was not run; found corpus"),
        (["promote", "a/b"], "model name 'a/b'"),
        (["rollback", "tiny"], "models:/tiny: no such model; register one with `mango promote tiny`"),
        (["why", "tiny"], "'tiny' is no model address"),
    ],
)
def test_a_refusal_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert mango(*arguments) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.startswith("error: ")
    assert shown.count("\n") == 1


def test_outside_dvc_there_is_nothing_to_sync(capsys: pytest.CaptureFixture[str]) -> None:
    assert mango("sync") == 2
    assert "`dvc exp show` failed" in capsys.readouterr().err


def test_the_ui_refuses_a_port_that_is_no_port(capsys: pytest.CaptureFixture[str]) -> None:
    assert mango("ui", "--port", "70000") == 2
    assert "Invalid value for '--port'" in capsys.readouterr().err


def test_the_parameter_file_says_whose_signature_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert mango("keygen", "keys/release.pem") == 0
    assert capsys.readouterr().out == "keys/release.pub.pem\n"
    Path("params.yaml").write_text("package: {signed_by: keys/release.pub.pem}\n")
    assert mango("promote", "tiny") == 2
    assert "is not signed: it has no model.sig" in capsys.readouterr().err
    sign_folder(Path("models/package"), Path("keys/release.pem"))
    assert mango("promote", "tiny") == 0
    assert mango("promote", "tiny", "--key", "keys/release.pub.pem") == 0
    assert mango("promote", "tiny", "--key", "keys/release.pem") == 2
    assert "give one of them" in capsys.readouterr().err
    Path("params.yaml").write_text("package: {signed_by: 3}\n")
    assert mango("promote", "tiny") == 2
    assert "package.signed_by: found 3, wanted the path of a public key" in capsys.readouterr().err
