"""The real client, set up for a loopback Hub: in this process, or in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants, errors
from huggingface_hub.utils import _http
from mini_hub import MiniHub
from publishing.loopback import LoopbackHub
from transformers.utils import hub as transformers_hub

# The client waits 1, 2, 4, 8 and 8 s before it tries again. Here it waits as often, a thousandth of that.
_HURRIED = SimpleNamespace(sleep=lambda seconds: time.sleep(seconds / 1000))
_HURRY = """
import time as _time, types as _types
import huggingface_hub.utils._http as _http
_http.time = _types.SimpleNamespace(sleep=lambda seconds: _time.sleep(seconds / 1000))
"""

# What the client sends with: it was httpx, and is httpx2.
httpx = sys.modules[errors.HfHubHTTPError.__bases__[0].__module__.partition(".")[0]]


def connect(monkeypatch: pytest.MonkeyPatch, hub: LoopbackHub | MiniHub, home: Path) -> None:
    """Point the client of this process at `hub`, without Xet, with a cache below `home`.

    What it read from the environment when it was imported is set anew; nothing else of it is touched.
    """
    settings = {
        "ENDPOINT": hub.url, "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True, "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    monkeypatch.setattr(_http, "time", _HURRIED)
    # transformers keeps a client of its own, which would go on asking the Hub of the test before.
    monkeypatch.setattr(transformers_hub, "_hf_api", None, raising=False)


def environment(hub: LoopbackHub, home: Path, *, xet: bool = False) -> dict[str, str]:
    """Return the environment of a process whose client is to talk to `hub`, with everything it keeps in `home`."""
    return os.environ | {
        "HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "0" if xet else "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "DISABLE_SAFETENSORS_CONVERSION": "1",
        "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "2", "HF_XET_CLIENT_RETRY_BASE_DELAY": "20ms",
    }  # fmt: skip


def in_child(hub: LoopbackHub, code: str, *arguments: str | Path, xet: bool = False, token: str | None = None) -> str:
    """Run `code` in a process of its own, with `arguments` in sys.argv[1:]; return what it printed.

    Raises:
        AssertionError: If it fails; the error holds what it wrote to stderr.
    """
    with tempfile.TemporaryDirectory() as home:
        env = environment(hub, Path(home), xet=xet) | ({} if token is None else {"HF_TOKEN": token})
        command = [sys.executable, "-c", _HURRY + code, *map(str, arguments)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=home)
    assert done.returncode == 0, done.stderr
    return done.stdout
