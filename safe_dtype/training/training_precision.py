"""In which dtype a device trains, by what it was measured to do forward and backward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import prod

from torch import nn
from transformers.pytorch_utils import Conv1D

from ..devices import DEFAULT_WIDTHS, facts_of
from ..facts import (
    BESIDE_FLOAT32,
    BFLOAT16,
    COMPUTE,
    FLOAT16,
    FLOAT32,
    DeviceFacts,
    Dtype,
    Verdict,
    VerdictKind,
    dtype_named,
)

MATMUL, CONVOLUTION = "matmul_training", "conv2d_training"

_SMALL = 1_000_000  # parameters: below it overheads decide, and one pair of widths stands for all such models
_SMALL_WIDTHS = ((256, 256),)
_WIDTHS_MEASURED = 2
# Where 16 bits were asked for, what may take their place. A narrower range than the one asked for needs a GradScaler,
# which accelerate brings along, but for the CPU.
_LADDER = (BFLOAT16, FLOAT16, FLOAT32)
_BAD = (VerdictKind.SLOW, VerdictKind.WRONG, VerdictKind.UNSUPPORTED, VerdictKind.CRASHES)


@dataclass(frozen=True, slots=True)
class TrainingPrecision:
    """The dtype to train in, and why it is not the one that was asked for."""

    asked: Dtype
    chosen: Dtype
    device: str  # its product: "NVIDIA T4"
    reason: str = ""  # empty where `chosen` is what was asked for

    @property
    def is_as_asked(self) -> bool:
        """Whether nothing has to be changed."""
        return self.asked == self.chosen


def measure_training(device: str, model: nn.Module | None = None) -> DeviceFacts:
    """Return `device` with its verdicts on training in float32, bfloat16 and float16: remembered, or measured now.

    Args:
        device: torch's name for it.
        model: The model to be trained, whose widths are measured; None: it is not known yet.

    Raises:
        DeviceError: If the device is not here, or cannot be measured.
    """
    widths = DEFAULT_WIDTHS if model is None else widths_of(model)
    convolves = model is not None and any(isinstance(module, nn.Conv2d) for module in model.modules())
    return facts_of(device, dtypes=COMPUTE, widths=widths, ops=(MATMUL, CONVOLUTION) if convolves else (MATMUL,))


def widths_of(model: nn.Module) -> tuple[tuple[int, int], ...]:
    """Return (out_features, in_features) of the linears that hold most numbers of `model`."""
    numbers: Counter[tuple[int, int]] = Counter()
    for module in model.modules():
        if isinstance(module, nn.Linear):  # quantized ones too, whose weight has another shape
            numbers[module.out_features, module.in_features] += module.out_features * module.in_features
        elif isinstance(module, Conv1D):
            numbers[module.nf, module.nx] += module.nf * module.nx
        else:  # experts in one tensor: (experts, out, in)
            for weight in module.parameters(recurse=False):
                if weight.dim() == 3:
                    numbers[weight.shape[1], weight.shape[2]] += prod(weight.shape)
    if sum(numbers.values()) <= _SMALL:
        return _SMALL_WIDTHS
    return tuple(widths for widths, _ in islice(numbers.most_common(), _WIDTHS_MEASURED))


def with_failed(device: DeviceFacts, failed: Mapping[str, str]) -> DeviceFacts:
    """Return `device` with verdicts of dtypes, by name, in which training has failed on it, each with the reason."""
    verdicts = tuple(Verdict(dtype_named(name), MATMUL, VerdictKind.CRASHES, why) for name, why in failed.items())
    others = (
        verdict for verdict in device.verdicts if (verdict.dtype.name, verdict.op) not in {(n, MATMUL) for n in failed}
    )
    return replace(device, verdicts=(*others, *verdicts))


def choose_precision(
    asked: Dtype, device: DeviceFacts, *, ladder: Sequence[Dtype] = (), scales_float16: bool = True
) -> TrainingPrecision:
    """Return what to train in where `asked` was asked for: that, unless it was measured to be slow, wrong or not there.

    The next is float16 where that was measured to be native, and else float32. A dtype that nobody could measure is
    kept.

    Args:
        asked: The dtype of the autocast.
        device: What `measure_training` returns; of several devices that train together, `planning.combine` of it.
        ladder: The only dtypes that may take its place; empty: all.
        scales_float16: Whether float16 comes with a GradScaler, and has gradients that one can unscale.
    """
    if asked == FLOAT16 and device.vendor == "cpu":
        other = _speed(device, BFLOAT16)
        faster = f"; bfloat16 {other}" if other and _verdict(device, BFLOAT16).kind is VerdictKind.NATIVE else ""
        reason = f"on a CPU accelerate has no float16, and trains in float32 without a word{faster} ({device.name})"
        return TrainingPrecision(asked, FLOAT32, device.name, reason)
    verdict = _verdict(device, asked)
    if asked == FLOAT32 or verdict.kind not in _BAD:
        return TrainingPrecision(asked, asked, device.name)
    below = [dtype for dtype in _LADDER[_LADDER.index(asked) + 1 :] if not ladder or dtype in ladder]
    for dtype in below:
        has_scaler = scales_float16 and device.vendor != "cpu"
        if dtype == FLOAT32 or (has_scaler and _verdict(device, dtype).kind is VerdictKind.NATIVE):
            return TrainingPrecision(asked, dtype, device.name, f"{_why(verdict)} ({device.name})")
    return TrainingPrecision(asked, asked, device.name)


def _verdict(device: DeviceFacts, dtype: Dtype) -> Verdict:
    """Return the verdict on training in `dtype`: that on products, or that on convolutions where only they are bad."""
    verdicts = [verdict for verdict in device.verdicts if verdict.dtype == dtype and verdict.op.endswith("_training")]
    bad = next((verdict for verdict in verdicts if verdict.kind in _BAD), None)
    return bad or next(iter(verdicts), Verdict(dtype, MATMUL, VerdictKind.UNKNOWN, "not measured"))


def _why(verdict: Verdict) -> str:
    if verdict.kind is VerdictKind.SLOW:
        return f"a step of training in {verdict.dtype} takes {_ratio(verdict) or 'longer than in float32'}"
    if verdict.kind is VerdictKind.CRASHES:
        return f"a step of training in {verdict.dtype} has failed: {verdict.reason}"
    what = "convolutions" if verdict.op == CONVOLUTION else "products"
    return f"{what} in a step of training in {verdict.dtype} are {verdict.kind}: {verdict.reason}"


def _speed(device: DeviceFacts, dtype: Dtype) -> str:
    ratio = _ratio(_verdict(device, dtype))
    return f"takes {ratio}" if ratio else ""


def _ratio(verdict: Verdict) -> str:
    """Return how long it takes, from the verdict's reason: "30x float32's time"."""
    if BESIDE_FLOAT32 not in verdict.reason:
        return ""
    times = verdict.reason.partition(BESIDE_FLOAT32)[0].rpartition("; ")[-1]
    return f"{times}{BESIDE_FLOAT32.removesuffix(' at')}"
