"""Cards of users, as their devices behave: names, memory, what they claim, and what they refuse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

MATRIX_PRODUCTS = (
    "mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "convolution", "scaled_dot_product_attention",
)  # fmt: skip

# What cuBLAS answers where a card has no such product.
NO_BFLOAT16_PRODUCT = (
    "CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx( handle, opa, opb, m, n, k, &falpha, a, "
    "CUDA_R_16BF, lda, b, CUDA_R_16BF, ldb, &fbeta, c, CUDA_R_16BF, ldc, compute_type, CUBLAS_GEMM_DEFAULT_TENSOR_OP)`"
)


Rates = Mapping[str, tuple[float, float]]  # of products in a dtype: bytes/s of reading at one row, FLOP/s at many


@dataclass(frozen=True)
class Behaviour:
    """How some operations (torch's names, without "aten::") go wrong, or slowly, where a tensor of `dtype` comes in."""

    dtype: torch.dtype
    ops: tuple[str, ...] = MATRIX_PRODUCTS
    error: str = ""  # raised, unless it is empty
    factor: float = 1.0  # by which floating results are wrong
    seconds: float = 0.0  # more a call
    seconds_per_product: float = 0.0  # more for each multiplication of a product


@dataclass(frozen=True)
class Card:
    """One kind of device. Beside what is said here, it computes as the CPU."""

    name: str
    memory_bytes: int  # total_memory
    vendor: str = "rehearsal"
    capability: tuple[int, int] = (0, 0)
    claims_bfloat16: bool = True  # torch.cuda.is_bf16_supported()
    claims_native_bfloat16: bool = True  # ... (including_emulation=False)
    behaviours: tuple[Behaviour, ...] = ()
    rates: Rates | None = None  # for plans; None: as the recorded CPU


UNNAMED = Card("Rehearsal accelerator", 16 << 30)


def _nvidia(
    name: str, memory_bytes: int, capability: tuple[int, int], rates: Rates, *, bfloat16: Behaviour | None = None
) -> Card:
    """Return a card of NVIDIA; `bfloat16`: how its products fare where the card has none, whatever torch claims.

    Such a card has tensor cores for float16 alone, so that float32 takes its time, too.
    """
    behaviours = () if bfloat16 is None else (_SLOWER_FLOAT32, bfloat16)
    return Card(name, memory_bytes, "nvidia", capability, True, bfloat16 is None, behaviours, rates)


def _rates(bandwidth: float, **flops: float) -> Rates:
    return {name: (bandwidth, each) for name, each in flops.items()}


# Where the card itself is measured: the host's own float16 takes 0.1 to 0.2 ns a multiplication on one thread. What is
# reported of these cards is that float32 takes about 5 times float16's time, and bfloat16 about 10 times.
_MULTIPLYING = (*MATRIX_PRODUCTS, "scaled_dot_product_attention")
_SLOWER_FLOAT32 = Behaviour(torch.float32, _MULTIPLYING, seconds_per_product=1e-9)
_EMULATED = Behaviour(torch.bfloat16, _MULTIPLYING, seconds_per_product=2e-9)
_REFUSED = Behaviour(torch.bfloat16, error=NO_BFLOAT16_PRODUCT)
_T4 = ("Tesla T4", 15_828_320_256, (7, 5))

# Rates are of the order of what the data sheets promise: they decide which plan is made.
CARDS = {
    "T4": _nvidia(*_T4, _rates(320e9, float32=8e12, float16=40e12, bfloat16=2e12), bfloat16=_EMULATED),
    "T4 refusing bfloat16": _nvidia(*_T4, _rates(320e9, float32=8e12, float16=40e12), bfloat16=_REFUSED),
    "V100": _nvidia(
        "Tesla V100-SXM2-16GB", 16_935_682_048, (7, 0), _rates(900e9, float32=15e12, float16=90e12), bfloat16=_REFUSED
    ),
    "RTX 2080 Ti": _nvidia(
        "NVIDIA GeForce RTX 2080 Ti", 11_543_379_968, (7, 5),
        _rates(616e9, float32=13e12, float16=50e12, bfloat16=3e12), bfloat16=_EMULATED,
    ),
    "A100": _nvidia(
        "NVIDIA A100-SXM4-40GB", 42_297_786_368, (8, 0), _rates(1555e9, float32=19e12, float16=250e12, bfloat16=250e12)
    ),
    "H100": _nvidia(
        "NVIDIA H100 80GB HBM3", 84_929_347_584, (9, 0), _rates(3350e9, float32=60e12, float16=700e12, bfloat16=700e12)
    ),
}  # fmt: skip
