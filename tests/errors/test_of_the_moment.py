"""What says nothing of a model is told from what does, by types and texts: without torch."""

from __future__ import annotations

import pytest
import torch
import torch.distributed

from safe_dtype.errors import PeerLostError
from safe_dtype.errors.of_the_moment import is_of_communication, is_of_memory, is_of_the_moment

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
