"""A rehearsal device that is a card of a user: as the package sees it, and as it behaves."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from accelerator.rehearsal import Rehearsal
from torch_musa.cards import CARDS

from safe_dtype.devices import facts_of
from safe_dtype.devices.accelerators import accelerators
from safe_dtype.facts import BFLOAT16, FLOAT16, VerdictKind


@pytest.mark.parametrize("card", CARDS)
def test_what_a_card_is(rehearsal: Rehearsal, card: str) -> None:
    """It has its vendor, its memory and its family of the prior table; float16 is native on all of them."""
    rehearsal.insert(card, device=1)
    facts = facts_of("musa:1")
    assert (facts.name, facts.memory.total_bytes) == (CARDS[card].name, CARDS[card].memory_bytes)
    assert facts.vendor == "nvidia"
    assert facts.family.startswith("nvidia")
    verdicts = {verdict.dtype: verdict for verdict in facts.verdicts if verdict.op == "matmul"}
    assert verdicts[FLOAT16].kind is VerdictKind.NATIVE
    is_native = verdicts[BFLOAT16].kind is VerdictKind.NATIVE
    with torch.musa.device(1):
        assert is_native == torch.musa.is_bf16_supported(including_emulation=False)
        assert torch.musa.is_bf16_supported()
    assert facts_of("musa:0").vendor == "rehearsal"


@pytest.mark.parametrize(("card", "capability"), [(None, ""), ("T4", "7.5")])
def test_capability_of_a_plugin(rehearsal: Rehearsal, card: str | None, capability: str) -> None:
    """A pair of numbers is a version, and zeros are none."""
    if card:
        rehearsal.insert(card)
    assert accelerators()[0].capability == capability


# Each with how many multiplications it has.
PRODUCTS: dict[str, tuple[Callable[[Callable[..., torch.Tensor]], torch.Tensor], int]] = {
    "matrices": (lambda ones: ones(64, 128) @ ones(128, 32), 64 * 128 * 32),
    "linear": (lambda ones: F.linear(ones(64, 128), ones(32, 128), ones(32)), 64 * 128 * 32),
    "batches": (lambda ones: ones(4, 32, 64) @ ones(4, 64, 32), 4 * 32 * 64 * 32),
    "vector": (lambda ones: ones(512, 512) @ ones(512), 512 * 512),
    "convolution": (lambda ones: F.conv2d(ones(1, 8, 16, 16), ones(8, 8, 3, 3), padding=1), 8 * 8 * 9 * 256),
    "attention": (
        lambda ones: F.scaled_dot_product_attention(ones(1, 4, 64, 16), ones(1, 4, 64, 16), ones(1, 4, 64, 16)),
        2 * 4 * 64 * 64 * 16,
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize(("dtype", "seconds"), [(torch.float32, 1e-9), (torch.bfloat16, 2e-9)], ids=str)
def test_products_take_their_time(rehearsal: Rehearsal, dtype: torch.dtype, seconds: float, name: str) -> None:
    """On a T4 every multiplication takes as long as the card says, more in bfloat16 than in float32."""
    rehearsal.insert("T4")
    compute, products = PRODUCTS[name]
    started = time.perf_counter()
    compute(lambda *shape: torch.ones(shape, dtype=dtype, device=rehearsal.device()))
    assert time.perf_counter() - started >= products * seconds


@pytest.mark.parametrize("card", ["T4 refusing bfloat16", "V100"])
def test_what_a_card_refuses(rehearsal: Rehearsal, card: str) -> None:
    """It holds bfloat16, and refuses products in it with cuBLAS' own words; in float16 it multiplies."""
    rehearsal.insert(card)
    square = torch.ones(4, 4, device=rehearsal.device())
    assert (square.bfloat16() + square.bfloat16()).sum().item() == 32
    with pytest.raises(RuntimeError, match=r"CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx\(.*CUDA_R_16BF"):
        square.bfloat16() @ square.bfloat16()
    assert (square.half() @ square.half()).sum().item() == 64
