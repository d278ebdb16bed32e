"""Random numbers on a device, made cheaply and without touching anybody's random state."""

from __future__ import annotations

import torch
from torch import Tensor

from ...facts import INT8, Dtype
from ..memory import memory_of
from ..processor import last_level_cache_bytes

# Lengths of the blocks that are repeated: primes, so that rows of a matrix are never copies of each other, and two of
# them, so that an input is never a row of a weight.
_INPUT_BLOCK, _WEIGHT_BLOCK = 131_071, 262_139
_WEIGHT_SCALE = 0.125  # products of 16 to 16k terms stay far inside float16
# Half of them at the ends: what adds products up in 16 bits leaves their range, as it may with a model's own numbers.
_INT8_SCALE = 200.0

_CPU_POOL = range(64 * 2**20, 384 * 2**20)  # bytes
_ACCELERATOR_POOL = 256 * 2**20  # beyond the 50 MB second-level cache of an H100
_COPIES = 4  # of one weight, at least


class Workspace:
    """Inputs and weights for measurements on one device.

    Weights lie in a pool larger than the last-level cache and are used in turn: in a model no weight is still cached
    when its turn comes again, and one row per weight is bound by reading it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        generator = torch.Generator(device="cpu").manual_seed(0)
        self._noise = torch.randn(_WEIGHT_BLOCK, generator=generator, dtype=torch.float32, device="cpu")
        self._pool: Tensor | None = None
        self._filled_with: Dtype | None = None
        self._copied: Tensor | None = None  # what the pool is full of, where that is a matrix over and over

    def inputs(self, dtype: Dtype, *shape: int) -> Tensor:
        """Return normally distributed numbers (in int8 half of them at +-127)."""
        block = self._block(dtype, _INPUT_BLOCK, 1.0)
        return _repeated(block, torch.empty(shape, dtype=block.dtype, device=self.device))

    def weights(self, dtype: Dtype, shape: tuple[int, int]) -> Tensor:
        """Return as many weights as the pool holds, of shape (copies, out, in)."""
        numbers = self._numbers(dtype)
        copies = max(1, numbers.numel() // (shape[0] * shape[1]))
        return numbers[: copies * shape[0] * shape[1]].view(copies, *shape)

    def copies(self, block: Tensor, rows: int) -> Tensor:
        """Return as many matrices as the pool holds, of shape (copies, rows, columns): the rows of `block` over and over."""
        numbers = self._pooled(block.dtype)
        if self._copied is None or self._copied.dtype != block.dtype or not torch.equal(self._copied, block):
            _repeated(block.flatten(), numbers)
            self._copied, self._filled_with = block, None
        copies = max(1, numbers.numel() // (rows * block.shape[1]))
        return numbers[: copies * rows * block.shape[1]].view(copies, rows, block.shape[1])

    def widest(self, dtype: Dtype, shape: tuple[int, int]) -> tuple[int, int]:
        """Return `shape` with no more output rows than leave several copies in the pool."""
        rows = self._pool_bytes() // (_COPIES * shape[1] * dtype.itemsize)
        return min(shape[0], max(1, rows)), shape[1]

    def _numbers(self, dtype: Dtype) -> Tensor:
        numbers = self._pooled(getattr(torch, dtype.name))
        if self._filled_with != dtype:
            _repeated(self._block(dtype, _WEIGHT_BLOCK, _WEIGHT_SCALE), numbers)
            self._copied, self._filled_with = None, dtype
        return numbers

    def _pooled(self, dtype: torch.dtype) -> Tensor:
        if self._pool is None:
            self._pool = torch.empty(self._pool_bytes(), dtype=torch.uint8, device=self.device)
        return self._pool.view(dtype)

    def _block(self, dtype: Dtype, length: int, scale: float) -> Tensor:
        if dtype == INT8:
            return (self._noise[:length] * _INT8_SCALE).clamp(-127, 127).to(torch.int8).to(self.device)
        return (self._noise[-length:] * scale).to(getattr(torch, dtype.name)).to(self.device)

    def _pool_bytes(self) -> int:
        if self._pool is not None:
            return self._pool.numel()
        wanted = _ACCELERATOR_POOL
        if self.device.type == "cpu":
            wanted = min(max(2 * last_level_cache_bytes(), _CPU_POOL.start), _CPU_POOL.stop)
        # Whole blocks of 64 bytes: the pool is viewed as every dtype.
        return max(2**20, min(wanted, memory_of(str(self.device)).free_bytes // 4)) // 64 * 64


def _repeated(block: Tensor, into: Tensor) -> Tensor:
    """Fill `into` with `block`, over and over."""
    flat = into.view(-1)
    whole = flat.numel() // block.numel()
    if whole:
        flat[: whole * block.numel()].view(whole, -1).copy_(block)
    rest = flat[whole * block.numel() :]
    rest.copy_(block[: rest.numel()])
    return into
