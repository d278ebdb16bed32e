"""Repositories on the Hub, read over real HTTP from a loopback Hub by the real client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from mini_hub import MiniHub
from publishing.loopback import LoopbackHub
from tiny_models import TINY

from safe_dtype.errors import CheckpointError, CheckpointNotFoundError
from safe_dtype.facts import Where
from safe_dtype.hub.repository import HubRepository

_READ = """
import json, sys
from safe_dtype.checkpoints import read_checkpoint
from safe_dtype.facts import Where
from safe_dtype.errors import SafeDtypeError
for where in json.loads(sys.argv[1]):
    try:
        facts = read_checkpoint(Where(**where))
    except SafeDtypeError as exc:
        print(json.dumps({"error": type(exc).__name__, "text": str(exc)}))
    else:
        print(json.dumps({"saved": facts.saved.name, "parameters": facts.parameters, "files": facts.files}))
"""


@dataclass(frozen=True)
class Client:
    """Reads in a process of its own, since the client reads its settings when it is imported."""

    hub: MiniHub
    home: Path

    def read(self, source: str, *, offline: bool = False, endpoint: str | None = None, **where: Any) -> dict[str, Any]:
        """Return what reading `source` found, or its error."""
        return self.read_all([{"source": source, **where}], offline=offline, endpoint=endpoint)[0]

    def read_all(
        self, wheres: list[dict[str, Any]], *, offline: bool = False, endpoint: str | None = None
    ) -> list[dict[str, Any]]:
        """Return what reading each of them found, or its error: all of it in one process, which takes 3 s to begin."""
        env = os.environ | {
            "HF_ENDPOINT": endpoint or self.hub.url, "HF_HUB_OFFLINE": "1" if offline else "0",
            "HF_HOME": str(self.home), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_very_secret",
        }  # fmt: skip
        command = [sys.executable, "-c", _READ, json.dumps(wheres)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, cwd=self.home)
        assert "hf_very_secret" not in done.stdout + done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()[-len(wheres) :]]

    def cached_weights(self) -> list[Path]:
        """Return the weight files in the client's cache."""
        return [one for one in self.home.rglob("*") if one.suffix in (".safetensors", ".bin")]


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return folders of one whole and one sharded checkpoint, and of one with a broken header."""
    root = tmp_path_factory.mktemp("repositories")
    # Large enough that its weights are much more than the first bytes which the client asks for.
    whole = root / "whole"
    whole.mkdir()
    weights = {f"layers.{i}.weight": torch.zeros(256, 1024, dtype=torch.float16) for i in range(4)}
    import safetensors.torch

    safetensors.torch.save_file(weights, whole / "model.safetensors")
    (whole / "config.json").write_text(json.dumps({"model_type": "none", "dtype": "float16"}))
    sharded = TINY["mixtral"].save(root / "sharded", torch.bfloat16, max_shard_size="30KB")
    broken = root / "broken"
    broken.mkdir()
    (broken / "model.safetensors").write_bytes((1000).to_bytes(8, "little") + b"{nonsense" * 200)
    empty = root / "empty"
    empty.mkdir()
    (empty / "README.md").write_text("nothing here")
    adapter = root / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/whole"}))
    return {f"org/{one.name}": one for one in (whole, sharded, broken, empty, adapter)}


@pytest.fixture
def client(repositories: dict[str, Path], tmp_path: Path) -> Iterator[Client]:
    """Return a client with an empty cache and a Hub that serves the repositories."""
    with _client(repositories, tmp_path) as client:
        yield client


@contextmanager
def _client(repositories: dict[str, Path], home: Path) -> Iterator[Client]:
    hub = MiniHub(repositories | {"org/gated": home}, gated=frozenset({"org/gated"}), broken=frozenset({"org/ill"}))
    with hub.running():
        yield Client(hub, home)


def test_headers_by_range(client: Client) -> None:
    """A repository is read by a range request: no weights come down, none are cached."""
    assert client.read("org/whole") == {
        "saved": "float16",
        "parameters": 4 * 256 * 1024,
        "files": ["model.safetensors"],
    }
    assert client.hub.bytes_served < 110_000
    assert not client.cached_weights()


def test_sharded(client: Client) -> None:
    """Every shard's header is read."""
    found = client.read("org/sharded")
    assert found["saved"] == "bfloat16"
    assert len(found["files"]) > 2
    assert not client.cached_weights()


def test_adapter(client: Client) -> None:
    """An adapter's repository leads to its base's."""
    assert client.read("org/adapter")["parameters"] == 4 * 256 * 1024


