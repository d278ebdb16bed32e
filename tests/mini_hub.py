"""A Hub on the loopback address, just large enough for reading: real HTTP for the real client."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class MiniHub:
    """Repositories by name, with what was asked and how many bytes of files went out."""

    repositories: dict[str, Path]
    gated: frozenset[str] = frozenset()
    broken: frozenset[str] = frozenset()  # answers 500
    url: str = ""
    token: str = "hf_MiniHubVerySecret"
    requests: list[str] = field(default_factory=list)
    bytes_served: int = 0

    @contextmanager
    def running(self) -> Iterator[MiniHub]:
        """Serve until the block ends."""
        hub = self

        class Handler(_Handler):
            state = hub

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: MiniHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Stay quiet."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.state.requests.append(f"{self.command} {path}")
        api = path.startswith("/api/models/")
        parts = path.removeprefix("/api/models").strip("/").split("/")
        repo = "/".join(parts[:2])
        if repo in self.state.gated:
            return self._refuse(403, "GatedRepo")
        if repo in self.state.broken:
            return self._refuse(500, "")
        if repo not in self.state.repositories:
            return self._refuse(404, "RepoNotFound")
        verb, revision, rest = parts[2], parts[3], "/".join(parts[4:])
        if revision not in ("main", COMMIT):
            return self._refuse(404, "RevisionNotFound")
        folder = self.state.repositories[repo]
        if api and verb in ("tree", "revision"):
            return self._tree(folder)
        file = folder / rest
        return self._file(file, with_body=with_body) if file.is_file() else self._refuse(404, "EntryNotFound")

    def _tree(self, folder: Path) -> None:
        files = [one for one in sorted(folder.rglob("*")) if one.is_file()]
        entries = [
            {"type": "file", "path": str(one.relative_to(folder)), "size": one.stat().st_size, "oid": COMMIT}
            for one in files
        ]
        self._send(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})

    def _file(self, file: Path, *, with_body: bool) -> None:
        content = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range")
        if asked and with_body:
            start, _, end = asked.removeprefix("bytes=").partition("-")
            first, last = int(start), min(int(end or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            self.state.bytes_served += last + 1 - first
            return self._send(206, content[first : last + 1], headers)
        self.state.bytes_served += len(content) if with_body else 0
        return self._send(200, content, headers, with_body=with_body)

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code} if code else {})

    def _send(self, status: int, body: bytes, headers: dict[str, str], *, with_body: bool = True) -> None:
        self.send_response(status)
        for name, value in {"X-Repo-Commit": COMMIT, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body and self.command != "HEAD":
            self.wfile.write(body)
