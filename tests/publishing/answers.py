"""What the loopback Hub answers, request by request. Speaks no HTTP: a request goes in, an answer comes out."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

import yaml  # type: ignore[import-untyped]
from publishing.repository import Entry, Refused, Repository, is_large

if TYPE_CHECKING:
    from publishing.loopback import LoopbackHub

USER, ORGANIZATION, STRANGER = "tester", "org", "stranger"
_WHEN = "2026-01-01T00:00:00.000Z"


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, body and headers."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, found: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
        """Return an answer in JSON."""
        return cls(status, json.dumps(found).encode(), {"Content-Type": "application/json", **(headers or {})})


@dataclass(frozen=True)
class Asked:
    """One request."""

    hub: LoopbackHub
    method: str
    query: Mapping[str, str]
    headers: Message  # whatever the case of a name
    body: bytes

    @cached_property
    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.body or b"{}")

    @property
    def user(self) -> str | None:
        """Who asks, or None without a token."""
        given = self.headers.get("Authorization")
        users = {None: None, f"Bearer {self.hub.token}": USER, f"Bearer {self.hub.stranger_token}": STRANGER}
        if given not in users:
            raise Refused(401, "Invalid credentials in Authorization header")
        return users[given]

    @property
    def account(self) -> str:
        """Who asks, where a token is needed."""
        if self.user is None:
            raise Refused(401, "Invalid username or password.")
        return self.user

    def owns(self, repo: str) -> bool:
        """Whether who asks may write there, and sees it where it is private."""
        namespaces = {USER: (USER, ORGANIZATION), STRANGER: (STRANGER,), None: ()}[self.user]
        return repo.partition("/")[0] in namespaces

    def to_read(self, name: str) -> Repository:
        """Return a repository that who asks may read."""
        found = self.hub.repositories.get(name)
        if found is None or (found.private and not self.owns(name)):
            raise Refused(404 if self.user else 401, "Repository not found", "RepoNotFound")
        return found

    def to_write(self, name: str) -> Repository:
        """Return a repository that who asks may write to."""
        found, user = self.to_read(name), self.account
        if not self.owns(name):
            raise Refused(403, f"{user} has no rights to write to {name}")
        return found


def answer(asked: Asked, raw_path: str) -> Answer:
    """Return what the Hub answers.

    Args:
        asked: The request.
        raw_path: Its path as it was sent: a "/" within a revision is still quoted.

    Raises:
        Refused: If that is an error.
    """
    for methods, pattern, function in _ROUTES:
        if asked.method in methods.split() and (match := re.fullmatch(pattern, raw_path)):
            found = function(asked, *(unquote(group) for group in match.groups() if group is not None))
            return found if isinstance(found, Answer) else Answer.of(found)
    raise Refused(404, f"The loopback Hub has no {asked.method} {raw_path}")


def _whoami(asked: Asked) -> Any:
    orgs = [{"name": ORGANIZATION, "roleInOrg": "write"}] if asked.account == USER else []
    token = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
    return {"type": "user", "name": asked.account, "fullname": "", "isPro": False, "orgs": orgs, "auth": token}


def _validate_yaml(asked: Asked) -> Any:
    try:
        metadata = front_matter(asked.json["content"])
    except yaml.YAMLError as exc:
        return Answer.of({"errors": [{"message": str(exc)}], "warnings": []}, 400)
    checks = {  # two of the many that the Hub makes
        '"tags" must be an array': isinstance(metadata.get("tags", []), list),
        '"base_model" is no name of a model': re.fullmatch(
            r"[\w.-]+(/[\w.-]+)?", str(metadata.get("base_model", "none"))
        ),
    }
    errors = [{"message": text} for text, holds in checks.items() if not holds]
    warnings = [] if metadata else [{"message": "empty or missing yaml metadata in repo card"}]
    return Answer.of({"errors": errors, "warnings": warnings}, 400 if errors else 200)


def _create_repository(asked: Asked) -> Any:
    name = f"{asked.json.get('organization') or asked.account}/{asked.json['name']}"
    if not asked.owns(name):
        raise Refused(403, f"{asked.account} has no rights to create {name}")
    found = {"url": f"{asked.hub.url}/{name}", "name": name, "id": name}
    if name in asked.hub.repositories:
        return Answer.of({"error": "You already created this model repo", **found}, 409)
    asked.hub.create(name, private=_wants_private(asked))
    return found


def _delete_repository(asked: Asked) -> Any:
    name = f"{asked.json.get('organization') or asked.account}/{asked.json['name']}"
    del asked.hub.repositories[asked.to_write(name).name]
    return {}


def _settings(asked: Asked, name: str) -> Any:
    repository = asked.to_write(name)
    repository.private = _wants_private(asked)
    return {}


def _wants_private(asked: Asked) -> bool:
    return asked.json.get("visibility") == "private" or bool(asked.json.get("private"))


def _information(asked: Asked, name: str, revision: str = "main") -> Any:
    repository = asked.to_read(name)
    oid = repository.resolve(revision)
    tree = repository.tree(oid)
    card = tree.get("README.md")
    with_blobs = "blobs" in asked.query
    return {
        "_id": "0", "id": name, "modelId": name, "author": name.partition("/")[0], "sha": oid, "tags": [],
        "private": repository.private, "gated": "auto" if repository.gated else False, "disabled": False,
        "downloads": 0, "likes": 0, "lastModified": _WHEN, "createdAt": _WHEN,
        "siblings": [{"rfilename": path} | (entry.blob if with_blobs else {}) for path, entry in sorted(tree.items())],
        "cardData": front_matter((card.content or b"").decode(errors="replace")) if card else None,
    }  # fmt: skip


def _tree(asked: Asked, name: str, revision: str, below: str = "") -> Any:
    start = f"{below.rstrip('/')}/" if below else ""
    recursive = asked.query.get("recursive", "").lower() == "true"
    listed: dict[str, Any] = {}
    for path, entry in sorted(asked.to_read(name).tree(revision).items()):
        if not path.startswith(start):
            continue
        folders = [path[:at] for at in range(len(start), len(path)) if path[at] == "/"]
        for folder in folders if recursive else folders[:1]:
            listed[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
        if recursive or not folders:
            listed[path] = entry.listed(path, asked.hub.xet_hash(entry.sha256))
    if below and not listed:
        raise Refused(404, f"{below} does not exist", "EntryNotFound")
    return list(listed.values())


def _paths(asked: Asked, name: str, revision: str) -> Any:
    tree = asked.to_read(name).tree(revision)
    as_json = "json" in asked.headers.get("Content-Type", "")
    paths = asked.json["paths"] if as_json else parse_qs(asked.body.decode()).get("paths", [])
    return [tree[one].listed(one, asked.hub.xet_hash(tree[one].sha256)) for one in paths if one in tree]


def _commits(asked: Asked, name: str, revision: str) -> Any:
    return [
        {"id": oid, "title": one.title, "message": one.message, "date": _WHEN, "authors": [{"user": USER}]}
        for oid, one in asked.to_read(name).history(revision)
    ]


def _refs(asked: Asked, name: str) -> Any:
    branches = asked.to_read(name).branches.items()
    heads = [{"name": one, "ref": f"refs/heads/{one}", "targetCommit": oid} for one, oid in branches]
    return {"branches": heads, "converts": [], "tags": [], "pullRequests": []}


def _create_branch(asked: Asked, name: str, branch: str) -> Any:
    repository = asked.to_write(name)
    if branch in repository.branches:
        raise Refused(409, f"Reference already exists: refs/heads/{branch}")
    repository.branches[branch] = repository.resolve(asked.json.get("startingPoint") or "main")
    return {}


def _delete_branch(asked: Asked, name: str, branch: str) -> Any:
    repository = asked.to_write(name)
    repository.head(branch)
    del repository.branches[branch]
    return {}


def _preupload(asked: Asked, name: str, revision: str) -> Any:
    repository = asked.to_write(name)
    tree, rules = repository.tree(revision), repository.ignores(revision, asked.json.get("gitIgnore"))
    files = []
    for one in asked.json["files"]:
        path, size, sample = one["path"], one["size"], base64.b64decode(one["sample"])
        there = tree[path].oid if path in tree else None
        mode = "lfs" if is_large(path, size, sample) else "regular"
        files.append({"path": path, "oid": there, "uploadMode": mode, "shouldIgnore": rules.cover(path)})
    return {"files": files}


def _large_files(asked: Asked, name: str) -> Any:
    asked.to_write(name)
    objects = asked.json["objects"]
    for one in objects:
        if not asked.hub.holds(one["oid"]):
            path = f"/lfs/{one['oid']}"
            links = {"upload": asked.hub.storage_url + path, "verify": f"{asked.hub.url}{path}/verify"}
            one["actions"] = {action: {"href": url} for action, url in links.items()}
    return {"transfer": "basic", "objects": objects}


def _store(asked: Asked, sha256: str) -> Any:
    if hashlib.sha256(asked.body).hexdigest() != sha256:
        raise Refused(400, "The bytes do not have this SHA-256")
    asked.hub.large[sha256] = asked.body
    return Answer(headers={"ETag": f'"{sha256[:32]}"'})


def _verify(asked: Asked, sha256: str) -> Any:
    if not asked.hub.holds(sha256):
        raise Refused(404, "Not uploaded")
    return {}


def _commit(asked: Asked, name: str, branch: str) -> Any:
    repository = asked.to_write(name)
    lines = [json.loads(line) for line in asked.body.splitlines() if line.strip()]
    header = lines[0]["value"]
    if not repository.head(branch).startswith(header.get("parentCommit", "")):
        raise Refused(412, "A commit has happened since. Please refresh and try again.")
    add: dict[str, Entry] = {}
    delete: list[str] = []
    for key, value in ((line["key"], line["value"]) for line in lines[1:]):
        if key == "file":
            add[value["path"]] = Entry.small(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            add[value["path"]] = _arrived(asked, repository, value)
        elif key == "deletedFile":
            delete.append(value["path"])
        elif key == "deletedFolder":
            delete += [one for one in repository.tree(branch) if one.startswith(value["path"].rstrip("/") + "/")]
        else:
            raise Refused(400, f"The loopback Hub has no operation {key}")
    oid = repository.commit(branch, add, delete, header["summary"], header.get("description", ""))
    url = f"{asked.hub.url}/{name}/commit/{oid}"
    return {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""}


def _arrived(asked: Asked, repository: Repository, value: Mapping[str, Any]) -> Entry:
    if not asked.hub.holds(value["oid"]):
        raise Refused(400, f"LFS pointer pointed to a file that does not exist: {value['oid']}")
    if "size" in value:
        return Entry.large(value["oid"], value["size"])
    # A copy within the Hub names no size: it is that of the same file in an earlier commit.
    known = (entry for one in repository.commits.values() for entry in one.tree.values())
    return next(entry for entry in known if entry.sha256 == value["oid"])


def _may_read(asked: Asked, name: str) -> Any:
    _refuse_gated(asked, asked.to_read(name))
    return {}


def _may_write(asked: Asked, name: str) -> Any:
    asked.to_write(name)
    return {}


def _refuse_gated(asked: Asked, repository: Repository) -> None:
    if repository.gated and not asked.owns(repository.name):
        status = 403 if asked.user else 401
        raise Refused(status, f"Access to model {repository.name} is restricted", "GatedRepo")


def _xet_token(asked: Asked, name: str, kind: str, _revision: str) -> Any:
    _ = asked.to_write(name) if kind == "write" else asked.to_read(name)
    if asked.hub.xet is None:
        raise Refused(404, "This Hub has no Xet")
    address, until = asked.hub.xet.address, int(time.time()) + 3600
    told = {"X-Xet-Cas-Url": address, "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": str(until)}
    return Answer.of({"casUrl": address, "exp": until, "accessToken": "xet"}, headers=told)


def _resolve(asked: Asked, name: str, revision: str, path: str) -> Any:
    repository, hub = asked.to_read(name), asked.hub
    _refuse_gated(asked, repository)
    oid = repository.resolve(revision)
    headers = {"X-Repo-Commit": oid, "Accept-Ranges": "bytes"}
    entry = repository.tree(oid).get(path)
    if entry is None:
        raise Refused(404, "Entry not found", "EntryNotFound")
    if entry.sha256 is None:
        return _content(asked, entry, {**headers, "ETag": f'"{entry.git}"'})
    headers |= {"X-Linked-Etag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
    if xet_hash := hub.xet_hash(entry.sha256):
        route = f"{hub.url}/api/models/{name}/xet-read-token/{oid}"
        headers |= {"X-Xet-Hash": xet_hash, "X-Xet-Refresh-Route": route}
    location = f"{hub.storage_url}/lfs/{entry.sha256}?size={entry.size}"
    return Answer(302, headers={**headers, "Location": location})


def _fetch(asked: Asked, sha256: str) -> Any:
    if not asked.hub.holds(sha256):
        raise Refused(404, "No such file")
    entry = Entry.large(sha256, int(asked.query["size"]))
    return _content(asked, entry, {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})


def _content(asked: Asked, entry: Entry, headers: Mapping[str, str]) -> Answer:
    content = asked.hub.content(entry)
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", asked.headers.get("Range", ""))
    if wanted is None:
        return Answer(200, content, headers)
    first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
    if first > last:
        raise Refused(416, "Range Not Satisfiable")
    place = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
    return Answer(206, content[first : last + 1], {**headers, **place})


def front_matter(text: str) -> dict[str, Any]:
    """Return the YAML at the top of a card."""
    match = re.match(r"\s*---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    return (yaml.safe_load(match[1]) or {}) if match else {}


_NAME, _REVISION = r"([^/]+/[^/]+)", r"([^/]+)"
_API = f"/api/models/{_NAME}"
_ROUTES: tuple[tuple[str, str, Callable[..., Any]], ...] = (
    ("GET", "/api/whoami-v2", _whoami),
    ("POST", "/api/validate-yaml", _validate_yaml),
    ("POST", "/api/repos/create", _create_repository),
    ("DELETE", "/api/repos/delete", _delete_repository),
    ("PUT", f"{_API}/settings", _settings),
    ("GET", _API, _information),
    ("GET", f"{_API}/revision/{_REVISION}", _information),
    ("GET", f"{_API}/tree/{_REVISION}(?:/(.+))?", _tree),
    ("POST", f"{_API}/paths-info/{_REVISION}", _paths),
    ("GET", f"{_API}/commits/{_REVISION}", _commits),
    ("GET", f"{_API}/refs", _refs),
    ("POST", f"{_API}/branch/{_REVISION}", _create_branch),
    ("DELETE", f"{_API}/branch/{_REVISION}", _delete_branch),
    ("POST", f"{_API}/preupload/{_REVISION}", _preupload),
    ("POST", f"{_API}/commit/{_REVISION}", _commit),
    ("GET", f"{_API}/auth-check", _may_read),
    ("GET", f"{_API}/auth-check/write", _may_write),
    ("GET", f"{_API}/xet-(read|write)-token/{_REVISION}", _xet_token),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _large_files),
    ("PUT", r"/lfs/(\w+)", _store),
    ("GET HEAD", r"/lfs/(\w+)", _fetch),
    ("POST", r"/lfs/(\w+)/verify", _verify),
    ("GET HEAD", f"/{_NAME}/resolve/{_REVISION}/(.+)", _resolve),
)
