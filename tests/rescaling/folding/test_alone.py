"""A rescale is taken back while nobody runs the model: what other threads compute stays right."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engineered import engineered, saved
from rescaling.folding.changes import blocks, is_near, results

import safe_dtype
from safe_dtype.errors import SafeDtypeWarning
from safe_dtype.rescaling import rescaled_of

READS: dict[str, Callable[[Any], Any]] = {
    "state dict": lambda model: model.state_dict(),
    "hook": lambda model: blocks(model)[2].register_forward_hook(lambda *_: None),
}


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("name", READS)
def test_read_while_others_run_it(family: str, name: str, tmp_path: Path) -> None:
    """Who reads a model in one thread spoils no result of the others, and ends none of them."""
    folder, expected = saved(family, tmp_path), results(engineered(family), family)
    for _ in range(4):
        model = safe_dtype.SafeAutoModelForCausalLM.from_pretrained(folder, dtype="float16")
        assert rescaled_of(model) is not None
        found: list[Any] = []
        running, done = threading.Barrier(3), threading.Event()

        def serve(model: Any = model, found: list[Any] = found, running: Any = running, done: Any = done) -> None:
            try:
                running.wait()
                while not done.is_set():
                    found.append(results(model, family))
            except RuntimeError as exc:  # two dtypes meet
                found.append(exc)

        threads = [threading.Thread(target=serve) for _ in range(2)]
        for one in threads:
            one.start()
        running.wait()
        while len(found) < 2:
            done.wait(0.001)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SafeDtypeWarning)
            READS[name](model)
        before = len(found)
        while len(found) < before + 4 and not any(isinstance(one, RuntimeError) for one in found):
            done.wait(0.001)
        done.set()
        for one in threads:
            one.join()
        assert [one for one in found if isinstance(one, RuntimeError)] == []
        assert all(is_near(one, expected) for one in found)
