"""What only a GPU shows. `python -m pytest -m needs -k needs_cuda --must-have cuda` runs it, with all else that needs one."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from device_checks import CHECKS, Device, captured_step, generated, model_on

from safe_dtype import guard, report

# Compilers warn of what a GPU lacks: that is no failure of a test.
pytestmark = [pytest.mark.needs("cuda"), pytest.mark.filterwarnings("default")]

ROOT = Path(__file__).resolve().parent.parent


def waits(call: Callable[[], object]) -> int:
    """Return how often the host waited for the device in `call`, as torch warns of it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in caught)


@contextmanager
def leave_free(free_bytes: int) -> Iterator[None]:
    """Let this process have so many bytes more than it has reserved."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + free_bytes) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


CUDA = Device("cuda:0", waits, leave_free)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_on_cuda(tmp_path: Path, check: Callable[[Device, Path], None]) -> None:
    """Each check that holds on the rehearsal device holds on CUDA."""
    check(CUDA, tmp_path)


def test_a_step_is_captured_in_a_graph() -> None:
    """A guarded step can be captured in a CUDA graph, and replays what it computes eagerly."""
    model, token = guard(model_on(CUDA)), torch.full((1, 1), 5, device="cuda")
    with torch.inference_mode():
        graph, logits = captured_step(model, token)
        token.fill_(7)
        graph.replay()
        eager = model(input_ids=token, use_cache=False).logits
    torch.testing.assert_close(logits, eager)
    assert not report(model).events


def test_a_static_cache_is_compiled() -> None:
    """Transformers compiles the decode of a static cache on CUDA: guarded it gives the tokens of a plain one."""
    plain, model = model_on(CUDA), guard(model_on(CUDA))
    expected = generated(CUDA, plain, cache_implementation="static")
    assert torch.equal(generated(CUDA, model, cache_implementation="static"), expected)
    assert not report(model).events


LOSES_IT = """
import sys
sys.path.insert(0, "tests")
import torch
from device_checks import model_on, guard, report
from test_on_cuda import CUDA
model = guard(model_on(CUDA))
beyond = torch.full((1, 4), 100_000, device="cuda")
try:
    model.generate(beyond, attention_mask=torch.ones_like(beyond), max_new_tokens=4)
except Exception as error:
    print(type(error).__name__, error, report(model).events)
"""


def test_a_lost_device() -> None:
    """A token beyond the vocabulary fails an assertion on the device: that is said at once, and nothing is retried."""
    done = subprocess.run(
        [sys.executable, "-c", LOSES_IT], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout.startswith("DeviceLostError cuda:0"), done.stdout + done.stderr
    assert "device-side assert" in done.stdout
    assert done.stdout.rstrip().endswith("()"), done.stdout
