"""``mango sign`` and ``mango keygen``, as a person calls them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mango.checkpoints import replace_folder
from mango.cli import app
from mango.security.signing import verify_folder
from tests.packaging.conftest import save_tiny_checkpoint


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


def test_verify_with_a_key_asks_for_its_owner_s_signature(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny_checkpoint(tmp_path / "tiny")
    for name in ("mine", "other"):
        assert mango("keygen", f"{name}.pem") == 0
    assert mango("verify", "tiny", "--key", "mine.pub.pem") == 2
    assert "error: tiny: is not signed: it has no model.sig" in capsys.readouterr().err
    assert mango("sign", "tiny", "--key", "mine.pem") == 0
    assert mango("verify", "tiny") == 0
    capsys.readouterr()
    assert mango("verify", "tiny", "--key", "mine.pub.pem") == 0
    assert "by the owner of mine.pub.pem, SHA-256 " in capsys.readouterr().out
    assert mango("verify", "tiny", "--key", "other.pub.pem") == 2
    assert "tiny/model.sig: is no signature by the owner of other.pub.pem" in capsys.readouterr().err
    assert mango("verify", "tiny", "--key", "none.pem") == 2
    assert "error: none.pem: the key cannot be read (No such file or directory)" in capsys.readouterr().err
