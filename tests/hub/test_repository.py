"""Repositories on the Hub, read over real HTTP from a loopback Hub by the real client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants, hf_hub_download
from mini_hub import MiniHub
from publishing.client import connect
from publishing.loopback import LoopbackHub
from tiny_models import TINY

from safe_dtype.checkpoints import read_checkpoint
from safe_dtype.errors import CheckpointError, CheckpointNotFoundError, CorruptCheckpointError, GatedCheckpointError
from safe_dtype.facts import BFLOAT16, FLOAT16, CheckpointFacts, Where
from safe_dtype.hub.repository import HubRepository


@dataclass(frozen=True)
class Client:
    """Reads with the real client of this process, pointed at a Hub, with a cache of its own."""

    hub: MiniHub
    home: Path

    def read(self, source: str, **where: Any) -> CheckpointFacts:
        """Return what reading `source` found."""
        return read_checkpoint(Where(source, **where))

    def cached_weights(self) -> list[Path]:
        """Return the weight files in the client's cache."""
        return [file for file in self.home.rglob("*") if file.suffix in (".safetensors", ".bin")]


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
def client(
    repositories: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Client]:
    """Return a client with an empty cache and a Hub that serves the repositories; its token is never shown."""
    hub = MiniHub(
        repositories | {"org/gated": tmp_path}, gated=frozenset({"org/gated"}), broken=frozenset({"org/ill"})
    )
    with hub.running():
        connect(monkeypatch, hub, tmp_path / "client")
        yield Client(hub, tmp_path / "client")
    assert hub.token not in "".join(capfd.readouterr())


def test_headers_by_range(client: Client) -> None:
    """A repository is read by a range request: no weights come down, none are cached."""
    facts = client.read("org/whole")
    assert (facts.saved, facts.parameters, facts.files) == (FLOAT16, 4 * 256 * 1024, ("model.safetensors",))
    assert client.hub.bytes_served < 110_000
    assert not client.cached_weights()


def test_sharded(client: Client) -> None:
    """Every shard's header is read."""
    facts = client.read("org/sharded")
    assert facts.saved is BFLOAT16
    assert len(facts.files) > 2
    assert not client.cached_weights()


def test_adapter(client: Client) -> None:
    """An adapter's repository leads to its base's."""
    assert client.read("org/adapter").parameters == 4 * 256 * 1024


def test_from_the_cache(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the cache is read offline, without asking anybody."""
    for name in ("config.json", "model.safetensors"):
        hf_hub_download("org/whole", name)
    asked = len(client.hub.requests)
    assert client.read("org/whole", local_files_only=True).saved is FLOAT16
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert client.read("org/whole").saved is FLOAT16
    assert len(client.hub.requests) == asked


@pytest.mark.parametrize(
    ("where", "error", "words"),
    [
        pytest.param({"source": "org/gated"}, GatedCheckpointError, ("gated", "hf auth login"), id="gated"),
        pytest.param({"source": "org/none"}, CheckpointNotFoundError, ("org/none", "no repository"), id="404"),
        pytest.param({"source": "org/whole", "revision": "v9"}, CheckpointNotFoundError, ("'v9'",), id="revision"),
        pytest.param(
            {"source": "org/empty"}, CheckpointNotFoundError, ("no weights", "model.safetensors"), id="no-weights"
        ),
        pytest.param(
            {"source": "org/whole", "variant": "fp8"}, CheckpointNotFoundError, ("variant 'fp8'",), id="variant"
        ),
        pytest.param({"source": "org/broken"}, CorruptCheckpointError, ("model.safetensors", "header"), id="corrupt"),
        pytest.param({"source": "a/b/c"}, CheckpointNotFoundError, ("no such file or folder",), id="path"),
        pytest.param(
            {"source": "org/sp ace"}, CheckpointNotFoundError, ("neither a folder nor a repository",), id="bad-name"
        ),
        pytest.param({"source": "org/ill"}, CheckpointError, ("500", "later"), id="a-fault-of-its-own"),
    ],
)
def test_errors(client: Client, where: dict[str, Any], error: type[CheckpointError], words: tuple[str, ...]) -> None:
    """Each way to fail is its own error, with the facts and the next step."""
    with pytest.raises(CheckpointError) as caught:
        client.read(**where)
    assert type(caught.value) is error
    for word in words:
        assert word in str(caught.value)


def test_offline(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, a repository that is not cached is an error that says nothing was asked."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointNotFoundError, match="offline"):
        client.read("org/whole")
    assert not client.hub.requests


def test_nobody_answers(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hub that cannot be reached is said to be that."""
    nobody = MiniHub({}, url="http://127.0.0.1:9")
    connect(monkeypatch, nobody, client.home)
    with pytest.raises(CheckpointError, match="cannot be reached") as caught:
        client.read("org/whole")
    assert type(caught.value) is CheckpointError


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
