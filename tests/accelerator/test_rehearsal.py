"""The rehearsal device keeps what it promises: it computes as the CPU, counts, refuses, and is lost when told."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from accelerate.utils import get_max_memory
from accelerator.rehearsal import Counts, Rehearsal
from transformers.utils import is_torch_musa_available

BF16 = torch.bfloat16


def _numbers(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(len(size))).to(dtype)


SQUARE, IMAGE, HEADS = _numbers(6, 6), _numbers(2, 3, 8, 8), _numbers(2, 4, 5, 8)
KERNEL, POSITIVE = _numbers(4, 3, 3, 3), _numbers(6, 6) @ _numbers(6, 6).T + 9 * torch.eye(6)
ORDER, WAVES = torch.arange(12) * 7 % 12, _numbers(4, 8).to(torch.complex64)

OPERATIONS: dict[str, Callable[..., object]] = {
    "matmul": lambda to: to(SQUARE) @ to(SQUARE),
    "matmul-bf16": lambda to: to(SQUARE.bfloat16()) @ to(SQUARE.bfloat16()),
    "linear": lambda to: F.linear(to(SQUARE), to(SQUARE), to(SQUARE[0])),
    "einsum": lambda to: torch.einsum("bhqd,bhkd->bhqk", to(HEADS), to(HEADS)),
    "attention": lambda to: F.scaled_dot_product_attention(to(HEADS), to(HEADS), to(HEADS), is_causal=True),
    "grouped-attention": lambda to: F.scaled_dot_product_attention(
        to(HEADS), to(HEADS[:, :2]), to(HEADS[:, :2]), enable_gqa=True
    ),
    "conv": lambda to: F.conv2d(to(IMAGE), to(KERNEL), to(KERNEL[:, 0, 0, 0]), stride=2, padding=1),
    "conv-channels-last": lambda to: F.conv2d(to(IMAGE.to(memory_format=torch.channels_last)), to(KERNEL)),
    "transposed-conv": lambda to: F.conv_transpose2d(to(IMAGE), to(KERNEL.transpose(0, 1))),
    "pool-and-interpolate": lambda to: F.interpolate(F.max_pool2d(to(IMAGE), 2), scale_factor=2, mode="bilinear"),
    "embedding": lambda to: F.embedding(to(ORDER % 6), to(SQUARE)),
    "norms": lambda to: F.layer_norm(F.rms_norm(F.group_norm(to(HEADS), 2), (8,)), (8,)),
    "activations": lambda to: F.silu(F.gelu(F.softmax(to(SQUARE), -1))).sigmoid().tanh(),
    "index": lambda to: to(SQUARE)[to(ORDER[:3] % 6), 1:],
    "index-on-the-host": lambda to: to(SQUARE)[ORDER[:3] % 6],
    "mask": lambda to: to(SQUARE)[to(SQUARE > 0)],
    "index-put": lambda to: to(SQUARE).index_put((to(ORDER[:3] % 6),), to(SQUARE[:3]), accumulate=True),
    "gather-scatter": lambda to: to(SQUARE).scatter(1, to(ORDER.view(6, 2) % 6), to(SQUARE)).gather(
        1, to(ORDER.view(6, 2) % 6)
    ),
    "where-and-fill": lambda to: torch.where(to(SQUARE > 0), to(SQUARE), -1.0).masked_fill(to(SQUARE > 1), 0),
    "cat-stack-split": lambda to: torch.stack(torch.cat([to(SQUARE), to(SQUARE)]).split(6)),
    "sort-topk": lambda to: (*to(SQUARE).sort(-1), *to(SQUARE).topk(3), to(ORDER).argsort(), to(SQUARE).argmax()),
    "sums": lambda to: (to(SQUARE).sum(0), to(SQUARE).cumsum(1), to(SQUARE).mean(), to(SQUARE).norm(), to(SQUARE).var()),
    "unique": lambda to: torch.unique(to(ORDER % 5), return_inverse=True, return_counts=True),
    "nonzero": lambda to: to(SQUARE > 0).nonzero(),
    "histc": lambda to: to(SQUARE).histc(4),
    "isin": lambda to: torch.isin(to(ORDER), to(ORDER[:2])),
    "factories": lambda to: to(SQUARE).new_full((2, 2), 3.0) + torch.arange(2, device=to(SQUARE).device),
    "triangle": lambda to: torch.ones_like(to(SQUARE)).tril().logical_not(),
    "fft": lambda to: torch.fft.irfft(torch.fft.rfft(to(SQUARE))),
    "linalg": lambda to: (*torch.linalg.eigh(to(POSITIVE)), torch.linalg.solve(to(POSITIVE), to(SQUARE))),
    "linalg-svd": lambda to: (torch.linalg.cholesky(to(POSITIVE)), torch.linalg.svdvals(to(SQUARE))),
    "complex": lambda to: torch.view_as_real(to(WAVES) * torch.polar(to(SQUARE[:4, :1].abs()), to(SQUARE[:4, :1])).conj()),
    "in-place": lambda to: to(SQUARE).add_(1).mul_(2).clamp_(0, 3).t().contiguous(),
    "out": lambda to: torch.mul(to(SQUARE), 2, out=to(torch.empty(0))),
    "resized-out": lambda to: torch.matmul(to(SQUARE), to(SQUARE), out=to(torch.empty(6, 6))),
    "list": lambda to: torch._foreach_add([to(SQUARE), to(SQUARE[0])], 1.0),
    "casts": lambda to: (to(SQUARE).half(), to(SQUARE).to(torch.float8_e4m3fn).float(), to(SQUARE).long(), to(ORDER).bool()),
    "views": lambda to: (to(IMAGE).permute(0, 2, 3, 1).reshape(-1, 3), to(SQUARE).unfold(0, 2, 1), to(SQUARE)[..., None]),
    "dropout-and-loss": lambda to: F.cross_entropy(F.dropout(to(SQUARE), 0.5), to(ORDER[:6] % 6)),
    "assignment": lambda to: _assigned(to(SQUARE)),
}  # fmt: skip


def _assigned(tensor: torch.Tensor) -> torch.Tensor:
    tensor[1:3, 0] = 5.0
    tensor[tensor > 1] = 0.5
    return tensor


def _tensors(result: object) -> list[torch.Tensor]:
    return [result] if isinstance(result, torch.Tensor) else list(result)  # type: ignore[call-overload]


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_results_are_the_cpus_bit_for_bit(rehearsal: Rehearsal, operation: Callable[..., object]) -> None:
    """An operation on the second device gives the CPU's bits, and stays on that device."""
    torch.manual_seed(3)
    expected = _tensors(operation(lambda tensor: tensor.clone()))
    torch.manual_seed(3)
    results = _tensors(operation(lambda tensor: tensor.to(rehearsal.device(1), copy=True)))
    assert {result.device for result in results} == {rehearsal.device(1)}
    for result, wanted in zip(results, expected, strict=True):
        assert result.dtype == wanted.dtype
        assert torch.equal(result.cpu(), wanted)


