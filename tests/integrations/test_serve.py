"""`transformers serve` of a guarded model, with real requests: a failure amid four of them ends none, nor the server."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from safe_dtype import FLOAT32, patched, report
from safe_dtype.testing import fault

pytestmark = [pytest.mark.needs("serve"), pytest.mark.filterwarnings("default")]

MODEL = Path(__file__).resolve().parents[2] / "examples" / "tiny-qwen3"
TEXTS = ("The argument is", "A ship", "Rain", "The sea")


class Server:
    """A server on this machine, and the model that it has loaded."""

    def __init__(self, dtype: str, **options: Any) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.serve = import_module("transformers.cli.serve").Serve(
            force_model=str(MODEL), device="cpu", dtype=dtype, host="127.0.0.1", port=self.port, non_blocking=True,
            **options,
        )  # fmt: skip
        (loaded,) = self.serve._model_manager.loaded_models.values()
        self.model = loaded.model
        for _ in range(300):
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
                break
            time.sleep(0.1)

    def answer(self, text: str) -> str:
        """Return what the model says to one message."""
        asked = {
            "model": str(MODEL), "messages": [{"role": "user", "content": text}], "max_tokens": 6, "temperature": 0.0,
            "stream": False,
        }  # fmt: skip
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/chat/completions", json.dumps(asked).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=120) as response:
            return str(json.load(response)["choices"][0]["message"]["content"])

    def answers(self) -> dict[str, str]:
        """Return what it says to four messages at once."""
        answers: dict[str, str] = {}
        threads = [
            threading.Thread(target=lambda text=text: answers.__setitem__(text, self.answer(text))) for text in TEXTS
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers


@contextmanager
def serving(dtype: str, *, batches: bool) -> Iterator[Server]:
    """Serve for as long as the block runs."""
    pool = {"cb_num_blocks": 64, "cb_max_batch_tokens": 64} if batches else {}
    server = Server(dtype, continuous_batching=batches, **pool)
    try:
        yield server
    finally:
        server.serve.kill_server()


@pytest.mark.parametrize("batches", [True, False], ids=["continuous-batching", "one-by-one"])
def test_requests(batches: bool) -> None:
    """Answers are those of a plain server while all is well, and those of a plain float32 server where the model fails."""
    with serving("float32", batches=batches) as wide:
        wanted = wide.answers()
    with serving("bfloat16", batches=batches) as plain:
        narrow = plain.answers()
    with patched(tell="nothing"), serving("bfloat16", batches=batches) as server:
        assert server.answers() == narrow
        assert report(server.model).events == ()
        with fault(server.model, "model.layers.1.mlp.down_proj", "nan") as put:
            assert server.answers() == wanted
        assert put.fired
        assert [event.after for event in report(server.model).events] == [FLOAT32]
        assert server.answers() == wanted