def test_from_the_cache(client: Client) -> None:
    """What is in the cache is read offline, without asking anybody."""
    download = (
        "import huggingface_hub as h, sys; "
        "[h.hf_hub_download(sys.argv[1], name) for name in ('config.json', 'model.safetensors')]"
    )
    env = os.environ | {"HF_ENDPOINT": client.hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(client.home)}
    subprocess.run([sys.executable, "-c", download, "org/whole"], env=env, check=True, capture_output=True)
    asked = len(client.hub.requests)
    assert client.read("org/whole", offline=True)["saved"] == "float16"
    assert client.read("org/whole", local_files_only=True)["saved"] == "float16"
    assert len(client.hub.requests) == asked


# What is asked for, the error, and what its text has.
ERRORS: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "gated": ({"source": "org/gated"}, "GatedCheckpointError", ("gated", "hf auth login")),
    "404": ({"source": "org/none"}, "CheckpointNotFoundError", ("org/none", "no repository")),
    "revision": ({"source": "org/whole", "revision": "v9"}, "CheckpointNotFoundError", ("'v9'",)),
    "no-weights": ({"source": "org/empty"}, "CheckpointNotFoundError", ("no weights", "model.safetensors")),
    "variant": ({"source": "org/whole", "variant": "fp8"}, "CheckpointNotFoundError", ("variant 'fp8'",)),
    "corrupt": ({"source": "org/broken"}, "CorruptCheckpointError", ("model.safetensors", "header")),
    "path": ({"source": "a/b/c"}, "CheckpointNotFoundError", ("no such file or folder",)),
    "bad-name": ({"source": "org/sp ace"}, "CheckpointNotFoundError", ("neither a folder nor a repository",)),
}


@pytest.fixture(scope="module")
def errors(repositories: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Return what reading each of ERRORS gives."""
    with _client(repositories, tmp_path_factory.mktemp("home")) as client:
        return dict(zip(ERRORS, client.read_all([where for where, *_ in ERRORS.values()]), strict=True))


@pytest.mark.parametrize("name", ERRORS)
def test_errors(errors: dict[str, dict[str, Any]], name: str) -> None:
    """Each way to fail is its own error, with the facts and the next step."""
    _, error, words = ERRORS[name]
    assert errors[name]["error"] == error
    for word in words:
        assert word in errors[name]["text"]


@pytest.mark.slow  # the client tries again for 20 s
def test_a_hub_that_is_ill(client: Client) -> None:
    """Where the Hub has a fault of its own, the next step is to try later."""
    found = client.read("org/ill")
    assert found["error"] == "CheckpointError"
    assert "500" in found["text"]
    assert "later" in found["text"]


def test_offline(client: Client) -> None:
    """Offline, a repository that is not cached is an error that says nothing was asked."""
    found = client.read("org/whole", offline=True)
    assert found["error"] == "CheckpointNotFoundError"
    assert "offline" in found["text"]
    assert not client.hub.requests


class TestSnapshot:
    """The files of one revision, in a folder of the cache."""

    @pytest.mark.parametrize(
        ("patterns", "names"),
        [
            pytest.param({}, {".gitattributes", "config.json", "a.bin"}, id="all"),
            pytest.param({"only": ["*.json"]}, {"config.json"}, id="only"),
            pytest.param({"without": ["*.json", ".git*"]}, {"a.bin"}, id="without"),
        ],
    )
    def test_patterns(self, hub: LoopbackHub, patterns: dict[str, list[str]], names: set[str]) -> None:
        """Its folder is named by the commit, and holds the files that were asked for."""
        hub.push("org/model", {".gitattributes": b"", "config.json": b"{}", "a.bin": b"weights"})
        folder = HubRepository(Where("org/model")).snapshot(**patterns)
        assert folder.name == hub.branches("org/model")["main"]
        assert {path.name for path in folder.iterdir()} == names

    @pytest.mark.parametrize("name", ["org/none", "org/sp ace"])
    def test_no_repository(self, hub: LoopbackHub, name: str) -> None:
        """What is no repository is the error that reading it gives."""
        with pytest.raises(CheckpointNotFoundError):
            HubRepository(Where(name)).snapshot()

    def test_offline(self, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
        """Offline, what is not in the cache cannot be downloaded, and nothing is asked."""
        hub.push("org/model", {"config.json": b"{}"})
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(CheckpointError, match="cannot be downloaded"):
            HubRepository(Where("org/model")).snapshot()
        assert not hub.requests


@pytest.mark.slow  # the client tries again for 20 s, as with the 500 above
def test_nobody_answers(client: Client) -> None:
    """A Hub that cannot be reached is said to be that."""
    found = client.read("org/whole", endpoint="http://127.0.0.1:9")
    assert found["error"] == "CheckpointError"
    assert "cannot be reached" in found["text"]
