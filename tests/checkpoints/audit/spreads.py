"""Weights as they are spread, and what torch's own conversion to float16 makes of them, in the words of a census."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch

from safe_dtype.checkpoints import audit
from safe_dtype.checkpoints.audit.audit_weights import Audit
from safe_dtype.checkpoints.audit.census import Census
from safe_dtype.checkpoints.audit.counting import CHUNK_BYTES

CHUNK = CHUNK_BYTES // 2  # bfloat16 numbers


def audited(folder: Path, tensors: dict[str, torch.Tensor], **options: int) -> dict[str, Census]:
    """Save the tensors, audit the file, and return the census of each."""
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    return by_name(audit(folder, **options))


def by_name(found: Audit) -> dict[str, Census]:
    """Return the census of each tensor."""
    return {one.tensor.name: one.census for one in found.tensors}


def fates(tensor: torch.Tensor) -> dict[str, float]:
    """Return what torch's conversion makes of a tensor, in the words of a census."""
    wide, half = tensor.double().flatten(), tensor.half().double().flatten()
    finite = wide[wide.isfinite()].abs()
    stays = wide.isfinite() & half.isfinite()
    return {
        "elements": wide.numel(),
        "zeros": int((wide == 0).sum()),
        "infinite": int(wide.isinf().sum()),
        "nan": int(wide.isnan().sum()),
        "overflowing": int((wide.isfinite() & half.isinf()).sum()),
        "inexact": int((stays & (half != wide)).sum()),
        "vanishing": int(((wide != 0) & (half == 0)).sum()),
        "largest": float(finite.max()) if finite.numel() else 0.0,
        "smallest": float(finite[finite > 0].min()) if (finite > 0).any() else 0.0,
    }


def counted(census: Census) -> dict[str, float]:
    """Return the same of a census."""
    return {name: getattr(census, name) for name in fates(torch.zeros(0))}


def powers(tensor: torch.Tensor) -> dict[int, int]:
    """Count the finite numbers of a tensor by power of two."""
    wide = tensor.double().flatten()
    exponents = torch.frexp(wide[wide.isfinite() & (wide != 0)]).exponent - 1
    return {int(k): int(n) for k, n in zip(*exponents.unique(return_counts=True), strict=True)}


def weights(scale: float, count: int) -> torch.Tensor:
    """Return numbers as weights are spread."""
    torch.manual_seed(0)
    return (torch.randn(count) * scale).bfloat16()


SPREADS = {
    "usual": weights(0.02, 3 * CHUNK + 5),
    "tiny": weights(1e-7, CHUNK + 1),
    "huge": weights(3e4, CHUNK),
    "small-then-usual": torch.cat([weights(1e-5, CHUNK), weights(0.02, CHUNK)]),
    "usual-then-small": torch.cat([weights(0.02, CHUNK), weights(1e-5, CHUNK + 77)]),
    "usual-then-large": torch.cat([weights(0.02, CHUNK), weights(1.0, 3 * CHUNK)]),
    "some-nan": torch.where(torch.arange(CHUNK) % 100 == 0, float("nan"), weights(0.02, CHUNK)),
    "half-zero": torch.cat([torch.zeros(CHUNK, dtype=torch.bfloat16), weights(0.02, CHUNK)]),
    "zeros": torch.zeros(CHUNK + 3, dtype=torch.bfloat16),
    "one-spike": torch.cat([weights(0.02, CHUNK - 1), torch.tensor([3e38], dtype=torch.bfloat16)]),
    "constant": torch.full((2 * CHUNK,), 1.5, dtype=torch.bfloat16),
    "not-finite": torch.full((CHUNK + 1,), float("nan"), dtype=torch.bfloat16),
}
