"""A device as vLLM uses it: in the dtypes that vLLM has there, each computed as it is stored. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from safe_dtype.facts import COMPUTE, FLOAT16, DeviceFacts, Dtype, MemoryFacts, Verdict, VerdictKind

# What a plan may rest on besides is ours: products in another dtype than the weights, other layouts, compiled rows.
_OPS = ("matmul", "attention", "layer_norm", "rms_norm", "softmax", "embedding", "conv2d")


@dataclass(frozen=True, slots=True)
class VllmRuntime:
    """What the vLLM that is installed computes in on its platform."""

    dtypes: tuple[Dtype, ...] = COMPUTE
    without_float16: tuple[str, ...] = ()  # the model types that it refuses float16 to

    def refuses(self, dtype: Dtype, model_type: str | None) -> str:
        """Return why a model of that type cannot have `dtype` in vLLM; empty where it can."""
        if dtype not in self.dtypes:
            return f"vLLM has no {dtype} on this device"
        if dtype == FLOAT16 and model_type in self.without_float16:
            return f"vLLM refuses {dtype} to {model_type}"
        return ""


def as_vllm_runs(device: DeviceFacts, runtime: VllmRuntime, model_type: str | None) -> DeviceFacts:
    """Return the facts of `device` for a plan that vLLM can follow.

    How much memory there is does not count: vLLM splits a model over devices, and fills what is left with its cache.
    """
    own = replace(
        device,
        memory=MemoryFacts(0, 0, "vLLM"),
        verdicts=tuple(verdict for verdict in device.verdicts if verdict.op in _OPS),
    )
    refusals = ((dtype, runtime.refuses(dtype, model_type)) for dtype in COMPUTE)
    return without(own, [(dtype, why) for dtype, why in refusals if why])


def without(device: DeviceFacts, refusals: Iterable[tuple[Dtype, str]]) -> DeviceFacts:
    """Return the facts of `device` as if it could not multiply in some dtypes, each with the reason."""
    missing = tuple(Verdict(dtype, "matmul", VerdictKind.UNSUPPORTED, why) for dtype, why in refusals)
    replaced = {verdict.dtype for verdict in missing}
    others = (one for one in device.verdicts if one.op != "matmul" or one.dtype not in replaced)
    return replace(device, verdicts=(*others, *missing))