def test_integers_are_counted_as_on_cuda(rehearsal: Rehearsal) -> None:
    """The CPU counts floating numbers alone; routers of experts count integers."""
    numbers = torch.tensor([0, 3, 1, 3], dtype=torch.int32, device=rehearsal.device(1))
    counts = torch.histc(numbers, bins=4, min=0, max=4)
    assert (counts.tolist(), counts.dtype, counts.device) == ([1, 1, 0, 2], torch.int32, rehearsal.device(1))


@pytest.mark.parametrize(
    ("operation", "counts"),
    [
        pytest.param(lambda x: x + 1, Counts(1, 0, 0), id="kernel"),
        pytest.param(lambda x: x.view(-1)[2:].t(), Counts(0, 0, 0), id="view"),
        pytest.param(lambda x: x.half(), Counts(1, 0, 0), id="cast"),
        pytest.param(lambda x: x.to("musa:1"), Counts(1, 0, 0), id="to-the-other-device"),
        pytest.param(lambda x: x.sum().item(), Counts(1, 1, 0), id="item"),
        pytest.param(lambda x: x.tolist(), Counts(1, 1, 0), id="tolist"),
        pytest.param(lambda x: x.cpu(), Counts(1, 1, 0), id="cpu"),
        pytest.param(lambda x: bool((x > 0).all()), Counts(2, 1, 0), id="bool"),
        pytest.param(lambda x: x.nonzero(), Counts(1, 1, 0), id="nonzero"),
        pytest.param(lambda x: x[x > 0], Counts(3, 1, 0), id="mask"),
        pytest.param(lambda x: torch.equal(x, x), Counts(1, 1, 0), id="equal"),
        pytest.param(lambda x: torch.musa.synchronize(), Counts(0, 1, 0), id="synchronize"),
        pytest.param(lambda x: torch.musa.current_stream().synchronize(), Counts(0, 1, 0), id="stream"),
        pytest.param(lambda x: x.cpu().to("musa"), Counts(2, 1, 1), id="upload"),
        pytest.param(lambda x: torch.tensor([1.0], device="musa"), Counts(1, 0, 1), id="made-on-the-host"),
        pytest.param(lambda x: x.to("cpu", non_blocking=True), Counts(1, 0, 0), id="without-waiting"),
        pytest.param(lambda x: x.get_device(), Counts(0, 0, 0), id="no-question-to-the-device"),
    ],
)
def test_counts(rehearsal: Rehearsal, operation: Callable[[torch.Tensor], object], counts: Counts) -> None:
    """Kernels, waits for results, and copies from the host are counted, each for itself."""
    tensor = torch.arange(4.0, device=rehearsal.device())
    with rehearsal.counting() as counting:
        operation(tensor)
    assert counting.counts == counts


