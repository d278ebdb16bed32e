"""Which `mixed_precision` accelerate is told: decided by the verdicts on every device that takes part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from safe_dtype.facts import BFLOAT16, FLOAT16, DeviceFacts, Dtype, Verdict, VerdictKind

# bfloat16 first: it has float32's range, so it needs no loss scaler, and no step is dropped for an overflow.
_NAMES = {BFLOAT16: "bf16", FLOAT16: "fp16"}
_OF_TRAINING = "matmul_training"


@dataclass(frozen=True, slots=True)
class MixedPrecision:
    """What accelerate is told, and the verdicts that decided it."""

    name: str  # "bf16", "fp16" or "no", as accelerate spells them
    reasons: tuple[str, ...]  # one of each dtype that was looked at, the accepted one last


def mixed_precision_for(devices: Sequence[DeviceFacts]) -> MixedPrecision:
    """Return the first of bf16 and fp16 that is native on every device, else "no".

    What counts is a step of training, forward and backward, where that was measured: a device may be fast one way and slow
    the other.

    All ranks exchange gradients, so one device without a dtype decides for all. accelerate and torch cannot be asked:
    they accept bf16 on a T4, where it is emulated.
    """
    reasons: list[str] = []
    for dtype, name in _NAMES.items():
        obstacle = next(filter(None, (_obstacle(dtype, device) for device in devices)), None)
        if obstacle is None:
            return MixedPrecision(name, (*reasons, f"{name}: {_basis(dtype, devices)}"))
        reasons.append(f"{name} is rejected: {obstacle}")
    return MixedPrecision("no", (*reasons, "no: float32 runs everywhere"))


def _obstacle(dtype: Dtype, device: DeviceFacts) -> str | None:
    if dtype == FLOAT16 and device.vendor == "cpu":
        return "on a CPU accelerate takes it and trains in float32, without a word"
    product, attention = _product(dtype, device), device.verdict(dtype, "attention")
    if product.kind is not VerdictKind.NATIVE:
        return f"{device.name}: {product.kind}, {product.reason}"
    # Published facts are about products alone; attention counts where it was measured.
    if not attention.runs and attention.kind is not VerdictKind.UNKNOWN:
        return f"{device.name}: attention is {attention.kind}, {attention.reason}"
    return None


def _basis(dtype: Dtype, devices: Sequence[DeviceFacts]) -> str:
    reasons = dict.fromkeys(f"{device.name}: {_product(dtype, device).reason}" for device in devices)
    return f"native on every device ({'; '.join(reasons)})"


def _product(dtype: Dtype, device: DeviceFacts) -> Verdict:
    """Return the verdict on products in a step of training; on the products of inference, where nothing else is known."""
    trained = device.verdict(dtype, _OF_TRAINING)
    return device.verdict(dtype) if trained.kind is VerdictKind.UNKNOWN else trained
