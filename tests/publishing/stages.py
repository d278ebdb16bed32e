"""Staged folders for the tests of the pipeline: as small as they can be, and whole."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import HfApi, constants
from publishing.loopback import LoopbackHub

from safe_dtype.hub.client import Hub, HubPatience
from safe_dtype.publishing.pushing.push import push
from safe_dtype.publishing.release import Target

REPO = "org/model-fp16"
HURRIED = HubPatience(waits=(0, 0), polls=(0, 0))


def hurried(hub: LoopbackHub, token: str | bool | None = None) -> Hub:
    """Return the pipeline's Hub, which tries as it always does and does not wait in between."""
    return Hub(HfApi(endpoint=hub.url, token=hub.token if token is None else token), HURRIED)


def safetensors(dtype: str, *names: str, fill: int = 0) -> bytes:
    """Return a safetensors file with one tensor of 8 bytes for each name."""
    header = {
        name: {"dtype": dtype, "shape": [8 // {"F16": 2, "BF16": 2, "F32": 4}[dtype]], "data_offsets": [8 * at, 8 * at + 8]}
        for at, name in enumerate(names)
    }  # fmt: skip
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes([fill]) * (8 * len(names))


def sharded(fill: int = 0, base: str = "org/model") -> dict[str, bytes]:
    """Return the files of a variant in two shards."""
    shards = {f"model-0000{at}-of-00002.safetensors": safetensors("F16", f"w{at}", fill=fill) for at in (1, 2)}
    index = {"weight_map": {f"w{at}": name for at, name in enumerate(shards, 1)}}
    files = {
        **shards,
        "model.safetensors.index.json": json.dumps(index).encode(),
        "config.json": b'{"dtype": "float16"}',
        "plots/drift.svg": b"<svg/>",
    }
    listed = {path: {"size": len(one), "sha256": hashlib.sha256(one).hexdigest()} for path, one in files.items()}
    evidence = {"schema": "safe_dtype.variant/1", "base": {"repo": base, "revision": None}, "files": listed}
    card = f"---\ntags: [safe-dtype]\n---\n# A variant, {fill}\n".encode()
    return {**files, "safe_dtype.json": json.dumps(evidence).encode(), "README.md": card}


def whole(fill: int = 9) -> dict[str, bytes]:
    """Return the files of an earlier state, all weights in one file."""
    return {
        "model.safetensors": safetensors("BF16", "w1", "w2", fill=fill),
        "config.json": b'{"dtype": "bfloat16"}',
        "README.md": b"---\ntags: [old]\n---\n# Before\n",
        "LICENSE": b"theirs",
    }


def written(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write a staged folder."""
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def held(folder: Path) -> dict[str, bytes]:
    """Return what a folder holds, every file of it."""
    return {one.relative_to(folder).as_posix(): one.read_bytes() for one in folder.rglob("*") if one.is_file()}


def ours(hub: LoopbackHub, repo: str = REPO, revision: str = "main") -> list[str]:
    """Return the commits of ours at a revision, newest first."""
    return [oid for oid, title in hub.commits(repo, revision) if title.startswith("safe-dtype: publish ")]


def push_alone(url: str, token: str, folder: str, repo: str, revision: str) -> None:
    """Push from a process of its own, whose client may have been told otherwise by the environment."""
    constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = False, True
    push(Path(folder), Target(repo, revision, public=True), api=Hub(HfApi(endpoint=url, token=token), HURRIED))
