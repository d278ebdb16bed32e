"""What a rank writes down of a failure in training, and what the ranks of the next attempt make of it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks.test_ballot import worlds
from torch import nn

from safe_dtype.devices import detect_one, learned_on, lessons_for
from safe_dtype.errors import NoDtypeLeft, PeerLostError
from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32
from safe_dtype.ranks import failed_dtypes, first_allowed
from safe_dtype.ranks.failed_dtypes import model_in, write_verdict
from safe_dtype.testing import TEXTS


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)


class Raising(nn.Sequential):
    """A model whose second layer raises."""

    def __init__(self, error: BaseException, dtype: torch.dtype = torch.bfloat16, width: int = 4) -> None:
        super().__init__(nn.Linear(4, width), nn.Linear(width, 4))
        self.to(dtype)
        self[1].forward = self._raise  # type: ignore[method-assign]
        self._error = error

    def _raise(self, _inputs: torch.Tensor) -> torch.Tensor:
        raise self._error


def caught(run: Callable[[], Any]) -> Exception:
    """Return what `run` raises."""
    try:
        run()
    except Exception as exc:  # noqa: BLE001  (whatever it is)
        return exc
    raise AssertionError("nothing was raised")


def step(error: BaseException, dtype: torch.dtype = torch.bfloat16) -> Exception:
    """Return what a step of a model raises that meets `error` in a dtype."""
    return caught(lambda: Raising(error, dtype)(torch.ones(2, 4, dtype=dtype)))


@pytest.mark.parametrize(
    ("error", "dtype"),
    [
        pytest.param(RuntimeError(TEXTS["not_implemented"]), "bfloat16", id="no-kernel"),
        pytest.param(RuntimeError(TEXTS["cublas"]), "bfloat16", id="cublas"),
        pytest.param(RuntimeError(TEXTS["kernel_arch"]), "bfloat16", id="the-text-names-no-dtype"),
        pytest.param(RuntimeError("illegal memory access in cublasGemmEx, CUDA_R_16BF"), "bfloat16", id="lost-device"),
        pytest.param(RuntimeError(TEXTS["out_of_memory"]), None, id="memory"),
        pytest.param(torch.OutOfMemoryError("CUDA out of memory in BFloat16"), None, id="memory-by-its-class"),
        pytest.param(RuntimeError(TEXTS["shape"]), None, id="shapes"),
        pytest.param(RuntimeError(TEXTS["mismatch"]), None, id="dtypes-that-meet-in-the-program"),
        pytest.param(FloatingPointError("loss is NaN in BFloat16"), None, id="numbers-of-one-batch"),
        pytest.param(RuntimeError("[gloo/pair.cc:534] Connection closed by peer: BFloat16"), None, id="communication"),
        pytest.param(PeerLostError(0, 1.0, "not implemented for 'BFloat16'"), None, id="a-lost-peer"),
        pytest.param(NoDtypeLeft("op", "float32", ()), None, id="nothing-is-left"),
        pytest.param(KeyError("bf16"), None, id="the-program"),
        pytest.param(RuntimeError("\"addmm\" not implemented for 'Float'"), None, id="float32"),
    ],
)
def test_what_is_a_verdict(error: BaseException, dtype: str | None) -> None:
    """Only what guards know as the failure of a 16-bit dtype, and what will be so the next time."""
    lesson = write_verdict(step(error))
    assert (lesson.dtype if lesson else None) == dtype
    assert len(learned_on(detect_one("cpu"))) == (dtype is not None)


def test_what_it_says() -> None:
    """It names the model, the module and the device; loads for inference do not heed it."""
    lesson = write_verdict(step(RuntimeError(TEXTS["kernel_arch"])))
    assert lesson is not None
    assert (lesson.family, lesson.module, lesson.device, lesson.works_in) == ("Raising", "Raising", "cpu", ())
    assert lessons_for(["cpu"], str(lesson.checkpoint), "Raising") == ()


def test_whose_it_is() -> None:
    """It counts for the same model however it is wrapped by then, and for no other."""
    error = RuntimeError(TEXTS["kernel_arch"])
    write_verdict(step(error))
    assert set(failed_dtypes(None, "cpu", Raising(error))) == {"bfloat16"}
    assert set(failed_dtypes(None, "cpu", torch.compile(Raising(error)))) == {"bfloat16"}
    assert failed_dtypes(None, "cpu", Raising(error, width=5)) == {}
    assert failed_dtypes(None, "cpu") == {}


def test_a_later_attempt_of_the_same_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """It need not know the model yet; another launch does."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a job")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    write_verdict(step(RuntimeError(TEXTS["kernel_arch"])))
    assert set(failed_dtypes(None, "cpu")) == {"bfloat16"}
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")
    assert failed_dtypes(None, "cpu") == {}


def test_a_backward_pass() -> None:
    """Where no module runs, it is the largest model that is at hand where the exception was raised."""

    def train() -> None:
        model, _loss = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), nn.Linear(1, 1)
        raise RuntimeError(f"of {len(model)} layers")

    model = model_in(caught(train))
    assert isinstance(model, nn.Sequential)


def test_ranks_unite_what_they_know() -> None:
    """A dtype that failed on one rank has failed for all, and they all hear of the same."""
    error = RuntimeError(TEXTS["kernel_arch"])
    write_verdict(step(error, torch.float16))
    with ThreadPoolExecutor(2) as threads:
        heard = list(threads.map(lambda world: failed_dtypes(world, "cpu", Raising(error)), worlds(2)))
    assert heard[0] == heard[1]
    assert heard[0]["float16"].startswith("rank 0: training of Raising raised RuntimeError: FlashAttention")


def test_the_first_that_is_allowed() -> None:
    """Where all have failed, float32 tells what is wrong."""
    ladder = (BFLOAT16, FLOAT16, FLOAT32)
    assert first_allowed(ladder, {}) == BFLOAT16
    assert first_allowed(ladder, {"bfloat16": "", "float16": ""}) == FLOAT32
    assert first_allowed((BFLOAT16,), {"bfloat16": ""}) == FLOAT32