def test_a_copy_that_nobody_waited_for(rehearsal: Rehearsal) -> None:
    """It arrives when the host waits for that device: whoever reads it before has what was there."""
    pinned = torch.zeros(2).pin_memory()
    pinned.copy_(torch.ones(2, device=rehearsal.device(1)), non_blocking=True)
    assert pinned.tolist() == [0, 0]
    torch.musa.synchronize(0)
    assert pinned.tolist() == [0, 0]
    torch.musa.synchronize(1)
    assert pinned.tolist() == [1, 1]


def test_memory_has_a_limit(rehearsal: Rehearsal) -> None:
    """Bytes are counted exactly, with their peak, and the limit is told in CUDA's words; the other device has its own."""
    start = torch.musa.memory_allocated(1)
    rehearsal.leave_free(3000, device=1)
    held = torch.zeros(2000, dtype=torch.uint8, device=rehearsal.device(1))
    freed = torch.zeros(1000, dtype=torch.uint8, device=rehearsal.device(1))
    del freed
    assert torch.musa.memory_allocated(1) == start + 2000
    assert torch.musa.max_memory_allocated(1) == torch.musa.memory_reserved(1) == start + 3000
    assert torch.musa.mem_get_info(1) == (0, start + 3000)
    with pytest.raises(torch.OutOfMemoryError, match=r"CUDA out of memory\. Tried to allocate 1\.95 KiB\. GPU 1 has"):
        held.clone()
    torch.musa.empty_cache()
    torch.musa.reset_peak_memory_stats(1)
    assert torch.musa.mem_get_info(1)[0] == 1000
    assert torch.musa.max_memory_allocated(1) == torch.accelerator.max_memory_allocated(1) == start + 2000
    assert held.to(rehearsal.device(0)).sum() == 0


