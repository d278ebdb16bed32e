"""Which quantized checkpoints run where, by transformers' quantizers and the packages that they call."""

from __future__ import annotations

from dataclasses import replace

import factories as f
import pytest
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from safe_dtype.devices import prior_facts
from safe_dtype.facts import FLOAT16, CheckpointFacts
from safe_dtype.planning.quantizers import QUANTIZERS, quantizer_of, quantizes_to


def quantized(method: str, *, bits: int | None = None, code_format: str | None = None) -> CheckpointFacts:
    """Return a checkpoint of that method."""
    return replace(f.checkpoint(FLOAT16, quantization=method), packed_bits=bits, code_format=code_format)


@pytest.mark.parametrize(
    ("checkpoint", "device", "problem"),
    [
        (quantized("gptq", bits=4), "NVIDIA Tesla T4", None),
        (quantized("gptq", bits=4), "Intel Arc A770", None),
        (quantized("gptq", bits=4), "Google TPU", "it runs on NVIDIA, AMD"),
        (quantized("gptq", bits=4, code_format="marlin"), "NVIDIA V100", "needs compute capability 7.5"),
        (quantized("gptq", bits=4, code_format="marlin"), "NVIDIA A100", None),
        (quantized("gptq", bits=4, code_format="marlin"), "MI210", "it runs on NVIDIA from compute capability 7.5"),
        (quantized("awq", bits=4, code_format="gemm"), "AMD EPYC 9654", None),
        (quantized("awq", bits=4, code_format="gemv_fast"), "AMD EPYC 9654", "it runs on NVIDIA, AMD"),
        (quantized("bitsandbytes", bits=8), "NVIDIA V100", "needs compute capability 7.5"),
        (quantized("bitsandbytes", bits=4), "NVIDIA V100", None),
        (quantized("bitsandbytes", bits=4), "K80", "needs compute capability 6.0"),
        (quantized("bitsandbytes", bits=4), "Raspberry Pi 5", None),
        (quantized("bitsandbytes", bits=4), "x86-64 CPU without AVX2", "avx2"),
        (quantized("bitsandbytes", bits=4), "AMD Radeon RX 580", "newer AMD"),
        (quantized("bitsandbytes", bits=4), "Apple M2", None),
        (quantized("fbgemm_fp8"), "NVIDIA A100", "needs compute capability 9.0"),
        (quantized("fp8"), "Intel Arc A770", "it runs on NVIDIA from compute capability 8.9"),
        (quantized("fp8"), "MI210", "newer AMD"),
        (quantized("fp8"), "MI300X", None),
        (quantized("nvfp4"), "NVIDIA B200", "it runs on no device"),
    ],
    ids=lambda value: "" if value is None else value if isinstance(value, str) else str(value.quantization),
)
def test_where(checkpoint: CheckpointFacts, device: str, problem: str | None) -> None:
    """Codes that a device does not multiply are known as such, with what they need and where that stands."""
    quantizer = quantizer_of(checkpoint)
    assert quantizer is not None
    why = quantizer.problem_on(prior_facts(device))
    assert (why is None) == (problem is None)
    if problem:
        assert problem in str(why)
        assert quantizer.source in str(why)


def test_nothing_is_claimed_of_others() -> None:
    """Of a method that is not in the table, and of a device of no known kind, nothing is said."""
    assert quantizer_of(quantized("something_new")) is None
    marlin = quantizer_of(quantized("gptq", code_format="marlin"))
    assert marlin is not None
    assert marlin.problem_on(f.ARC) is None


def test_transformers_has_them() -> None:
    """Every row is a method of the installed transformers; whoever adds one to the table has its name right."""
    methods = {quantizer.method.partition(" ")[0] for quantizer in QUANTIZERS} - {"bitsandbytes"}
    assert methods <= set(AUTO_QUANTIZER_MAPPING)


@pytest.mark.parametrize(
    ("device", "bits"),
    [("NVIDIA Tesla T4", (8, 4)), ("NVIDIA V100", (4,)), ("K80", ()), ("Raspberry Pi 4", (8, 4)), ("Apple M2", (8, 4)),
     ("AMD Radeon RX 580", ()), ("Mac with an Intel CPU", ()), ("Intel Arc B580", (8, 4)), ("IBM POWER10", ())],
)  # fmt: skip
def test_quantized_on_loading(device: str, bits: tuple[int, ...]) -> None:
    """8 and 4 bits are offered where something quantizes to them while it loads, and nowhere else."""
    assert tuple(one for one in (8, 4) if quantizes_to(one, prior_facts(device))) == bits
