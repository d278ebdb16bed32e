"""Real measurements on this machine, and on the older CPU that its environment can make of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from safe_dtype.devices import measure
from safe_dtype.devices.probing.ops import OPS
from safe_dtype.devices.probing.probe_request import verdict_from_dict
from safe_dtype.errors import NoSuchDeviceError, ProbeError
from safe_dtype.facts import ALL, BFLOAT16, COMPUTE, FLOAT8_E4M3, FLOAT16, FLOAT32, INT8, Dtype, Verdict, VerdictKind

Table = Mapping[tuple[Dtype, str], Verdict]


AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


SSE41 = {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"}


WIDTHS = ((1536, 512), (512, 1536))


SCRIPT = """
import json
from safe_dtype.devices import measure
from safe_dtype.devices.probing.probe_request import verdict_to_dict
print(json.dumps([verdict_to_dict(one) for one in measure("cpu", widths=((1536, 512),), ops=("matmul", "attention"))]))
"""


BUSY = """
import atexit, os, subprocess, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # what is started from here shares this core
import torch
torch.set_num_threads(2)
atexit.register(subprocess.Popen([sys.executable, "-c", "while True: pass"]).kill)
"""


def by_cell(verdicts: tuple[Verdict, ...]) -> Table:
    """Return `verdicts` by dtype and operation."""
    return {(verdict.dtype, verdict.op): verdict for verdict in verdicts}


def on_older_cpu(environment: dict[str, str]) -> Table:
    """Measure in a process where kernels are limited by `environment`."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return by_cell(tuple(verdict_from_dict(one) for one in json.loads(done.stdout)))


@pytest.fixture(scope="module")
def here() -> Table:
    """Every dtype and operation on the bare CPU."""
    return by_cell(measure("cpu", ALL, WIDTHS, ops=tuple(OPS)))


@pytest.fixture(scope="module")
def avx2() -> Table:
    """The CPU without anything newer than AVX2."""
    return on_older_cpu(AVX2)


@pytest.fixture(scope="module")
def sse41() -> Table:
    """The CPU without vectors wider than 128 bits."""
    return on_older_cpu(SSE41)


def test_every_cell_has_a_verdict(here: Table) -> None:
    """Nothing is left out."""
    assert set(here) == {(dtype, op) for dtype in ALL for op in OPS}
    assert not [verdict for verdict in here.values() if verdict.kind in (VerdictKind.UNKNOWN, VerdictKind.CRASHES)]


@pytest.mark.parametrize("op", OPS)
def test_float32_runs(here: Table, op: str) -> None:
    """float32 is right everywhere: it is what the others are compared with."""
    assert here[FLOAT32, op].kind is VerdictKind.NATIVE
    assert here[FLOAT32, op].max_rel_error is not None


@pytest.mark.parametrize("dtype", COMPUTE, ids=str)
@pytest.mark.parametrize("op", ["matmul", "attention"])
def test_rates(here: Table, dtype: Dtype, op: str) -> None:
    """Products have a rate at one row, in bytes, one at 512 rows, in flops, and an error within their rounding."""
    verdict = here[dtype, op]
    assert verdict.runs
    assert verdict.decode_bytes_per_s
    assert verdict.prefill_flops_per_s
    assert verdict.max_rel_error is not None
    assert verdict.max_rel_error < 4 * max(dtype.epsilon, FLOAT16.epsilon)


def test_shapes_are_the_models(here: Table) -> None:
    """At one row whole weights are read, in every width asked for; in_features are never cut."""
    timings = here[FLOAT32, "matmul"].timings
    assert {timing.shape for timing in timings if timing.rows == 1} == set(WIDTHS)
    assert {timing.shape[1] for timing in timings} == {512, 1536}


@pytest.mark.needs("amx")
def test_bf16_is_native_where_the_cpu_has_it(here: Table) -> None:
    """With AMX, bf16 products are at least about as fast as float32's. With AVX512_BF16 alone they may be slower."""
    assert here[BFLOAT16, "matmul"].kind is VerdictKind.NATIVE


@pytest.mark.needs("no_bf16_cpu")
def test_bf16_is_slow_where_the_cpu_lacks_it(here: Table) -> None:
    """Without them it is emulated, and the reason has the ratio."""
    assert here[BFLOAT16, "matmul"].kind is VerdictKind.SLOW
    assert "x float32's time at 512 rows" in here[BFLOAT16, "matmul"].reason


@pytest.mark.needs("x86")
@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
def test_avx2_is_slow(avx2: Table, dtype: Dtype) -> None:
    """On an AVX2 CPU both 16-bit formats are slow at 512 rows, and right."""
    verdict = avx2[dtype, "matmul"]
    assert verdict.kind is VerdictKind.SLOW
    assert verdict.max_rel_error is not None
    assert verdict.max_rel_error < 4 * dtype.epsilon


@pytest.mark.needs("x86")
@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
def test_sse41_is_slower_still(sse41: Table, dtype: Dtype) -> None:
    """On an even older CPU too, whether 512 rows were run or extrapolated."""
    assert sse41[dtype, "matmul"].kind is VerdictKind.SLOW
    assert sse41[dtype, "matmul"].prefill_flops_per_s