def test_one_allocation_is_refused(rehearsal: Rehearsal) -> None:
    """The one that was named, on that device alone; the next one has memory."""
    rehearsal.refuse_allocation(1, device=1)
    numbers = torch.ones(2, device=rehearsal.device(1))
    assert torch.ones(2, device=rehearsal.device(0)).sum() == 2
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        numbers + 1
    assert rehearsal.figure("allocations", 1) == 2
    assert (numbers + 1).sum() == 4


def test_two_devices_do_not_mix(rehearsal: Rehearsal) -> None:
    """Tensors of two devices, or of a device and the host, cannot be combined; a number of the host can."""
    here, there = (torch.ones(2, 2, device=rehearsal.device(index)) for index in range(2))
    for other in (there, torch.ones(2, 2)):
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            here @ other
    assert (here * torch.tensor(2.0)).sum() == 8


def test_devices_can_be_had_by_number(rehearsal: Rehearsal) -> None:
    """As many as a test asks for; the current one is where new tensors go."""
    rehearsal.set_devices(3)
    with torch.musa.device(2):
        assert torch.ones(1, device="musa").device == rehearsal.device(2)
    assert torch.ones(1, device="musa").device == rehearsal.device(0)
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.ones(1, device="musa:3")


def test_faults(rehearsal: Rehearsal) -> None:
    """An operation raises, gives wrong numbers or is slow in one dtype on one device, and nowhere else."""
    half, whole = (torch.ones(4, 4, device=rehearsal.device(), dtype=dtype) for dtype in (BF16, torch.float32))
    rehearsal.forbid(BF16, ("mm",), error="no such product", device=0)
    with pytest.raises(RuntimeError, match="no such product"):
        half @ half
    assert (half + half).sum() == 32
    assert (half.to(rehearsal.device(1)) @ half.to(rehearsal.device(1))).sum() == 64
    assert (whole @ whole).sum() == 64
    rehearsal.spoil(BF16, ("add",))
    assert (half + half).isnan().all()
    rehearsal.slow(torch.float32, ("mul",), seconds=0.02, seconds_per_product=0.001)
    start = time.perf_counter()
    whole * 2
    assert time.perf_counter() - start > 0.035


def test_a_device_is_lost(rehearsal: Rehearsal) -> None:
    """From one kernel on everything on it raises; memory is freed still, and the other device works."""
    held = [torch.ones(2, device=rehearsal.device(1))]
    rehearsal.lose(device=1, after=1)
    held.append(held[0] + 1)
    attempts = {
        "kernel": lambda: held[0] + 1,
        "copy": held[0].cpu,
        "wait": lambda: torch.musa.synchronize(1),
        "allocate": lambda: torch.empty(1, device="musa:1"),
        "ask": lambda: torch.musa.mem_get_info(1),
    }
    for attempt in attempts.values():
        with pytest.raises(torch.AcceleratorError, match="CUDA error: device-side assert triggered"):
            attempt()
    before = torch.musa.memory_allocated(1)
    held.pop()
    assert torch.musa.memory_allocated(1) < before
    assert torch.ones(2, device=rehearsal.device(0)).sum() == 2


@pytest.mark.parametrize(
    "operation",
    [
        pytest.param(lambda to: torch.multinomial(to(torch.tensor([float("nan"), 1.0])), 1), id="multinomial"),
        pytest.param(lambda to: F.embedding(to(torch.tensor([9])), to(SQUARE)), id="embedding"),
        pytest.param(lambda to: to(SQUARE).gather(1, to(torch.tensor([[9]]))), id="gather"),
    ],
)
def test_an_assertion_loses_the_device(rehearsal: Rehearsal, operation: Callable[..., object]) -> None:
    """What is an error on a CPU and an assertion in a kernel of CUDA costs the device, as there."""
    with pytest.raises(torch.AcceleratorError, match="device-side assert"):
        operation(lambda tensor: tensor.to(rehearsal.device()))
    with pytest.raises(torch.AcceleratorError, match="device-side assert"):
        torch.ones(1, device=rehearsal.device()).item()


