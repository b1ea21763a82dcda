"""``mango sign`` and ``mango keygen``, as a person calls them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mango.checkpoints import replace_folder
from mango.cli import app
from mango.security.signing import verify_folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    with replace_folder("model") as folder:
        (folder / "config.json").write_text("{}")
    return tmp_path


def mango(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as stop:
        app.main(arguments)
    return stop.value.code


def test_a_key_with_a_password_signs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RELEASE_PASSWORD", "planted-password")
    assert mango("keygen", "k.pem", "--password-env", "RELEASE_PASSWORD") == 0
    assert mango("sign", "model", "--key", "k.pem", "--password-env", "RELEASE_PASSWORD") == 0
    verify_folder("model", "k.pub.pem")
    assert mango("sign", "model", "--key", "k.pem") == 2
    shown = capsys.readouterr()
    assert "error: k.pem: is encrypted: name the variable that holds its password" in shown.err
    assert "planted" not in shown.out + shown.err
    assert mango("sign", "model", "--key", "k.pem", "--password-env", "NONE_SUCH") == 2
    assert "--password-env NONE_SUCH: this variable is not set" in capsys.readouterr().err


def test_key_and_password_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANGO_SIGNING_PASSWORD", "planted-password")
    assert mango("keygen", "k.pem", "--password-env", "MANGO_SIGNING_PASSWORD") == 0
    monkeypatch.setenv("MANGO_SIGNING_KEY", "k.pem")
    assert mango("sign", "model") == 0
    verify_folder("model", "k.pub.pem")


def test_without_a_key_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert mango("sign", "model") == 2
    assert "error: --key is missing and MANGO_SIGNING_KEY is not set; `mango keygen`" in capsys.readouterr().err


def test_a_damaged_folder_is_not_vouched_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert mango("keygen", "k.pem") == 0
    Path("model/config.json").write_text("[]")
    assert mango("sign", "model", "--key", "k.pem") == 2
    assert "model/config.json: SHA-256 is" in capsys.readouterr().err
    assert not Path("model/model.sig").exists()
