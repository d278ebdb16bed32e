"""A Hub on the loopback address, to publish to and load from: real HTTP for the real client, with faults on order.

    with LoopbackHub() as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)

It knows models only, in memory, and of the Hub's answers only what its client reads. Large files are served from
another origin (`localhost` for `127.0.0.1`), as the Hub does, so that redirects and what they do to a token are real.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from publishing.answers import Answer, Asked, answer
from publishing.faults import Action, Call, Cut, Fault, Status, call, drop, lose_response, status, truncate
from publishing.repository import Entry, Refused, Repository, is_large
from publishing.xet_store import XetStore

__all__ = ["LoopbackHub", "call", "drop", "lose_response", "status", "truncate"]


class LoopbackHub:
    """The Hub: repositories, accounts, and the requests that were made.

    Attributes:
        url: The endpoint.
        token: Of the account `tester`, which may write below `tester/` and `org/`.
        stranger_token: Of one that may read what is public.
        requests: (method, path without query) of every request, in order.
    """

    token = "hf_LoopbackOwnerVerySecret"
    stranger_token = "hf_LoopbackStrangerVerySecret"

    def __init__(self, xet: Path | None = None) -> None:
        """With a folder for `xet`, large files go there the way that the client's Xet takes."""
        self.xet = None if xet is None else XetStore(xet)
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}  # by SHA-256
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.RLock()
        self._faults: list[Fault] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Connection", (_Connection,), {"hub": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.storage_url = f"http://localhost:{self._server.server_port}"

    def __enter__(self) -> LoopbackHub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def create(self, repo: str, *, private: bool = False, gated: bool = False) -> None:
        """Make a repository. A gated one shows its files to its owners only."""
        self.repositories[repo] = Repository(repo, private, gated)

    def push(
        self, repo: str, files: Mapping[str, bytes], revision: str = "main", delete: Iterable[str] = ()
    ) -> str:  # fmt: skip
        """Commit as somebody else; a repository that is not there is made, and public. Return the commit's name."""
        with self.lock:
            if repo not in self.repositories:
                self.create(repo)
            add = {path: self._entry(path, content) for path, content in files.items()}
            return self.repositories[repo].commit(revision, add, delete, "somebody else's commit")

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """Return what a revision holds."""
        with self.lock:
            return {path: self.content(entry) for path, entry in self.repositories[repo].tree(revision).items()}

    def commits(self, repo: str, revision: str = "main") -> list[tuple[str, str]]:
        """Return name and title of the commits of a revision, newest first."""
        return [(oid, one.title) for oid, one in self.repositories[repo].history(revision)]

    def branches(self, repo: str) -> dict[str, str]:
        """Return the commit that each branch points at."""
        return dict(self.repositories[repo].branches)

    def is_private(self, repo: str) -> bool:
        """Whether only its owners see a repository."""
        return self.repositories[repo].private

    def fault(self, method: str, path_regex: str, action: Action, times: float = 1) -> None:
        """Let `action` befall the next requests of `method` ("*": any) whose path, unquoted, the regex finds."""
        self._faults.append(Fault(method, re.compile(path_regex), action, times))

    def clear_faults(self) -> None:
        """Let everything go well again."""
        self._faults.clear()

    def take_fault(self, method: str, path: str) -> Action | None:
        """Return what befalls this request, and count it."""
        with self.lock:
            for fault in self._faults:
                if fault.matches(method, path):
                    fault.times -= 1
                    return fault.action
        return None

    def holds(self, sha256: str) -> bool:
        """Whether the bytes of a large file have arrived."""
        return sha256 in self.large or self.xet_hash(sha256) is not None

    def xet_hash(self, sha256: str | None) -> str | None:
        """Return the name that Xet has for a large file, if it was sent that way."""
        return self.xet.xet_hash(sha256) if self.xet and sha256 else None

    def content(self, entry: Entry) -> bytes:
        """Return the bytes of a file."""
        if entry.sha256 is None:
            return entry.content or b""
        if entry.sha256 not in self.large and self.xet is not None:
            self.large[entry.sha256] = self.xet.read(entry.sha256, entry.size)
        return self.large[entry.sha256]

    def _entry(self, path: str, content: bytes) -> Entry:
        if not is_large(path, len(content), content[:512]):
            return Entry.small(content)
        sha256 = hashlib.sha256(content).hexdigest()
        self.large[sha256] = content
        return Entry.large(sha256, len(content))


class _Closed(Exception):  # noqa: N818
    """The connection is to be closed, whatever the client waits for."""


class _Connection(BaseHTTPRequestHandler):
    """One connection of a client."""

    hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    wbufsize = 2**16  # an answer leaves in one piece;
    disable_nagle_algorithm = True  # without both, each waits 40 ms for the other side's delayed ACK

    def log_message(self, *_: object) -> None:
        """Stay quiet."""

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        # A list that has nothing to do with repositories, for which the client asks once a day.
        if path != "/api/agent-harnesses":
            self.hub.requests.append((self.command, path))
        action = self.hub.take_fault(self.command, path)
        try:
            if action is Cut.BEFORE:
                raise _Closed
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            asked = Asked(self.hub, self.command, query, self.headers, self._read_body())
            self._send(self._answer(asked, parts.path, action), action)
        except (_Closed, ConnectionError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815

    def _answer(self, asked: Asked, raw_path: str, action: Action | None) -> Answer:
        try:
            if isinstance(action, Status):
                raise Refused(action.code, "ordered by the test", action.error_code, action.retry_after)
            if isinstance(action, Call) and not action.after:
                action.function(self.hub)
            with self.hub.lock:
                return answer(asked, raw_path)
        except Refused as exc:
            named = {"X-Error-Message": exc.message, "X-Error-Code": exc.code, "Retry-After": exc.retry_after}
            headers = {name: str(value) for name, value in named.items() if value is not None}
            return Answer.of({"error": exc.message}, exc.status, headers)

    def _read_body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        if len(body) < length:
            raise _Closed
        return body

    def _send(self, found: Answer, action: Action | None) -> None:
        if isinstance(action, Call) and action.after:
            action.function(self.hub)
        if action is Cut.LOST:
            raise _Closed
        self.send_response(found.status)
        for name, value in {**found.headers, "Content-Length": str(len(found.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(found.body[: len(found.body) // 2] if action is Cut.HALF else found.body)
        self.wfile.flush()
        if action is Cut.HALF:
            raise _Closed
