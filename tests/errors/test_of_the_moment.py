"""What says nothing of a model is told from what does, by types and texts: without torch."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
import torch.distributed

from safe_dtype.errors import PeerLostError
from safe_dtype.errors.of_the_moment import (
    is_of_communication,
    is_of_memory,
    is_of_the_moment,
    is_raised_by_torch,
    is_raised_by_transport,
)
from safe_dtype.guarding import classify

MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]
LOST = [RuntimeError("CUDA error: device-side assert triggered"), RuntimeError("an illegal memory access was met")]
COMMUNICATION = [
    ConnectionResetError("Connection reset by peer"),
    RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:3456"),
    RuntimeError(
        "[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 600000ms for recv operation to complete"
    ),
    torch.distributed.DistBackendError("NCCL error in: NCCLUtils.hpp:275, unhandled system error"),
    RuntimeError("ProcessGroupGloo: unsupported data type BFloat16"),
    torch.distributed.DistNetworkError("The client socket has timed out after 60000ms"),
    PeerLostError(0, 600.0, "it has not come"),
    RuntimeError("[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1580, OpType=ALLREDUCE)"),
]
OF_THE_PROGRAM = [  # which names a transport, and has lost nobody
    "this loader was written for Gloo",
    "NCCL is not for this machine: choose another backend",
    "the heartbeat of the data server has not come",
    "Timed out waiting for the next batch",
]
OF_THE_MODEL = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (1x2 and 3x4)"),
    RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'"),
    ValueError("out of memory"),  # somebody's own word
]


@pytest.mark.parametrize("error", MEMORY, ids=str)
def test_no_room(error: BaseException) -> None:
    """No room, wherever it is told by a type or a text."""
    assert is_of_memory(error)
    assert is_of_the_moment(error)


@pytest.mark.parametrize("error", LOST, ids=str)
def test_a_device_is_lost(error: BaseException) -> None:
    """A lost device is no lack of room."""
    assert not is_of_memory(error)
    assert is_of_the_moment(error)


@pytest.mark.parametrize("error", COMMUNICATION, ids=str)
def test_a_rank_has_ended(error: BaseException) -> None:
    """A broken line is neither a lack of room nor a lost device."""
    assert is_of_communication(error)
    assert not is_of_the_moment(error)


@pytest.mark.parametrize("error", OF_THE_MODEL, ids=str)
def test_what_the_model_is_to_blame_for(error: BaseException) -> None:
    """Anything else counts."""
    assert not is_of_the_moment(error)
    assert not is_of_communication(error)


@pytest.mark.parametrize("text", OF_THE_PROGRAM)
def test_a_program_that_names_a_transport(text: str) -> None:
    """What Python raises outside of torch.distributed counts by what only a transport says, not by its name."""
    error = RuntimeError(text)
    assert not is_of_communication(error)
    with pytest.raises(RuntimeError):
        raise error
    assert not is_of_communication(error)


def test_who_raises_it() -> None:
    """The same words, from compiled code: of torch's store, which nobody fills."""
    store = torch.distributed.HashStore()
    with pytest.raises(RuntimeError) as raised:
        store.wait(["nothing"], timedelta(milliseconds=1))
    assert is_raised_by_torch(raised.value)
    raised.value.args = ("heartbeat",)
    assert is_of_communication(raised.value)


def test_what_a_transport_cannot_send() -> None:
    """An error that a collective raises is of its transport, whatever it says; that of a kernel is not."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        numbers = torch.ones(2, dtype=torch.float8_e5m2)
        with pytest.raises(RuntimeError) as raised:
            torch.distributed.all_reduce(numbers)
        assert is_raised_by_transport(raised.value)
        assert classify(renamed(raised.value, "Unsupported data type Half")) is None
        with pytest.raises(RuntimeError) as raised:
            torch.ops.c10d.allreduce_([numbers], None, None, None, False, -1)
        assert is_raised_by_transport(raised.value)
        with pytest.raises(RuntimeError) as raised:
            torch.ops.aten.mm.default(numbers, numbers)
        assert not is_raised_by_transport(raised.value)
    finally:
        torch.distributed.destroy_process_group()


def renamed(error: BaseException, text: str) -> BaseException:
    """Return an error that says something else."""
    error.args = (text,)
    return error