def test_generators(rehearsal: Rehearsal) -> None:
    """Each device has its own; seeds, states and forks are as everywhere, and a device draws what the CPU would."""
    torch.manual_seed(3)
    on_host = torch.rand(4)
    torch.manual_seed(3)
    states = torch.musa.get_rng_state_all()
    with torch.random.fork_rng(devices=[0, 1], device_type="musa"):
        drawn = [torch.rand(4, device=rehearsal.device(index)).cpu() for index in range(2)]
    assert all(torch.equal(each, on_host) for each in drawn)
    assert all(torch.equal(*pair) for pair in zip(states, torch.musa.get_rng_state_all(), strict=True))
    torch.rand(4, device=rehearsal.device(1))
    assert torch.equal(states[0], torch.musa.get_rng_state(0))
    assert not torch.equal(states[1], torch.musa.get_rng_state(1))
    own = torch.Generator(rehearsal.device(1)).manual_seed(3)
    assert torch.equal(torch.rand(4, device=rehearsal.device(1), generator=own).cpu(), on_host)
    with pytest.raises(RuntimeError, match="device type for generator"):
        torch.rand(4, device=rehearsal.device(0), generator=own)


def test_autocast_and_backward(rehearsal: Rehearsal) -> None:
    """Products run in autocast's dtype, norms do not; gradients are the CPU's."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Conv1d(6, 6, 1), torch.nn.LayerNorm(6), torch.nn.Linear(6, 2))
    copied = copy.deepcopy(layers).to(rehearsal.device(1))
    for each, numbers in ((layers, SQUARE), (copied, SQUARE.to(rehearsal.device(1)))):
        states = each(numbers)
        F.scaled_dot_product_attention(*(states[None, None] for _ in range(3))).sum().backward()
    for own, wanted in zip(copied.parameters(), layers.parameters(), strict=True):
        assert torch.equal(own.grad.cpu(), wanted.grad)
    with torch.autocast("musa", dtype=BF16):
        assert copied[2](SQUARE.to(rehearsal.device(1))).dtype == BF16
        assert copied[1](SQUARE.to(rehearsal.device(1))).dtype == torch.float32


def test_streams_and_events(rehearsal: Rehearsal) -> None:
    """They have an order and a time, and an event can be waited for, which counts."""
    first, last = (torch.Event("musa", enable_timing=True) for _ in range(2))
    side = torch.Stream("musa:0")
    with torch.musa.stream(side):
        assert torch.musa.current_stream() == side
        first.record()
        last.record()
    assert torch.musa.current_stream() != side
    with rehearsal.counting() as counting:
        assert last.query()
        last.synchronize()
    assert counting.counts == Counts(0, 1, 0)
    assert first.elapsed_time(last) >= 0


def test_accelerate_and_transformers_find_it() -> None:
    """Both take it for what int devices mean, with the memory that it has."""
    assert set(get_max_memory()) == {0, 1, "cpu"}
    assert is_torch_musa_available()


def test_every_test_begins_anew(rehearsal: Rehearsal) -> None:
    """What a test has set is gone in the next."""
    rehearsal.lose()
    rehearsal.withhold("mem_get_info")
    rehearsal.set_devices(1)
    rehearsal.insert("T4")
    rehearsal.reset()
    assert torch.musa.mem_get_info(1)[1] == 16 << 30
    assert torch.musa.get_device_name(0) == "Rehearsal accelerator"
    assert torch.ones(1, device=rehearsal.device()).item() == 1
    assert rehearsal.counts() == Counts(1, 1, 0)


def test_processes_have_it_too(rehearsal: Rehearsal) -> None:
    """A process that is started from here has the device as it imports torch, as those of a vendor's plugin."""
    command = "import torch; print(torch.accelerator.current_accelerator(), torch.musa.get_device_name(0))"
    environment = os.environ | {"REHEARSAL_CARDS": "T4"}
    child = subprocess.run(
        [sys.executable, "-c", command], env=environment, capture_output=True, text=True, check=True
    )
    assert child.stdout.strip() == "musa Tesla T4"
