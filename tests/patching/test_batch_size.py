"""`find_executable_batch_size` of accelerate: a failure of a dtype ends as one, memory that is short as before."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate.utils import find_executable_batch_size, memory
from torch import nn

import safe_dtype
from safe_dtype.errors import NoDtypeLeft
from safe_dtype.facts import BFLOAT16
from safe_dtype.guarding.diagnosis.computed_in import places_of
from safe_dtype.patching.batch_size import is_of_a_dtype
from safe_dtype.testing import TEXTS

# As torch says them; accelerate takes the first for a lack of memory, and rightly the others.
CUDNN = "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input."
NO_MEMORY = [
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 8.00 GiB",
    "MPS backend out of memory (MPS allocated: 8.00 GB)",
    "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.",
]


class Convolution(nn.Module):
    """A layer that says `text`, unless it is in float32 or has no more than `fits` rows."""

    def __init__(self, text: str, fits: int = 0, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.text, self.fits = text, fits
        self.weight = nn.Parameter(torch.ones(4, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply by the weight."""
        if self.weight.dtype != torch.float32 and len(x) > self.fits:
            raise RuntimeError(self.text)
        return x * self.weight


def trained(layer: nn.Module) -> list[int]:
    """Train under accelerate's search for a batch; return the batches that were tried."""
    tried = []

    @find_executable_batch_size(starting_batch_size=3)  # type: ignore[untyped-decorator]
    def train(batch_size: int) -> None:
        tried.append(batch_size)
        layer(torch.ones(batch_size, 4, dtype=torch.bfloat16)).sum().backward()

    train()
    return tried


def test_ends_as_the_failure_of_a_dtype() -> None:
    """A layer without a kernel ends with its own error, which is not taken for a lack of memory to the end."""
    with safe_dtype.patched(), pytest.raises(RuntimeError, match="CUDNN_STATUS_NOT_SUPPORTED"):
        trained(Convolution(CUDNN))
    with pytest.raises(RuntimeError, match="No executable batch size found"):
        trained(Convolution(CUDNN))


def test_what_is_too_large_is_made_smaller() -> None:
    """Where fewer rows work, the search finds them as before: cuDNN refuses what is too large in the same words."""
    with safe_dtype.patched():
        assert trained(Convolution(CUDNN, fits=1)) == [3, 2, 1]


def test_memory_stays_as_it_is() -> None:
    """A lack of memory is answered with smaller batches, and ends as accelerate ends it."""
    answers = [memory.should_reduce_batch_size(RuntimeError(text)) for text in NO_MEMORY]
    assert any(answers)  # accelerate 1.10 does not know the words of MPS
    with safe_dtype.patched():
        assert [memory.should_reduce_batch_size(RuntimeError(text)) for text in NO_MEMORY] == answers
        with pytest.raises(RuntimeError, match="No executable batch size found"):
            trained(Convolution(NO_MEMORY[0]))


def test_measured_to_have_none() -> None:
    """On a device that has no such convolution the first failure is the last; one that has it gets smaller batches."""
    failure = caught(lambda: trained_once(Convolution(CUDNN)))
    assert places_of(failure) == {(BFLOAT16, "cpu")}
    assert is_of_a_dtype(failure, 8, lambda place: place != (BFLOAT16, "cpu"))
    assert not is_of_a_dtype(failure, 8, lambda _: True)
    assert not is_of_a_dtype(failure, 8, lambda _: None)
    assert not is_of_a_dtype(caught(lambda: trained_once(Convolution(NO_MEMORY[0]))), 1, lambda _: False)


def test_our_own_errors_are_no_lack_of_memory() -> None:
    """What the guard raises ends the search at once, whatever it quotes."""
    error = NoDtypeLeft(CUDNN, "float32", ())
    assert not memory.should_reduce_batch_size(error)
    assert not memory.should_reduce_batch_size(NoDtypeLeft(TEXTS["out_of_memory"], "float32", ()))


IMPORTED_FIRST = """
import accelerate
from accelerate.utils import find_executable_batch_size

@find_executable_batch_size(starting_batch_size=2)
def train(batch_size):
    raise RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if")

train()
"""


@pytest.mark.slow
def test_accelerate_without_transformers(tmp_path: Path) -> None:
    """A script of plain torch and accelerate ends with its own error under `safe-dtype run`."""
    (tmp_path / "script.py").write_text(IMPORTED_FIRST)
    done = subprocess.run(
        [sys.executable, "-m", "safe_dtype.run", str(tmp_path / "script.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.strip().endswith(
        "RuntimeError: cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if"
    )
    assert "stays as it is in this process" not in done.stderr


def test_taken_back() -> None:
    """The function is accelerate's own again afterwards, wherever it is held by its name."""
    import transformers.trainer  # which holds it in newer versions

    holders = [one for one in (memory, transformers.trainer) if hasattr(one, "should_reduce_batch_size")]
    originals = [holder.should_reduce_batch_size for holder in holders]
    with safe_dtype.patched():
        assert len({holder.should_reduce_batch_size for holder in holders} - {*originals}) == 1
    assert [holder.should_reduce_batch_size for holder in holders] == originals


def caught(function: Callable[[], object]) -> RuntimeError:
    """Return what `function` raises."""
    with pytest.raises(RuntimeError) as raised:
        function()
    return raised.value


def trained_once(layer: nn.Module) -> None:
    """Take one step."""
    layer(torch.ones(8, 4)).sum().backward()
