"""The rehearsal device keeps what it promises: it computes as the CPU, counts, refuses, and is lost when told."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from accelerator.rehearsal import Rehearsal


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
