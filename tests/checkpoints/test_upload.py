"""Uploads to a stand-in of the Hub's HTTP API on this machine: what is verified arrives, what is not stays here."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mango.checkpoints import replace_folder
from mango.checkpoints.upload import upload
from mango.cli import app
from mango.errors import CheckpointError, IntegrityError, UnsafeFileError


class Hub(ThreadingHTTPServer):
    """Repositories, commits and large files, as far as an upload needs them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.large: dict[str, bytes] = {}
        self.calls: list[tuple[str, str, Any]] = []
        self.refuse = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.answer({"id": "me/model", "sha": "0" * 40, "siblings": [], "private": False, "gitalyUid": "x"})

    def do_PUT(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.large[self.path.rsplit("/", 1)[-1]] = content
        self.answer({})

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        lines = [json.loads(line) for line in raw.splitlines() if line.strip().startswith(b"{")]
        self.server.calls.append((self.path, str(self.headers.get("authorization")), lines))
        if self.server.refuse:
            self.answer({"error": "no"}, self.server.refuse)
        elif self.path.endswith("/repos/create"):
            self.answer({"url": f"{self.server.url}/me/model", "name": "me/model", "id": "me/model"})
        elif "/preupload/" in self.path:
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                 "shouldIgnore": False}
                for f in lines[0]["files"]
            ]  # fmt: skip
            self.answer({"files": modes})
        elif self.path.endswith("/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{self.server.url}/put/{o['oid']}"}}} for o in lines[0]["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            for line in lines[1:]:
                value = line["value"]
                if line["key"] == "file":
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
                else:
                    self.server.files[value["path"]] = self.server.large[value["oid"]]
            self.answer({"commitUrl": f"{self.server.url}/me/model/commit/{'1' * 40}", "commitOid": "1" * 40})
        else:
            self.answer({})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        for name, value in (("ENDPOINT", server.url), ("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True)):
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", "hf_" + "test")
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with replace_folder(tmp_path / "model") as new:
        (new / "model.safetensors").write_bytes(bytes(range(256)) * 40)
        (new / "config.json").write_text("{}")
        (new / "README.md").write_text("# A model\n")
    return tmp_path / "model"


@pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning")  # how huggingface_hub calls httpx
def test_everything_that_the_manifest_names_arrives(hub: Hub, folder: Path) -> None:
    report = upload(folder, "me/model", private=True, revision="trial", message="First")
    wanted = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert hub.files == wanted
    assert report.url == f"{hub.url}/me/model/commit/{'1' * 40}"
    assert report.num_bytes == sum(map(len, wanted.values()))
    paths = [path for path, _, _ in hub.calls]
    asked = hub.calls[0][2][0]
    assert asked.get("private") is True or asked.get("visibility") == "private"  # as the library's version words it
    assert any(path.endswith("/branch/trial") for path in paths)
    commit = next(lines for path, _, lines in hub.calls if "/commit/trial" in path)
    assert commit[0]["value"]["summary"] == "First"
    digest = hashlib.sha256(wanted["model.safetensors"]).hexdigest()
    assert digest in hub.large


def test_a_dry_run_sends_nothing(hub: Hub, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        app.main(["upload", str(folder), "me/model", "--dry-run", "--json"])
    assert stop.value.code == 0
    assert set(json.loads(capsys.readouterr().out)["files"]) == {path.name for path in folder.iterdir()}
    assert hub.calls == []


def test_what_is_not_as_its_manifest_says_is_not_sent(hub: Hub, folder: Path, tmp_path: Path) -> None:
    (folder / "notes.txt").write_text("x")
    with pytest.raises(IntegrityError, match=r"notes\.txt: is not in"):
        upload(folder, "me/model")
    (folder / "notes.txt").unlink()
    (folder / "config.json").write_text("[]")
    with pytest.raises(IntegrityError, match=r"config\.json: SHA-256 is"):
        upload(folder, "me/model")
    (tmp_path / "bare").mkdir()
    with pytest.raises(IntegrityError, match="holds no MANIFEST"):
        upload(tmp_path / "bare", "me/model")
    assert hub.calls == []


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (".env", "A=1", "name of a secret"),
        ("server.key", "x", "name of a secret"),
        ("notes.md", "use hf_" + "a" * 34, "looks like a secret"),
        ("notes.md", "-----BEGIN RSA PRIVATE" + " KEY-----", "looks like a secret"),
        ("model.bin", "x", "is a pickle"),
    ],
)
def test_secrets_and_pickles_are_not_sent(hub: Hub, tmp_path: Path, name: str, content: str, reason: str) -> None:
    with replace_folder(tmp_path / "model") as new:
        (new / name).write_text(content)
    with pytest.raises(UnsafeFileError, match=reason):
        upload(tmp_path / "model", "me/model")
    assert hub.calls == []


def test_a_refusal_is_one_line(hub: Hub, folder: Path) -> None:
    for name in ("model", "me/mo del", "a/b/c"):
        with pytest.raises(CheckpointError, match="OWNER/NAME"):
            upload(folder, name)
    hub.refuse = 403
    with pytest.raises(CheckpointError, match="me/model: the Hub did not take the upload") as caught:
        upload(folder, "me/model")
    assert len(str(caught.value).splitlines()) == 1
