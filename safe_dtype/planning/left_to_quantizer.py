"""What is decided of a quantized checkpoint: its quantizer has a rule for the dtype, and runs on some devices only."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..facts import BFLOAT16, CheckpointFacts, DeviceFacts
from .dense import dense
from .plan import Decision, Ground
from .quantizers import Quantizer, quantizer_of

TO_DEQUANTIZE = {  # where transformers leaves the codes as they are, although the device does not multiply them
    "fp8": "FineGrainedFP8Config(dequantize=True)",
    "mxfp8": "FineGrainedFP8Config(dequantize=True)",
    "mxfp4": "Mxfp4Config(dequantize=True)",
}


@dataclass(frozen=True, slots=True)
class LeftToQuantizer:
    """The decision on a quantized checkpoint, rejected where its codes do not run or do not fit, and what is said of it."""

    decision: Decision
    reason: str
    warnings: tuple[str, ...] = ()


def left_to_quantizer(judged: Decision, device: DeviceFacts, checkpoint: CheckpointFacts) -> LeftToQuantizer:
    """Return what becomes of a checkpoint whose dtype is its quantizer's.

    Args:
        judged: The verdict on the dtype beside the codes, were it the dtype of all weights.
        device: Where it is to run.
        checkpoint: With its codes.
    """
    quantizer = quantizer_of(checkpoint)
    method = quantizer.name if quantizer else str(checkpoint.quantization)
    problem = quantizer.problem_on(device) if quantizer else None
    # What is quantized while it loads takes fewer bytes than its files.
    is_in_files = checkpoint.loaded_as is not None or dense(checkpoint, BFLOAT16) is not None
    if quantizer and problem:
        return _not_there(judged, quantizer.name, problem, device, checkpoint, is_in_files=is_in_files)
    needs = _needs(quantizer) + _slowly(quantizer, device)
    if judged.ground is Ground.MEMORY and is_in_files:
        reason = f"quantized with {method}, and it does not fit: it {judged.reason}{needs}"
        text = f"{checkpoint.source} {judged.reason} on {device.name}: it may not load"
        return LeftToQuantizer(replace(judged, reason=f"left to {method}; {judged.reason}"), reason, (text,))
    left = replace(judged, ground=None, reason=f"left to {method}{needs}")
    return LeftToQuantizer(left, f"quantized with {method}: its quantizer chooses the dtype{needs}")


def _not_there(
    judged: Decision, method: str, problem: str, device: DeviceFacts, checkpoint: CheckpointFacts, *, is_in_files: bool
) -> LeftToQuantizer:
    left = replace(judged, ground=Ground.UNSUPPORTED, reason=problem)
    if not is_in_files:
        what = f"{device.name} does not multiply such codes"
        text = (
            f"{checkpoint.source} is not quantized, {method} was asked for, and {what}: {problem}. "
            "Next: load it without quantization_config"
        )
    elif config := TO_DEQUANTIZE.get(method):
        what = f"{device.name} does not multiply its codes"
        text = f"{checkpoint.source} is quantized with {method}, and {what}: {problem}. Next: load it with quantization_config={config}"
    else:
        what = f"it does not load on {device.name}"
        text = (
            f"{checkpoint.source} does not load on {device.name}: {method}: {problem}. "
            "Next: take the model that it was quantized from, or another of its quantized forms"
        )
    return LeftToQuantizer(left, f"quantized with {method}, and {what}: {problem}", (text,))


def _needs(quantizer: Quantizer | None) -> str:
    if quantizer is None or not quantizer.packages:
        return ""
    many = "s" * (len(quantizer.packages) > 1)
    return f"; needs the package{many} {' and '.join(quantizer.packages)}"


def _slowly(quantizer: Quantizer | None, device: DeviceFacts) -> str:
    if quantizer is None or not quantizer.unpacks_at_every_product(device):
        return ""
    return f"; there are no kernels of it for {device.name}: plain torch unpacks the weights at every product, slowly"
