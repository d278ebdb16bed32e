"""Cards of users, as their devices behave: names, memory, what they claim, and what they refuse."""

from __future__ import annotations

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


@dataclass(frozen=True)
class Behaviour:
    """How some operations (torch's names, without "aten::") go wrong or slowly in one dtype."""

    ops: tuple[str, ...]
    dtype: torch.dtype
    error: str = ""  # raised, unless it is empty
    seconds: float = 0.0  # more a call
    seconds_per_element: float = 0.0  # more for each element of the result


@dataclass(frozen=True)
class Card:
    """One kind of device. Beside what is said here, it computes as the CPU."""

    name: str
    memory_bytes: int
    capability: tuple[int, int] = (0, 0)
    claims_bfloat16: bool = True  # torch.cuda.is_bf16_supported()
    claims_native_bfloat16: bool = True  # ... (including_emulation=False)
    behaviours: tuple[Behaviour, ...] = ()


UNNAMED = Card("Rehearsal accelerator", 16 << 30)

_EMULATED_BFLOAT16 = Behaviour(MATRIX_PRODUCTS, torch.bfloat16, seconds=2e-4, seconds_per_element=2e-7)
_REFUSED_BFLOAT16 = Behaviour(MATRIX_PRODUCTS, torch.bfloat16, error=NO_BFLOAT16_PRODUCT)
_OLDER = {"claims_bfloat16": True, "claims_native_bfloat16": False}

# Memory is what a fresh process sees as total_memory.
CARDS = {
    "T4": Card("Tesla T4", 15_828_320_256, (7, 5), behaviours=(_EMULATED_BFLOAT16,), **_OLDER),
    "T4 refusing": Card("Tesla T4", 15_828_320_256, (7, 5), behaviours=(_REFUSED_BFLOAT16,), **_OLDER),
    "V100": Card("Tesla V100-SXM2-16GB", 16_935_682_048, (7, 0), behaviours=(_REFUSED_BFLOAT16,), **_OLDER),
    "RTX 2080 Ti": Card(
        "NVIDIA GeForce RTX 2080 Ti", 11_543_379_968, (7, 5), behaviours=(_EMULATED_BFLOAT16,), **_OLDER
    ),
    "A100": Card("NVIDIA A100-SXM4-40GB", 42_297_786_368, (8, 0)),
    "H100": Card("NVIDIA H100 80GB HBM3", 84_929_347_584, (9, 0)),
}
