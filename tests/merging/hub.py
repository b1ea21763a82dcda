"""A stand-in for the Hub on this machine, as far as reading models needs it: revisions, ranges, gates and failures."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Hub(ThreadingHTTPServer):
    """Repositories by name, each with folders by revision.

    Attributes:
        repositories: ``{id: {revision: folder}}``; each folder is a commit of its own.
        status: ``{id: (status, X-Error-Code)}`` of repositories that are not given.
        broken: how many downloads of weight files end in their middle.
        broken_headers: how many parts of them do.
        read: (id, revision, file, range asked for, bytes sent) of every body.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, Path]] = {}
        self.status: dict[str, tuple[int, str]] = {}
        self.broken = self.broken_headers = 0
        self.read: list[tuple[str, str, str, str | None, int]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def weight_bytes(self) -> int:
        """Return how many bytes of weight files were sent."""
        return sum(sent for _, _, name, _, sent in self.read if name.endswith(".safetensors"))


def commit_of(folder: Path) -> str:
    return hashlib.sha1(str(folder).encode()).hexdigest()


def etag_of(path: Path) -> str:
    """Return what tells a file's content: SHA-256 of a large one, a shorter hash of a small one."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return digest if path.suffix == ".safetensors" else digest[:40]


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = self.path.split("?")[0]
        if found := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(?:/revision/([\w.-]+))?", path):
            self.info(found[1], found[2] or "main")
        elif found := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/tree/([\w.-]+)", path):
            self.tree(found[1], found[2])
        elif found := re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([\w.-]+)/(.+)", path):
            self.file(found[1], found[2], found[3], body=body)
        else:
            self.refuse(404, "EntryNotFound")

    def folder(self, name: str, revision: str) -> Path | None:
        if name in self.server.status:
            self.refuse(*self.server.status[name])
            return None
        revisions = self.server.repositories.get(name)
        if revisions is None:
            self.refuse(404, "RepoNotFound")
            return None
        for word, folder in revisions.items():
            if revision in (word, commit_of(folder)):
                return folder
        self.refuse(404, "RevisionNotFound")
        return None

    def info(self, name: str, revision: str) -> None:
        folder = self.folder(name, revision)
        if folder is not None:
            files = [{"rfilename": path.name} for path in sorted(folder.iterdir())]
            self.send({"id": name, "modelId": name, "sha": commit_of(folder), "siblings": files, "private": False,
                       "tags": [], "downloads": 0, "likes": 0})  # fmt: skip

    def tree(self, name: str, revision: str) -> None:
        folder = self.folder(name, revision)
        if folder is not None:
            entries = []
            for path in sorted(folder.iterdir()):
                digest, size = etag_of(path), path.stat().st_size
                entries.append({"type": "file", "path": path.name, "oid": digest[:40], "size": size})
                if path.suffix == ".safetensors":
                    entries[-1]["lfs"] = {"oid": digest, "size": size, "pointerSize": 130}
                else:
                    entries[-1]["oid"] = digest
            self.send(entries)

    def file(self, name: str, revision: str, file: str, *, body: bool) -> None:
        folder = self.folder(name, revision)
        if folder is None:
            return
        if not (folder / file).is_file():
            self.refuse(404, "EntryNotFound")
            return
        content = (folder / file).read_bytes()
        asked = self.headers.get("Range")
        start, end = 0, len(content)
        if asked and (found := re.fullmatch(r"bytes=(\d+)-(\d*)", asked)):
            start, end = int(found[1]), min(len(content), int(found[2]) + 1 if found[2] else len(content))
        part = content[start:end]
        self.send_response(206 if asked else 200)
        self.send_header("X-Repo-Commit", commit_of(folder))
        self.send_header("ETag", f'"{etag_of(folder / file)}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.end_headers()
        if not body:
            return
        kind = "broken_headers" if asked and not asked.endswith("-") else "broken"
        if getattr(self.server, kind) and file.endswith(".safetensors") and len(part) > 1000:
            setattr(self.server, kind, getattr(self.server, kind) - 1)
            part = part[: len(part) // 2]
            self.close_connection = True
        self.server.read.append((name, revision, file, asked, len(part)))
        self.wfile.write(part)

    def refuse(self, status: int, code: str) -> None:
        self.send({"error": code}, status, code)

    def send(self, value: Any, status: int = 200, code: str | None = None) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        if code is not None:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def running() -> Iterator[Hub]:
    """Run a stand-in until the end of the body."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