@pytest.mark.parametrize(
    ("dtype", "op", "text"),
    [
        pytest.param(FLOAT8_E4M3, "layer_norm", "LayerNormKernelImpl", id="fp8-layer-norm"),
        pytest.param(FLOAT8_E4M3, "attention", "Float8_e4m3fn", id="fp8-attention"),
        pytest.param(BFLOAT16, "fft", "BFloat16", id="bf16-fft"),
        pytest.param(FLOAT16, "fft", "Half", id="fp16-fft"),
        pytest.param(BFLOAT16, "cdist", "BFloat16", id="bf16-cdist"),
        pytest.param(INT8, "rms_norm", "Char", id="int8-rms-norm"),
    ],
)
def test_unsupported(here: Table, dtype: Dtype, op: str, text: str) -> None:
    """What this torch lacks on a CPU is unsupported, in torch's own words."""
    assert here[dtype, op].kind is VerdictKind.UNSUPPORTED
    assert text in here[dtype, op].reason


def test_int8_products_are_exact(here: Table) -> None:
    """Integers are multiplied without error."""
    assert here[INT8, "matmul"].max_rel_error == 0.0


@pytest.mark.needs("amx")
@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16], ids=str)
def test_amx_convolution_is_wrong(here: Table, dtype: Dtype) -> None:
    """Conv2d(16, 16, 4, 4) is off by more than its largest value under AMX (oneDNN 3.12)."""
    verdict = here[dtype, "conv2d"]
    assert verdict.kind is VerdictKind.WRONG
    assert "16x256" in verdict.reason


@pytest.mark.needs("no_bf16_cpu")
def test_convolution_is_right_without_amx(here: Table) -> None:
    """The same convolution is right where AMX does not compute it."""
    assert here[BFLOAT16, "conv2d"].runs


def test_order() -> None:
    """float32, which all are compared with, is measured also where nobody asked for it, and not returned."""
    (found,) = measure("cpu", (BFLOAT16,), ((64, 64),), ops=("softmax",), cell_seconds=0.05)
    assert found.dtype == BFLOAT16
    assert "float32's time" in found.reason


def test_unknown_op() -> None:
    """An operation that nobody knows is an error that lists those that are known."""
    with pytest.raises(ProbeError, match=r"'matmull'\. Next: name some of matmul, attention"):
        measure("cpu", ops=("matmull",))


def test_unknown_device() -> None:
    """A device that is not here is not measured."""
    with pytest.raises(NoSuchDeviceError):
        measure("cuda:99")


def test_the_caller_notices_nothing() -> None:
    """Random state, threads, gradients, autocast and defaults are what they were, and none of them disturbs."""
    before = torch.get_rng_state(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
            (found,) = measure("cpu", (FLOAT32,), ((64, 64),), ops=("matmul",), cell_seconds=0.05)
            assert torch.is_autocast_enabled("cpu")
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.kind is VerdictKind.NATIVE
    assert found.max_rel_error is not None
    assert found.max_rel_error < 1e-5
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]
    assert torch.is_grad_enabled()


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="only Linux says who waited for a core")
def test_busy_machine() -> None:
    """Where another process has half of the only core, one thread is measured by its own clock, and said so."""
    done = subprocess.run([sys.executable, "-c", BUSY + SCRIPT], capture_output=True, text=True, check=True)
    found = by_cell(tuple(verdict_from_dict(one) for one in json.loads(done.stdout)))
    for dtype in COMPUTE:
        assert "one thread was measured" in found[dtype, "matmul"].reason
        assert found[dtype, "matmul"].runs


@pytest.mark.needs("cuda")
def test_cuda() -> None:
    """On CUDA, float32 and float16 run right, and bf16 is native from Ampere on."""
    found = by_cell(measure("cuda:0", COMPUTE, ((4096, 4096),)))
    assert found[FLOAT32, "matmul"].kind is VerdictKind.NATIVE
    assert found[FLOAT16, "matmul"].runs
    if torch.cuda.get_device_capability(0) >= (8, 0):
        assert found[BFLOAT16, "matmul"].kind is VerdictKind.NATIVE


@pytest.mark.needs("cuda")
def test_cuda_float8_and_int8() -> None:
    """What the device multiplies in 8 bits is right; what it lacks is unsupported, never an exception."""
    for verdict in measure("cuda:0", (FLOAT8_E4M3, INT8), ((4096, 4096),), ops=("matmul",)):
        assert verdict.runs or verdict.kind is VerdictKind.UNSUPPORTED


@pytest.mark.needs("mps")
def test_mps() -> None:
    """MPS is measured in a child, and float16 runs."""
    assert by_cell(measure("mps", COMPUTE, ((1024, 1024),)))[FLOAT16, "matmul"].runs


@pytest.mark.needs("xpu")
def test_xpu() -> None:
    """An Intel GPU multiplies float32 right."""
    assert by_cell(measure("xpu", COMPUTE, ((1024, 1024),)))[FLOAT32, "matmul"].kind is VerdictKind.NATIVE
