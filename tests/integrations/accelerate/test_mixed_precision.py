"""Which mixed precision accelerate is told, from verdicts alone."""

from __future__ import annotations

import pytest
from safe_dtype.integrations.accelerate import mixed_precision_for

from safe_dtype import prior_facts
from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32, DeviceFacts, Dtype, MemoryFacts, Verdict, VerdictKind

NATIVE, SLOW, WRONG = VerdictKind.NATIVE, VerdictKind.SLOW, VerdictKind.WRONG


def device(name: str = "GPU", vendor: str = "nvidia", **kinds: VerdictKind) -> DeviceFacts:
    """Return a measured device; `bf16_attention=WRONG` is the verdict on attention."""
    dtypes: dict[str, Dtype] = {"bf16": BFLOAT16, "fp16": FLOAT16, "fp32": FLOAT32}
    verdicts = []
    for key, kind in kinds.items():
        short, _, op = key.partition("_")
        verdicts.append(Verdict(dtypes[short], op or "matmul", kind, f"the reason of {key}"))
    return DeviceFacts("cuda:0", name, MemoryFacts(0, 0, "device"), tuple(verdicts), vendor)


@pytest.mark.parametrize(
    ("devices", "name", "reason"),
    [
        pytest.param([device(bf16=NATIVE, fp16=NATIVE)], "bf16", "GPU: the reason of bf16", id="bf16-first"),
        pytest.param([device(bf16=SLOW, fp16=NATIVE)], "fp16", "bf16 is rejected: GPU: slow", id="emulated"),
        pytest.param([device(fp16=NATIVE)], "fp16", "bf16 is rejected: GPU: unknown", id="nobody-knows"),
        pytest.param([device(bf16=SLOW, fp16=SLOW)], "no", "fp16 is rejected: GPU: slow", id="neither"),
        pytest.param([device(bf16=NATIVE, bf16_attention=WRONG)], "no", "attention is wrong", id="attention"),
        pytest.param([device(bf16=NATIVE, bf16_matmul_training=SLOW)], "no", "bf16_matmul_training", id="slow-backward"),
        pytest.param([device(bf16=SLOW, bf16_matmul_training=NATIVE)], "bf16", "bf16_matmul_training", id="trains-well"),
        pytest.param([device(vendor="cpu", fp16=NATIVE)], "no", "without a word", id="fp16-on-a-cpu"),
        pytest.param(
            [device("new", bf16=NATIVE, fp16=NATIVE), device("old", bf16=SLOW, fp16=NATIVE)],
            "fp16", "bf16 is rejected: old: slow", id="the-weakest-decides",
        ),
        pytest.param([prior_facts("NVIDIA Tesla T4")], "fp16", "published, not measured here", id="published"),
    ],
)  # fmt: skip
def test_verdicts_decide(devices: list[DeviceFacts], name: str, reason: str) -> None:
    """The first of bf16 and fp16 that is native on every device, with the verdict that rejected the other."""
    precision = mixed_precision_for(devices)
    assert precision.name == name
    assert reason in "\n".join(precision.reasons)
